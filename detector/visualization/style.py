"""One style for all figures and animations: colours, fonts, and how they are saved."""

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from detector.runtime.files import write_atomically
from detector.visualization.drawing import COLOURS
from detector.visualization.fonts import families, one_note_of_missing

INK, FAINT = "#1a1a1a", "#8a8a8a"
RANK_MAP, HEAT_MAP = "viridis", "inferno"
STYLE: dict[Any, Any] = {
    "font.size": 12,
    "figure.constrained_layout.h_pad": 0.1,  # inches around each panel
    "figure.constrained_layout.w_pad": 0.06,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.prop_cycle": cycler(color=COLOURS),
    "text.color": INK,
    "text.parse_math": False,  # class names and file names can hold a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "fast-rcnn",  # the same figure gives the same file
}
DPI = 100

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def styled(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorate a function that draws a figure, so that the figure has this style."""

    @functools.wraps(function)
    def with_style(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        with matplotlib.rc_context(STYLE | {"font.family": families()}):
            return function(*arguments, **named)

    return with_style


def new_figure(width: float, height: float, arranged: bool = True) -> Figure:
    """An empty figure of this size in inches, drawn without a window.

    arranged: lay out its axes automatically when it is drawn, which takes as long as drawing it.
    """
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained" if arranged else None)
    FigureCanvasAgg(figure)
    return figure


def show_image(axes: Axes, image: np.ndarray, title: str) -> None:
    """Show an image (H, W, 3) without ticks. Its frame is that of boxes in continuous pixels."""
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0), interpolation="nearest" if width < 100 else "bilinear")
    axes.set_title(title)
    axes.set_axis_off()


def pixels(figure: Figure) -> np.ndarray:
    """The figure as an image (H, W, 3) uint8."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    with one_note_of_missing(figure):
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    data = io.BytesIO()
    with one_note_of_missing(figure):
        figure.savefig(data, format="png", dpi=100)
    return data.getvalue()


@styled
def save_figure(folder: Path, name: str, figure: Figure, colours: int = 256) -> None:
    """Write FOLDER/NAME.png, with a palette of at most `colours` colours, and FOLDER/NAME.svg."""
    save_picture(folder / f"{name}.png", pixels(figure), colours)
    data = io.BytesIO()
    with one_note_of_missing(figure):
        figure.savefig(data, format="svg", metadata={"Date": None})
    write_atomically(folder / f"{name}.svg", data.getvalue())


def save_picture(path: Path, picture: np.ndarray, colours: int = 256) -> None:
    """Write an image (H, W, 3) uint8 as PNG with a palette."""
    data = io.BytesIO()
    with_palette([picture], colours)[0].save(data, "PNG", optimize=True)
    write_atomically(path, data.getvalue())


def save_animation(path: Path, frames: Sequence[np.ndarray], seconds: Sequence[float], colours: int = 192) -> None:
    """Write an endless GIF of images (H, W, 3) uint8 of one size, with the duration of each. They share one palette."""
    shown = with_palette(frames, colours)
    data, milliseconds = io.BytesIO(), [round(1000 * duration) for duration in seconds]
    shown[0].save(data, "GIF", save_all=True, append_images=shown[1:], duration=milliseconds, loop=0, optimize=True)
    write_atomically(path, data.getvalue())


def with_palette(pictures: Sequence[np.ndarray], colours: int) -> list[Image.Image]:
    """The images with one palette of at most `colours` colours, which contains those of the style."""
    own = [round(255 * part) for colour in (*COLOURS, INK, FAINT, "white") for part in to_rgb(colour)]
    found = Image.fromarray(np.concatenate(pictures)).quantize(colours - len(own) // 3).getpalette()
    palette = Image.new("P", (1, 1))
    palette.putpalette([*own, *(found or [])])
    return [Image.fromarray(item).quantize(palette=palette, dither=Image.Dither.NONE) for item in pictures]
