"""CVAT's own XML ("CVAT for images"), one file for many images."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from detector.data.dataset import Record
from detector.data.formats.folder.boxes import Boxes
from detector.data.formats.folder.tree import FileTree
from detector.data.formats.safe_xml import parse_xml
from detector.data.image import ImageOptions
from detector.errors import InputError

MAX_BYTES = 200_000_000
CORNERS = ("xtl", "ytl", "xbr", "ybr")
TAGS = ("tag", "attribute")  # of the image as a whole


def read(tree: FileTree, _: ImageOptions) -> Iterator[Record]:
    """A record for each image of the files; polygons become their bounding boxes, other shapes are listed."""
    for path in tree.with_suffix(".xml"):
        for item in _images(path):
            name = item.get("name", "")
            image = tree.image_named(name, path)
            try:
                yield _boxes(path, name, item).record(name, image, path, _image_hw(item))
            except InputError as error:
                yield Record(name, image, path, invalid=error)


def _images(path: Path) -> list[Element]:
    """The <image> elements of a file; none for XML of another kind. Raises InputError for broken XML."""
    with open(path, "rb") as file:
        if b"<annotations" not in file.read(1000).replace(b"\0", b""):  # UTF-16 has zeros
            return []
    return parse_xml(path, MAX_BYTES).findall("image")


def _boxes(path: Path, name: str, item: Element) -> Boxes:
    boxes = Boxes()
    for number, shape in enumerate((shape for shape in item if shape.tag not in TAGS), start=1):
        where = f"{path}: image '{name}': shape {number}"
        if shape.tag == "box" and _rotation(where, shape) == 0:
            boxes.add(where, shape.get("label"), _numbers(where, [shape.get(key) for key in CORNERS]))
        elif shape.tag == "polygon":
            points = _numbers(where, (shape.get("points") or "").replace(";", ",").split(","))
            xs, ys = points[0::2], points[1::2]
            boxes.add(where, shape.get("label"), (min(xs), min(ys), max(xs), max(ys)))
        else:
            boxes.skipped.append(f"{where} is a {'rotated ' if shape.tag == 'box' else ''}{shape.tag}, not a box")
    return boxes


def _rotation(where: str, shape: Element) -> float:
    text = shape.get("rotation") or "0"
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{where} has a rotation that is not a number: {text!r:.60}") from None


def _numbers(where: str, texts: list) -> list[float]:
    try:
        found = [float(text) for text in texts]
    except (TypeError, ValueError):
        found = []
    if len(found) < 4 or len(found) % 2:
        raise InputError(f"{where} has no valid coordinates: {texts!s:.60}")
    return found


def _image_hw(item: Element) -> tuple[int, int] | None:
    height, width = item.get("height", ""), item.get("width", "")
    return (int(height), int(width)) if height.isdecimal() and width.isdecimal() and int(height) * int(width) else None
