"""CreateML JSON, which labelImg and Roboflow write too: a list of images with their boxes by centre and size."""

from collections.abc import Iterator
from pathlib import Path

from detector.data.dataset import Record
from detector.data.formats.folder.boxes import Boxes, checked_numbers
from detector.data.formats.folder.tree import FileTree
from detector.data.image import ImageOptions
from detector.errors import InputError
from detector.runtime.files import read_json

NAME_KEYS = ("image", "imagefilename")
BOX_KEYS = ("x", "y", "width", "height")  # x y is the centre, in pixels


def read(tree: FileTree, _: ImageOptions) -> Iterator[Record]:
    """A record for each image of the files."""
    for path in tree.with_suffix(".json"):
        keys = tree.json_item_keys(path)
        if "annotations" in keys and keys & {*NAME_KEYS}:
            for number, item in enumerate(read_json(path), start=1):
                yield _record(tree, path, number, item)


def _record(tree: FileTree, path: Path, number: int, item: object) -> Record:
    content = item if isinstance(item, dict) else {}
    name = next((content[key] for key in NAME_KEYS if isinstance(content.get(key), str) and content[key]), None)
    if name is None:
        raise InputError(f"{path}: entry {number} names no image: {item!s:.60}")
    image = tree.image_named(name, path)
    try:
        return _boxes(f"{path}: {name}", content.get("annotations")).record(name, image, path)
    except InputError as error:
        return Record(name, image, path, invalid=error)


def _boxes(where: str, objects: object) -> Boxes:
    if not isinstance(objects, list):
        raise InputError(f"{where}: 'annotations' is not a list: {objects!s:.60}")
    boxes = Boxes()
    for number, item in enumerate(objects, start=1):
        content = item if isinstance(item, dict) else {}
        at = content["coordinates"] if isinstance(content.get("coordinates"), dict) else {}
        if not at.keys() >= {*BOX_KEYS}:
            raise InputError(f"{where}: object {number} has no 'coordinates' x, y, width, height: {item!s:.60}")
        x, y, w, h = checked_numbers(f"{where}: object {number}", [at[key] for key in BOX_KEYS])
        if w < 0 or h < 0:
            raise InputError(f"{where}: object {number} has a negative size: {item!s:.60}")
        boxes.add(f"{where}: object {number}", content.get("label"), [x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return boxes
