"""Plain tables, which leave the base open, and the order too where the columns have no names.

    npz  an array (P, 4), or (P, 5) with a score, for each image, named by the image's id
    csv  image_id, four coordinates and perhaps a score a line; a first line with the columns' names (x1 y1 x2 y2, in
         any order, or x y w h) states the order

We write x1 y1 x2 y2 in continuous pixels (base 0). An image without proposals does not appear in a csv.
"""

import csv
import io
import math
import zipfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from detector.errors import InputError
from detector.proposals.formats.records import ImageProposals, RawProposals, as_rows
from detector.runtime.files import ZIP_DAMAGE, open_atomically

CSV_ORDERS = {"xyxy": ("x1", "y1", "x2", "y2"), "xywh": ("x", "y", "w", "h")}
# A zip file keeps the time of writing; equal proposals shall give equal bytes.
_NO_TIME = (1980, 1, 1, 0, 0, 0)
# What a changed byte in a zip of arrays leads to: a header of an array may ask for too much, or make no sense.
_DAMAGED = (*ZIP_DAMAGE, MemoryError, OverflowError, TypeError)


def read_npz(path: Path) -> RawProposals:
    """Rows (P, 4) or (P, 5) by image id, each read when it is asked for; order and base stay open."""
    try:
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise ValueError("a single array, without image ids")
    except _DAMAGED as error:
        raise InputError(f"{path}: not a readable .npz file: {error}") from None
    return RawProposals(path, None, _NpzRows(path, content))


class _NpzRows(Mapping[str, np.ndarray]):
    def __init__(self, path: Path, content: np.lib.npyio.NpzFile) -> None:
        self._path, self._content = path, content

    def __getitem__(self, image_id: str) -> np.ndarray:
        try:
            rows = self._content[image_id]
        except _DAMAGED as error:  # or an array of objects
            raise InputError(f"{self._path}: '{image_id}' cannot be read: {error}") from None
        return as_rows(self._path, f"'{image_id}'", rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._content.files)

    def __len__(self) -> int:
        return len(self._content.files)


def write_npz(path: Path, images: Iterable[ImageProposals]) -> None:
    """Write boxes x1 y1 x2 y2 (P, 4) in continuous pixels, with the scores as a fifth column where there are any."""
    with open_atomically(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        for image in images:
            parts = [image.boxes] if image.scores is None else [image.boxes, image.scores[:, None]]
            with zipped.open(zipfile.ZipInfo(f"{image.image_id}.npy", _NO_TIME), "w") as member:
                np.lib.format.write_array(member, np.concatenate(parts, axis=1), allow_pickle=False)


def read_csv(path: Path) -> RawProposals:
    """An order that the first line states is put into the order x1 y1 x2 y2 or x y w h; the base stays open."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            first = next(lines, [])
            order, columns = _columns(path, first)
            if order is None:
                file.seek(0)
                lines = csv.reader(file)
            return RawProposals(path, None, _csv_rows(path, lines, columns), order)
    except FileNotFoundError:
        raise InputError(f"{path}: no such proposal file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable .csv file: {error}") from None


def _columns(path: Path, first: list[str]) -> tuple[str | None, list[int]]:
    """The order that the column names state, and where image id, coordinates and perhaps score stand."""
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
        raise InputError(f"{path}: {len(columns)} columns, not image_id, four coordinates and perhaps a score")
    id_column, *others = columns
    values: dict[str, array] = {}
    for number, line in enumerate(lines, start=1):
        try:
            values.setdefault(line[id_column].strip(), array("d")).extend([float(line[column]) for column in others])
        except (ValueError, IndexError):
            raise InputError(f"{path}: box {number} is not an image id and {len(others)} numbers: {line}") from None
    return {id: np.frombuffer(found).reshape(-1, len(others)) for id, found in values.items()}


def write_csv(path: Path, images: Iterable[ImageProposals]) -> None:
    """Write a line for each box, x1 y1 x2 y2 in continuous pixels, under a line with the names of the columns."""
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
    """The shortest text that gives the same float32 again."""
    return str(value).removesuffix(".0") if math.isfinite(value) else repr(float(value))


READERS: dict[str, Callable[[Path], RawProposals]] = {"npz": read_npz, "csv": read_csv}
WRITERS: dict[str, Callable[[Path, Iterable[ImageProposals]], None]] = {"npz": write_npz, "csv": write_csv}
