"""LabelMe JSON, one file for each image."""

from collections.abc import Iterator
from pathlib import Path

from detector.data.dataset import Record
from detector.data.formats.coco import LARGEST_PX, valid_hw
from detector.data.formats.folder.boxes import Boxes
from detector.data.formats.folder.tree import FileTree
from detector.data.image import ImageOptions
from detector.errors import InputError
from detector.runtime.files import read_json

MIN_POINTS = {"rectangle": 2, "polygon": 3, "circle": 2}  # of the shapes that have a bounding box


def read(tree: FileTree, _: ImageOptions) -> Iterator[Record]:
    """A record for each JSON file with `shapes`, and for each broken one that belongs to an image."""
    for path in tree.with_suffix(".json"):
        keys, image = tree.json_keys(path), tree.image_for(path)
        if path in tree.broken_json and isinstance(image, Path):
            yield Record(tree.relative(path), image, path, invalid=tree.broken_json[path])
        elif "shapes" in keys:
            content = read_json(path)
            try:
                hw = valid_hw(content.get("imageHeight"), content.get("imageWidth"))
                yield _boxes(path, content["shapes"]).record(tree.relative(path), image, path, hw)
            except InputError as error:
                yield Record(tree.relative(path), image, path, invalid=error)


def _boxes(path: Path, shapes: object) -> Boxes:
    """The bounding box of each rectangle, polygon and circle; other shapes are listed in `skipped`."""
    if not isinstance(shapes, list):
        raise InputError(f"{path}: 'shapes' is not a list: {shapes!s:.60}")
    boxes = Boxes()
    for number, shape in enumerate(shapes, start=1):
        where = f"{path}: shape {number}"
        if not isinstance(shape, dict):
            raise InputError(f"{where} is not an object: {shape!s:.60}")
        kind = shape.get("shape_type") or "polygon"  # earlier versions have polygons only
        if not isinstance(kind, str) or kind not in MIN_POINTS:
            boxes.skipped.append(f"{where} is a {kind}, which has no bounding box")
            continue
        points = _points(where, shape.get("points"), MIN_POINTS[kind])
        xs, ys = [x for x, _ in points], [y for _, y in points]
        if kind == "circle":  # its centre, and a point on it
            radius = ((xs[1] - xs[0]) ** 2 + (ys[1] - ys[0]) ** 2) ** 0.5
            xs, ys = [xs[0] - radius, xs[0] + radius], [ys[0] - radius, ys[0] + radius]
        boxes.add(where, shape.get("label"), (min(xs), min(ys), max(xs), max(ys)))
    return boxes


def _points(where: str, points: object, at_least: int) -> list[tuple[float, float]]:
    pairs = points if isinstance(points, list) else []
    valid = all(isinstance(pair, list) and len(pair) == 2 and all(map(_fits, pair)) for pair in pairs)
    if len(pairs) < at_least or not valid:
        raise InputError(f"{where} has no valid 'points', at least {at_least} pairs of numbers: {points!s:.60}")
    return [(float(x), float(y)) for x, y in pairs]


def _fits(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < LARGEST_PX
