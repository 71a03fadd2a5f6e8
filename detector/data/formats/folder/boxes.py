"""A record from boxes, for the formats whose files are plain lists of boxes."""

from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

import numpy as np

from detector.data.dataset import Record
from detector.data.formats.coco import LARGEST_PX
from detector.errors import InputError
from detector.runtime.files import reading


@dataclass
class Boxes:
    """The objects of one image as they are collected, in continuous pixels of the original frame."""

    names: list[str] = field(default_factory=list)
    corners: list[list[float]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # messages on objects that cannot be used

    def add(self, where: str, name: object, corners: Sequence[float]) -> None:
        """Add an object, or list it in `skipped` if it has no class or no area.

        `where` names file and object. Raises InputError for swapped corners and for coordinates beyond any image.
        """
        x1, y1, x2, y2 = corners
        shown = f"xmin {x1:g} ymin {y1:g} xmax {x2:g} ymax {y2:g}"
        if not all(abs(value) < LARGEST_PX for value in corners):
            raise InputError(f"{where} has the box {shown}: not coordinates in an image")
        if x2 < x1 or y2 < y1:
            raise InputError(f"{where} has its corners swapped: {shown}")
        label = normalize("NFC", name.strip()) if isinstance(name, str) else ""
        if not label:
            self.skipped.append(f"{where} has no class: {name!r}")
        elif np.float32(x2) <= np.float32(x1) or np.float32(y2) <= np.float32(y1):
            self.skipped.append(f"{where} holds no pixel: {shown}")
        else:
            self.names.append(label)
            self.corners.append([x1, y1, x2, y2])

    def record(
        self, image_id: str, image: Path | InputError, annotation: Path, hw: tuple[int, int] | None = None
    ) -> Record:
        """The record of these objects; `hw` is the image size in the annotation."""
        boxes = np.array(self.corners, dtype=np.float32).reshape(-1, 4)
        none = np.zeros(len(boxes), dtype=bool)
        return Record(
            image_id=image_id,
            image=image,
            annotation=annotation,
            names=tuple(self.names),
            boxes=boxes,
            difficult=none,
            crowd=none,
            areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64),
            annotated_hw=hw,
            skipped=tuple(self.skipped),
        )


def read_text(path: Path) -> str:
    """The text of a file. Raises InputError if it is in another encoding than `text_of` reads, or cannot be read."""
    with reading(path, "not UTF-8 text"):
        return text_of(path.read_bytes())


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, without space around them. Same errors as `read_text`."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def text_of(data: bytes, errors: str = "strict") -> str:
    """Decode UTF-8, or UTF-16 with a byte order mark, which programs on Windows write."""
    return data.decode("utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig", errors)


def checked_numbers(what: str, values: Sequence[object]) -> list[float]:
    """The coordinates or sizes as floats. Raises InputError, with `what`, for other types and for huge numbers."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    found = [float(value) for value in numbers if abs(value) < LARGEST_PX]
    if len(found) != len(values):
        raise InputError(
            f"{what} has the coordinates or the image size {values!s:.60}: they must be numbers below {LARGEST_PX:g}"
        )
    return found
