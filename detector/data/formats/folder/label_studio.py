"""Label Studio's own JSON export, full (JSON) or short (JSON-MIN): a list of tasks, one for each image."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from detector.data.dataset import Record
from detector.data.formats.coco import valid_hw
from detector.data.formats.folder.boxes import Boxes, checked_numbers
from detector.data.formats.folder.tree import FileTree
from detector.data.formats.voc import IMAGE_SUFFIXES
from detector.data.image import ImageOptions
from detector.errors import InputError
from detector.runtime.files import read_json

UPLOAD_PREFIX = r"[0-9a-f]{8}-(?=.)"  # that Label Studio puts before the name of an uploaded file
LABELS = ("rectanglelabels", "polygonlabels", "ellipselabels", "labels")  # keys of the class, by tool


def read(tree: FileTree, _: ImageOptions) -> Iterator[Record]:
    """A record for each task with an annotation that was not cancelled."""
    for path in tree.with_suffix(".json"):
        keys = tree.json_item_keys(path)
        if {"annotations", "data"} <= keys or {"annotation_id", "annotator"} <= keys:
            for number, task in enumerate(read_json(path), start=1):
                if not isinstance(task, dict):
                    raise InputError(f"{path}: task {number} is not an object: {task!s:.60}")
                if record := _record(tree, path, f"task {task.get('id', number)}", task):
                    yield record


def _record(tree: FileTree, path: Path, what: str, task: dict) -> Record | None:
    """The record of a task, or None for one that is not annotated."""
    name = _image_name(task["data"] if isinstance(task.get("data"), dict) else task)
    if name is None:
        return Record(what, InputError(f"{path}: {what} names no image"), path)
    image = tree.image_named(name, path)
    if isinstance(image, InputError):
        image = tree.image_named(re.sub(UPLOAD_PREFIX, "", name.rpartition("/")[2]), path)
    try:
        shapes = _shapes(path, what, task)
        return (
            None if shapes is None else _boxes(f"{path}: {what}", shapes).record(name, image, path, _image_hw(shapes))
        )
    except InputError as error:
        return Record(name, image, path, invalid=error)


def _image_name(data: dict) -> str | None:
    """The path in the first address of an image: of an upload, of a bucket, or of local files (`?d=path`)."""
    for value in data.values():
        if isinstance(value, str):
            try:
                address = urlsplit(value)
            except ValueError:
                continue
            name = unquote(parse_qs(address.query).get("d", [address.path])[0])
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                return name
    return None


def _shapes(path: Path, what: str, task: dict) -> list[dict] | None:
    """The results of the annotation as they are in JSON-MIN: values with the size of the image. None: not annotated."""
    if "annotations" not in task:
        lists = [value for value in task.values() if isinstance(value, list)]
        return [item for items in lists for item in items if isinstance(item, dict) and "original_width" in item]
    done = task["annotations"]
    if not (isinstance(done, list) and all(isinstance(item, dict) for item in done)):
        raise InputError(f"{path}: {what}: 'annotations' is not a list of objects: {done!s:.60}")
    done = [item for item in done if not item.get("was_cancelled")]
    done = [item for item in done if item.get("ground_truth")] or done
    if len(done) > 1:
        raise InputError(f"{path}: {what} has {len(done)} annotations: keep one, or mark one as the ground truth")
    if not done:
        return None
    results = done[0].get("result")
    if not (isinstance(results, list) and all(isinstance(item, dict) for item in results)):
        raise InputError(f"{path}: {what}: 'result' is not a list of objects: {results!s:.60}")
    sized = [item for item in results if "original_width" in item and isinstance(item.get("value"), dict)]
    return [item | item["value"] for item in sized]  # others are choices or texts for the image


def _boxes(where: str, shapes: list[dict]) -> Boxes:
    """The bounding box of each labelled shape; those without are listed in `skipped`. Positions are percentages."""
    boxes = Boxes()
    for number, shape in enumerate(shapes, start=1):
        what = f"{where}: shape {number}"
        tool = next((key for key in shape if key in LABELS or key.endswith("labels")), None)
        if tool is None:
            continue  # a box of two results, of which the other one has the class
        if tool not in LABELS or shape.get("rotation"):
            boxes.skipped.append(f"{what} is {'rotated' if tool in LABELS else tool}, which has no bounding box")
            continue
        labels = shape[tool] if isinstance(shape[tool], list) else []
        width, height = checked_numbers(what, [shape.get("original_width"), shape.get("original_height")])
        x1, y1, x2, y2 = _corners(what, shape)
        corners = [round(value, 2) for value in (x1 * width, y1 * height, x2 * width, y2 * height)]
        boxes.add(what, labels[0] if labels else None, corners)
    return boxes


def _corners(what: str, shape: dict) -> tuple[float, float, float, float]:
    """x1 y1 x2 y2 as fractions of the image."""
    if "points" in shape:
        points = shape["points"]
        if not (isinstance(points, list) and points and all(isinstance(at, list) and len(at) == 2 for at in points)):
            raise InputError(f"{what} has no valid 'points', pairs of numbers: {points!s:.60}")
        xs, ys = checked_numbers(what, [x for x, _ in points]), checked_numbers(what, [y for _, y in points])
        return min(xs) / 100, min(ys) / 100, max(xs) / 100, max(ys) / 100
    if "radiusX" in shape:
        x, y, a, b = checked_numbers(what, [shape.get(key) for key in ("x", "y", "radiusX", "radiusY")])
        return (x - a) / 100, (y - b) / 100, (x + a) / 100, (y + b) / 100
    x, y, w, h = checked_numbers(what, [shape.get(key) for key in ("x", "y", "width", "height")])
    return x / 100, y / 100, (x + w) / 100, (y + h) / 100


def _image_hw(shapes: list[dict]) -> tuple[int, int] | None:
    sizes = (valid_hw(shape.get("original_height"), shape.get("original_width")) for shape in shapes)
    return next(filter(None, sizes), None)
