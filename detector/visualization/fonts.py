"""Fonts for any script: an installed one for Chinese, Japanese or Korean, which those of matplotlib and Pillow lack."""

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from PIL import ImageFont

logger = logging.getLogger(__name__)

FIRST = "DejaVu Sans"  # matplotlib ships it: Latin, Greek, Cyrillic, Arabic
OTHERS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans", "Hiragino Sans GB", "Microsoft YaHei",
    "Yu Gothic", "Malgun Gothic", "SimHei", "Arial Unicode MS",
)  # fmt: skip
_is_noted = False  # whether a note was given


@functools.cache
def families() -> list[str]:
    """The fonts that are installed; each character is drawn with the first that has it."""
    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    return [FIRST, *(name for name in OTHERS if name in installed)]


@functools.cache
def _characters(family: str) -> frozenset[int]:
    return frozenset(FT2Font(font_manager.findfont(family)).get_charmap())


def note_missing(texts: Iterable[str]) -> None:
    """Log a note if no font has some of the characters: once, as a program may make a picture for each class."""
    global _is_noted
    wanted = {ord(character) for text in texts if not text.isascii() for character in text if character.isprintable()}
    for family in families() if wanted else []:
        wanted -= _characters(family)
    if wanted and not _is_noted:
        shown = "".join(map(chr, sorted(wanted)[:10]))
        logger.warning("pictures show empty boxes for %s: install a font that has them, such as Noto Sans CJK", shown)
        _is_noted = True


@contextlib.contextmanager
def one_note_of_missing(figure: Figure) -> Iterator[None]:
    """While the figure is drawn: `note_missing` in place of matplotlib's warning about each character."""
    note_missing(text.get_text() for text in figure.findobj(Text))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from")
        yield


def pillow_font(texts: Sequence[str], size_px: float) -> ImageFont.FreeTypeFont:
    """The font that has most of the characters of these texts."""
    note_missing(texts)
    wanted = {ord(character) for text in texts for character in text}
    family = max(families(), key=lambda name: len(wanted & _characters(name)))
    return ImageFont.truetype(font_manager.findfont(family), size_px)
