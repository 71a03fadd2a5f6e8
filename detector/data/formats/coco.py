"""Datasets in COCO layout: one JSON file of images, categories and annotations, and a folder of images."""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from detector.data.classes import check_classes
from detector.data.dataset import DetectionDataset, Record
from detector.data.image import UPRIGHT_IMAGES, ImageOptions
from detector.errors import InputError, first_few, require_distinct
from detector.runtime.files import read_json

logger = logging.getLogger(__name__)

LARGEST_PX = 10**9  # larger than any image, and within the limits of float32 and of drawing


def read_coco(
    root: str | Path,
    json: str,
    images: str | None = None,
    drop_empty_boxes: bool = False,
    classes: Sequence[str] | None = None,
    image_options: ImageOptions = UPRIGHT_IMAGES,
) -> DetectionDataset:
    """Images with their ground truth, in the order of the JSON file.

    root / json is the annotation file, root / images the folder that its file names are relative to. `classes` are
    the labels 1..K; without them, all categories of the file, sorted by name. Image ids are those of the file, as
    strings; `category_ids` maps each category name to its id. Boxes are 0-based [x, y, width, height] in the file and
    become (x1, y1, x2, y2) with nothing added; a box with `iscrowd` 1 covers many objects. COCO itself has a few boxes
    without width or height: `drop_empty_boxes` skips them.

    Raises InputError, naming the file, the annotation id and the value, for data that is missing, invalid or
    inconsistent.
    """
    root = Path(root)
    path, folder = root / json, root / (images or "")
    content = read_content(root, path)
    category_ids = _categories(path, content["categories"])
    found = _read_images(path, folder, content["images"])
    objects = _read_annotations(path, found, category_ids, content["annotations"], drop_empty_boxes)
    _warn_of_corners(path, found, objects)
    names = {id: name for name, id in category_ids.items()}
    starts = np.searchsorted(objects[:, 0], np.arange(len(found) + 1))
    boxes, crowd = objects[:, 4:].astype(np.float32), objects[:, 2].astype(bool)
    no_difficult = np.zeros(len(objects), dtype=bool)
    records = []
    for number, record in enumerate(found):
        own = slice(starts[number], starts[number + 1])
        of_objects = tuple(names[id] for id in objects[own, 1].astype(np.int64).tolist())
        records.append(replace(
            record, names=of_objects, boxes=boxes[own], difficult=no_difficult[own], crowd=crowd[own],
            areas=objects[own, 3],
        ))  # fmt: skip
    name = f"{root.resolve().name}-{path.stem}"
    named = check_classes(path, classes or sorted(category_ids))
    return DetectionDataset(name, named, records, image_options, category_ids)


def _read_images(path: Path, folder: Path, items: list[dict]) -> list[Record]:
    """A record of each image, without its objects."""
    records = []
    for number, item in enumerate(items):
        what = f"images[{number}]"
        image_id, file = str(_get(path, what, item, "id", (int, str))), _get(path, what, item, "file_name", str)
        hw = valid_hw(item.get("height"), item.get("width"))
        records.append(Record(image_id, folder / file, path, annotated_hw=hw))
    require_distinct(path, [record.image_id for record in records])
    if not items:
        raise InputError(f"{path}: it has no images")
    return records


def _read_annotations(
    path: Path, images: list[Record], category_ids: dict[str, int], annotations: list[dict], drop_empty_boxes: bool
) -> np.ndarray:
    """The objects as rows, grouped by image: index of the image, category id, crowd, area, x1, y1, x2, y2."""
    numbers = {record.image_id: number for number, record in enumerate(images)}
    names = {id: name for name, id in category_ids.items()}
    rows, empty = [], []
    for number, item in enumerate(annotations):
        id = _get(path, f"annotations[{number}]", item, "id", (int, str))
        what = f"annotation {id}"
        image_id = str(_get(path, what, item, "image_id", (int, str)))
        if image_id not in numbers:
            raise InputError(f"{path}: {what} has the image_id {image_id}, which is not among `images`")
        category_id = _get(path, what, item, "category_id", int)
        if category_id not in names:
            raise InputError(
                f"{path}: {what} has the category_id {category_id}, which is not among `categories`: "
                f"{first_few(list(names), 20)}"
            )
        x, y, width, height = box = _box(path, what, item)
        hw = images[numbers[image_id]].annotated_hw
        if width < 0 or height < 0:
            raise InputError(f"{path}: {what} has the bbox {box} of negative size: it must be [x, y, width, height]")
        if np.float32(x + width) <= np.float32(x) or np.float32(y + height) <= np.float32(y):
            empty.append((id, box))
            continue
        if hw and (x >= hw[1] or y >= hw[0] or x + width <= 0 or y + height <= 0):
            raise InputError(
                f"{path}: {what} has the bbox {box}, which lies outside image {image_id} of {hw[1]}x{hw[0]}"
            )
        area = item.get("area")
        area = area if isinstance(area, int | float) and 0 <= area < LARGEST_PX**2 else width * height
        rows.append((numbers[image_id], category_id, item.get("iscrowd") == 1, area, x, y, x + width, y + height))
    if empty and not drop_empty_boxes:
        shown = first_few([f"annotation {id} has the bbox {box}" for id, box in empty])
        raise InputError(
            f"{path}: {len(empty)} boxes without width or height: {shown}. Remove them from the file, or "
            "skip them with data.drop_empty_boxes=true"
        )
    if empty:
        logger.info("%s: %d boxes without width or height are skipped", path, len(empty))
    rows.sort(key=lambda row: row[0])  # stable: keeps the file order within an image
    return np.array(rows, dtype=np.float64).reshape(-1, 8)


def _warn_of_corners(path: Path, images: list[Record], table: np.ndarray) -> None:
    """Log a warning if boxes seem to be given as corners: read as sizes, they extend beyond their images."""
    hws = np.array([record.annotated_hw or (np.inf, np.inf) for record in images])[table[:, 0].astype(np.int64)]
    outside = (table[:, 6] > hws[:, 1] + 2) | (table[:, 7] > hws[:, 0] + 2)
    if len(outside) and outside.mean() > 0.2:
        logger.warning(
            "%s: %d of %d boxes extend beyond their images: bbox must be [x, y, width, height], not two corners",
            path, outside.sum(), len(outside),
        )  # fmt: skip


def read_content(root: Path, path: Path) -> dict:
    """Content of a COCO annotation file. Raises InputError unless it has the three lists of objects."""
    if not root.is_dir():
        raise InputError(f"data.root: there is no folder {root} (current directory: {Path.cwd()})")
    if not path.exists():
        there = sorted(str(file.relative_to(root)) for file in [*root.glob("*.json"), *root.glob("*/*.json")])
        raise InputError(f"{path}: file not found; the .json files in {root} are {first_few(there) or 'none'}")
    content = read_json(path)
    for key in ("images", "annotations", "categories"):
        items = content.get(key) if isinstance(content, dict) else None
        if not (isinstance(items, list) and all(isinstance(item, dict) for item in items)):
            raise InputError(f"{path}: not a COCO annotation file: it has no list of objects '{key}'")
    return content


def _categories(path: Path, items: list[dict]) -> dict[str, int]:
    """Category ids by name."""
    ids = [_get(path, f"categories[{number}]", item, "id", int) for number, item in enumerate(items)]
    beyond = [id for id in ids if abs(id) > 2**53]
    if beyond:
        raise InputError(f"{path}: a category has the id {beyond[0]!s:.100}: it must fit into 53 bits")
    names = [
        normalize("NFC", _get(path, f"categories[{number}]", item, "name", str)) for number, item in enumerate(items)
    ]
    for what, values in (("id", ids), ("name", names)):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise InputError(f"{path}: two categories have the {what} {first_few(twice)}")
    return dict(zip(names, ids, strict=True))


def valid_hw(height: object, width: object) -> tuple[int, int] | None:
    """The size of an image as a file has it, or None if it is missing or not valid."""
    if not (isinstance(height, int) and isinstance(width, int)):
        return None
    return (height, width) if 0 < height < LARGEST_PX and 0 < width < LARGEST_PX else None


def _get(path: Path, what: str, item: dict, key: str, kind: type | tuple[type, ...]) -> Any:
    """item[key]. Raises InputError unless it has the type `kind`."""
    value = item.get(key)
    is_text = isinstance(value, str) and not re.search("[\ud800-\udfff]", value)  # lone surrogates
    if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, str) and not is_text):
        raise InputError(f"{path}: {what} has no valid '{key}': " + (repr(value) if key in item else "it is missing"))
    return value


def _box(path: Path, what: str, item: dict) -> list[float]:
    """The four numbers of `bbox`, checked."""
    box = _get(path, what, item, "bbox", list)
    if len(box) != 4 or not all(isinstance(value, int | float) and abs(value) < LARGEST_PX for value in box):
        raise InputError(f"{path}: {what} has the bbox {box!s:.100}: it must be four numbers, [x, y, width, height]")
    return box
