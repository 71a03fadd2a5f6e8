"""CSV files of boxes: one row for each object, with the image's file, the corners and the class."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from detector.data.dataset import Record
from detector.data.formats.folder.boxes import Boxes, read_text, text_of
from detector.data.formats.folder.tree import FileTree
from detector.data.image import ImageOptions, read_image_hw
from detector.errors import InputError
from detector.runtime.files import reading

# What a column can be called, in lower case and without other characters than letters and digits.
COLUMNS: dict[str, tuple[str, ...]] = {
    "file": ("filename", "file", "filepath", "image", "imagename", "imagepath", "imagefile", "imageid", "path", "img"),
    "xmin": ("xmin", "x1", "left", "xtl"),
    "ymin": ("ymin", "y1", "top", "ytl"),
    "xmax": ("xmax", "x2", "right", "xbr"),
    "ymax": ("ymax", "y2", "bottom", "ybr"),
    "class": ("class", "label", "name", "category", "classname", "labelname", "classes"),
}
MAX_HEADER_BYTES = 10_000
NUMBER_OR_NOTHING = r"-?[\d.]*"
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read(tree: FileTree, options: ImageOptions) -> Iterator[Record]:
    """A record for each image of the CSV files with such columns; a row without box means an image without objects.

    Corners are continuous pixels or, if none in a file is above 1, fractions of the image. Several files may repeat
    the same rows.
    """
    known: dict[Path | str, Record] = {}
    for path in tree.with_suffix(".csv"):
        for record in _records(tree, path, options):
            before = known.setdefault(record.image_id if isinstance(record.image, InputError) else record.image, record)
            if before is record or (before.names, before.boxes.tolist()) != (record.names, record.boxes.tolist()):
                yield record


def first_line(path: Path) -> str:
    """The header of a CSV file, for messages."""
    with open(path, "rb") as file:
        data = file.read(MAX_HEADER_BYTES)
    return (text_of(data, errors="replace").splitlines() or [""])[0].strip()


def _records(tree: FileTree, path: Path, options: ImageOptions) -> Iterator[Record]:
    rows = _rows(path)
    if rows is None:
        return
    names = _class_names(tree)
    images: dict[str, Boxes | InputError] = {}
    largest = 0.0
    for number, row in rows:
        boxes = images.setdefault(row["file"], Boxes())
        if isinstance(boxes, InputError) or not any(row[key] for key in CORNERS):
            continue
        where = f"{path}: line {number}"
        try:
            corners = [float(row[key]) for key in CORNERS]
            boxes.add(where, names.get(row["class"], row["class"]), corners)
            largest = max(largest, *corners)
        except ValueError:
            images[row["file"]] = InputError(
                f"{where} needs four numbers (such as 12.5) as corners, not {[row[key] for key in CORNERS]}"
            )
        except InputError as error:
            images[row["file"]] = error
    for name, boxes in images.items():
        image = tree.image_named(name, path)
        try:
            if isinstance(boxes, InputError):
                raise boxes
            if 0 < largest <= 1 and isinstance(image, Path):
                height, width = read_image_hw(image, options)
                sizes = (width, height, width, height)
                boxes.corners = [[*np.multiply(corners, sizes)] for corners in boxes.corners]
            yield boxes.record(name, image, path)
        except InputError as error:
            yield Record(name, image, path, invalid=error)


def _class_names(tree: FileTree) -> dict[str, str]:
    """The names of Open Images' class codes, such as /m/01yrx, by its files such as class-descriptions-boxable.csv."""
    files = [path for path in tree.with_suffix(".csv") if "class-descriptions" in path.stem]
    return dict(row for path in files for _, row in _numbered_rows(path) if len(row) == 2)


def _rows(path: Path) -> list[tuple[int, dict[str, str]]] | None:
    """The rows by the keys of COLUMNS with their line numbers, or None for a file without these columns.

    Without a header the columns are file, corners, class, as keras-retinanet has them.
    """
    header = first_line(path)
    delimiter = max(",;\t", key=header.count)
    titles = [title.strip() for title in header.split(delimiter)]
    positions, skip = _positions(titles), 1
    if positions is None and len(titles) == 6 and all(re.fullmatch(NUMBER_OR_NOTHING, at) for at in titles[1:5]):
        positions, skip = dict(zip(("file", *CORNERS, "class"), range(6), strict=True)), 0
    if positions is None:
        return None
    found = []
    for number, row in _numbered_rows(path, delimiter):
        values = {key: row[at].strip() if at < len(row) else "" for key, at in positions.items()}
        if any(row) and number > skip:
            if not values["file"]:
                raise InputError(f"{path}: line {number} names no image: {row}")
            found.append((number, values))
    return found


def _numbered_rows(path: Path, delimiter: str = ",") -> list[tuple[int, list[str]]]:
    """The rows of a CSV file with their line numbers. Raises InputError for broken CSV."""
    reader = csv.reader(read_text(path).splitlines(), delimiter=delimiter)
    with reading(path, "broken CSV"):
        return [(reader.line_num, row) for row in reader]


def _positions(titles: Sequence[str]) -> dict[str, int] | None:
    """The position of each key of COLUMNS in a header, or None if one is missing."""
    plain = [re.sub(r"[^a-z0-9]", "", title.lower()) for title in titles]
    found = {}
    for key, names in COLUMNS.items():
        at = [plain.index(name) for name in names if name in plain]
        if not at:
            return None
        found[key] = at[0]
    return found
