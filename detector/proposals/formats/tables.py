"""Plain tables, which do not state the pixel origin, nor the order unless the columns have names.

    npz  one array per image, (P, 4), or (P, 5) with a score, named by the image id
    csv  image_id, four coordinates and an optional score per line; a header line with the column names (x1 y1 x2 y2,
         in any order, or x y w h) states the order

Files are written as x1 y1 x2 y2 in continuous pixels (pixel origin 0). Images without proposals are not in a csv.
"""

import csv
import io
import math
import sys
import zipfile
from array import array
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from detector.errors import InputError
from detector.proposals.formats.records import ImageProposals, LazyRows, RawProposals, as_rows
from detector.runtime.files import open_atomically, reading

CSV_ORDERS = {"xyxy": ("x1", "y1", "x2", "y2"), "xywh": ("x", "y", "w", "h")}
MAX_ARRAY_BYTES = 2**28  # of an image in a .npz; a few MB of zeros can unpack to any size
# A zip file stores the time of writing; equal proposals must give bitwise identical files.
_NO_TIME = (1980, 1, 1, 0, 0, 0)


def read_npz(path: Path) -> RawProposals:
    """Rows (P, 4) or (P, 5) by image id, each read on access; order and pixel origin are not stated."""
    with reading(path, "not a readable .npz file", sys.maxsize):
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise ValueError("a single array, without image ids")
        for item in content.zip.infolist() if content.zip else []:
            if item.file_size > MAX_ARRAY_BYTES:
                content.close()
                raise ValueError(
                    f"{item.filename} unpacks to {item.file_size} bytes; the limit is {MAX_ARRAY_BYTES}: store fewer "
                    "boxes of this image"
                )
    return RawProposals(path, None, LazyRows(dict.fromkeys(content.files), partial(_read_array, path, content)))


def _read_array(path: Path, content: np.lib.npyio.NpzFile, image_id: str) -> np.ndarray:
    with reading(path, f"'{image_id}' cannot be read", sys.maxsize):  # such as an array of objects
        rows = content[image_id]
    return as_rows(path, f"'{image_id}'", rows)


def write_npz(path: Path, images: Iterable[ImageProposals]) -> None:
    """Write boxes x1 y1 x2 y2 (P, 4) in continuous pixels, with a fifth column for the scores, if any."""
    with open_atomically(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        for image in images:
            parts = [image.boxes] if image.scores is None else [image.boxes, image.scores[:, None]]
            with zipped.open(zipfile.ZipInfo(f"{image.image_id}.npy", _NO_TIME), "w") as member:
                np.lib.format.write_array(member, np.concatenate(parts, axis=1), allow_pickle=False)


def read_csv(path: Path) -> RawProposals:
    """Columns with names are reordered to x1 y1 x2 y2 or x y w h; the pixel origin is not stated."""
    with reading(path, "not a readable .csv file", sys.maxsize), open(path, newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        first = next(lines, [])
        order, columns = _columns(path, first)
        if order is None:
            file.seek(0)
            lines = csv.reader(file)
        return RawProposals(path, None, _csv_rows(path, lines, columns), order)


def _columns(path: Path, first: list[str]) -> tuple[str | None, list[int]]:
    """The order stated by the column names, and the column indices of image id, coordinates and score (if any)."""
    names = [name.strip().lower() for name in first]
    if "image_id" not in names:
        return None, list(range(len(first)))
    for order, wanted in CSV_ORDERS.items():
        if set(wanted) <= set(names):
            found = ["image_id", *wanted, *(["score"] if "score" in names else [])]
            return order, [names.index(name) for name in found]
    raise InputError(
        f"{path}: the columns {', '.join(names)} have neither x1, y1, x2, y2 nor x, y, w, h beside image_id"
    )


def _csv_rows(path: Path, lines: Iterable[list[str]], columns: list[int]) -> dict[str, np.ndarray]:
    if len(columns) not in (5, 6):
        raise InputError(f"{path}: {len(columns)} columns, not image_id, four coordinates and an optional score")
    id_column, *others = columns
    values: dict[str, array] = {}
    for number, line in enumerate(lines, start=1):
        try:
            values.setdefault(line[id_column].strip(), array("d")).extend([float(line[column]) for column in others])
        except (ValueError, IndexError):
            raise InputError(f"{path}: box {number} is not an image id and {len(others)} numbers: {line}") from None
    return {id: np.frombuffer(found).reshape(-1, len(others)) for id, found in values.items()}


def write_csv(path: Path, images: Iterable[ImageProposals]) -> None:
    """Write one line per box, x1 y1 x2 y2 in continuous pixels, below a header line with the column names."""
    with open_atomically(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        lines = csv.writer(text, lineterminator="\n")
        begun = False
        for image in images:
            if not begun and len(image.boxes):
                begun = True
                lines.writerow(["image_id", *CSV_ORDERS["xyxy"], *(["score"] if image.scores is not None else [])])
            scores = [[]] * len(image.boxes) if image.scores is None else [[_text(value)] for value in image.scores]
            for box, score in zip(image.boxes, scores, strict=True):
                lines.writerow([image.image_id, *map(_text, box), *score])
        text.detach()


def _text(value: np.float32) -> str:
    """The shortest string that parses to the same float32."""
    return str(value).removesuffix(".0") if math.isfinite(value) else repr(float(value))


READERS: dict[str, Callable[[Path], RawProposals]] = {"npz": read_npz, "csv": read_csv}
WRITERS: dict[str, Callable[[Path, Iterable[ImageProposals]], None]] = {"npz": write_npz, "csv": write_csv}
