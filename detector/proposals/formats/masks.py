"""Masks of Segment Anything, as its automatic mask generator writes them in JSON, of which the boxes are used.

A file is a list of masks, or an object with such a list as `annotations` or `masks` and, as in SA-1B, its image; the
image's id is the name of that image, else of the file. A folder has one such file for each image. One file for all
images is a list of such objects, or an object of lists of masks by image.

A mask has a `bbox` x y width height from 0. Segment Anything measures it from the first to the last pixel, one pixel
short of the mask: x + width is the last pixel. Without `bbox`, it has a `segmentation`: COCO's RLE, or polygons. The
score is `predicted_iou`, or `score`, if every mask has it; then the masks with the highest come first.
"""

import operator
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from detector.data.formats.voc import IMAGE_SUFFIXES
from detector.errors import InputError, require_distinct
from detector.proposals.formats.records import BoxFormat, RawProposals
from detector.runtime.files import read_json

BOX_FORMAT = BoxFormat("xyxy", "0-inclusive")
SCORES = ("predicted_iou", "score")
LISTS, IMAGE_KEYS = ("annotations", "masks"), ("file_name", "image", "image_id")
MAX_SHIFT = 40  # bits of a run's length in a compressed RLE


def read_masks(path: Path) -> RawProposals:
    """Corners of the first and last pixel, (P, 4) or with scores (P, 5), by image id. Raises InputError for others."""
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: a folder without .json files")
    images = [item for file in files for item in _images(file)]
    require_distinct(path, [image_id for image_id, _ in images])
    return RawProposals(path, BOX_FORMAT, dict(images))


def _images(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The image ids and rows of a file."""
    content = read_json(path, sys.maxsize)
    if isinstance(content, list) and content and _list_of(content[0]) is not None:
        named = [(_image_id(path, item), _list_of(item)) for item in content]
    elif _list_of(content) is not None:
        named = [(_image_id(path, content), _list_of(content))]
    elif isinstance(content, dict):
        named = [(_stem(name), masks) for name, masks in content.items()]
    else:
        named = [(path.stem, content)]
    for image_id, masks in named:
        if not (isinstance(masks, list) and all(isinstance(mask, dict) for mask in masks)):
            raise InputError(f"{path}: what it has for image '{image_id}' is no list of masks: {masks!s:.100}")
        yield image_id, _rows(f"{path}: image '{image_id}'", masks)


def _list_of(item: object) -> Any:
    """The list of masks in the object of an image; None for another object."""
    return next((item[key] for key in LISTS if key in item), None) if isinstance(item, dict) else None


def _image_id(path: Path, item: dict) -> str:
    """The name of the image that an object is of, else that of its file."""
    about = item["image"] if isinstance(item.get("image"), dict) else item
    names = [about[key] for key in IMAGE_KEYS if isinstance(about.get(key), str | int)]
    return _stem(str(names[0])) if names else path.stem


def _stem(name: str) -> str:
    name = name.replace("\\", "/")
    return PurePosixPath(name).stem if name.lower().endswith(IMAGE_SUFFIXES) else name


def _rows(where: str, masks: list[dict]) -> np.ndarray:
    """(P, 4), or (P, 5) with scores, best first."""
    corners = [_corners(f"{where}: mask {number}", mask) for number, mask in enumerate(masks, start=1)]
    rows = np.array(corners, dtype=np.float64).reshape(-1, 4)
    for key in SCORES:
        scores = [mask.get(key) for mask in masks]
        if masks and all(isinstance(score, int | float) for score in scores):
            order = np.argsort(-np.array(scores, dtype=np.float64), kind="stable")
            return np.column_stack([rows, np.array(scores, dtype=np.float64)])[order]
    return rows


def _corners(where: str, mask: dict) -> list[float]:
    """x1 y1 of the first pixel, x2 y2 of the last one."""
    box = mask.get("bbox")
    if box is None:
        try:
            x, y, width, height = _box_of(mask.get("segmentation")).tolist()
        except (TypeError, KeyError, ValueError, IndexError, AttributeError, OverflowError):
            raise InputError(
                f"{where} has neither a bbox nor a segmentation, COCO's RLE or polygons: {mask!s:.100}"
            ) from None
        return [x, y, x + width - 1, y + height - 1]
    if not (isinstance(box, list) and len(box) == 4 and all(isinstance(value, int | float) for value in box)):
        raise InputError(f"{where} has the bbox {box!s:.100}: it must be four numbers, [x, y, width, height]")
    x, y, width, height = map(float, box)
    return [x, y, x + width, y + height]


def _box_of(segmentation: Any) -> np.ndarray:
    """x y width height in continuous pixels of an RLE (compressed or not), or of polygons."""
    if isinstance(segmentation, list):
        points = np.array([value for polygon in segmentation for value in polygon], dtype=np.float64).reshape(-1, 2)
        low, high = points.min(axis=0), points.max(axis=0)
        return np.concatenate([low, high - low])
    height, width = map(operator.index, segmentation["size"])
    counts = segmentation["counts"]
    runs = counts if isinstance(counts, list) else _run_lengths(counts)
    if height <= 0 or width <= 0 or min(runs) < 0 or sum(runs) != height * width:
        raise ValueError
    ends = np.cumsum(np.array(runs, dtype=np.int64))
    first, last = ends[:-1:2], ends[1::2] - 1  # pixel of each run of the mask, counted down the columns
    first, last = first[first <= last], last[first <= last]
    if not len(first):
        return np.zeros(4)
    (x1, y1), (x2, y2) = divmod(first, height), divmod(last, height)
    top, bottom = (0, height - 1) if (x1 < x2).any() else (y1.min(), y2.max())  # a run over the end of a column
    return np.array([x1[0], top, x2[-1] - x1[0] + 1, bottom - top + 1])


def _run_lengths(counts: str) -> list[int]:
    """The run lengths in COCO's compressed RLE.

    A character minus 48 has five bits of a number, lowest first, and 32 if more follow. Numbers are signed, and from
    the fourth on the difference to the length of two runs before.
    """
    runs: list[int] = []
    value = shift = 0
    for code in counts.encode("ascii"):
        bits = code - 48
        if not (0 <= bits < 64 and shift < MAX_SHIFT):
            raise ValueError
        value |= (bits & 31) << shift
        shift += 5
        if bits < 32:
            value -= (bits >> 4) << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
