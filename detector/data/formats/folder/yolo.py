"""YOLO text, one file for each image: the class and a box as fractions of the image in each line."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from detector.data.dataset import Record
from detector.data.formats.folder.boxes import Boxes, read_lines, read_text
from detector.data.formats.folder.tree import FileTree
from detector.data.image import ImageOptions, read_image_hw
from detector.errors import InputError, first_few
from detector.runtime.files import reading

NUMBER = r"-?[\d.]+(e[+-]?\d+)?"
LINE = re.compile(rf"\d+(\.0*)?(e\+?0+)?(\s+{NUMBER}){{4,}}\s*", re.IGNORECASE)  # numpy writes 0 as 0.000e+00
MAX_YAML_BYTES = 1_000_000
NAME_FILES = ("classes.txt", "predefined_classes.txt", "obj.names", "_darknet.labels")


def read(tree: FileTree, options: ImageOptions) -> Iterator[Record]:
    """A record for each text file with boxes and, if there are any, for those of other images. Empty: no objects."""
    files = [path for path in tree.with_suffix(".txt") if path.name.lower() not in NAME_FILES]
    images, lines = {path: tree.image_for(path) for path in files}, {path: _lines(path) for path in files}
    with_boxes = {path for path, of_file in lines.items() if _has_boxes(of_file)}
    if not with_boxes:
        return  # captions, or lists
    sources, keypoints = _class_names(tree), _keypoints(tree)
    for path, of_file in lines.items():
        image = images[path]
        if isinstance(image, InputError):
            if path in with_boxes:
                yield Record(tree.relative(path), image, path)
            continue
        names = _nearest(path, sources, tree.root)
        try:
            if isinstance(of_file, InputError):
                raise of_file
            boxes = _boxes(path, of_file, names, read_image_hw(image, options), keypoints)
            yield boxes.record(tree.relative(path), image, path)
        except InputError as error:
            yield Record(tree.relative(path), image, path, invalid=error)


def _lines(path: Path) -> list[str] | InputError:
    try:
        return read_lines(path)
    except InputError as error:
        return error


def _has_boxes(lines: list[str] | InputError) -> bool:
    return isinstance(lines, list) and bool(lines) and LINE.fullmatch(lines[0]) is not None


def _boxes(path: Path, lines: list[str], names: Sequence[str], image_hw: tuple[int, int], keypoints: set[int]) -> Boxes:
    """`class x y width height`, with the centre of the box, or `class x1 y1 x2 y2 ...`, a polygon.

    With as many numbers more as in `keypoints`, these follow the box.
    """
    boxes, (height, width) = Boxes(), image_hw
    for number, line in enumerate(lines, start=1):
        where = f"{path}: object {number}"
        try:
            index, *values = (float(value) for value in line.split())
        except ValueError:
            raise InputError(f"{where} is not `class x y width height`: {line!r:.60}") from None
        if len(values) - 4 in keypoints:
            values = values[:4]
        if not (len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0)):
            raise InputError(f"{where} has {len(values)} numbers after the class, not `x y width height`: {line!r:.60}")
        if not all(-0.01 <= value <= 1.01 for value in values):
            raise InputError(f"{where} has values that are not fractions of the image, from 0 to 1: {line!r:.60}")
        if index not in range(len(names)):
            raise InputError(f"{where} has class {index:g}, and {len(names)} classes have names: {first_few([*names])}")
        xs, ys = values[0::2], values[1::2]
        if len(values) == 4:
            (x, w), (y, h) = xs, ys
            if w < 0 or h < 0:
                raise InputError(f"{where} has a negative size: {line!r:.60}")
            xs, ys = [x - w / 2, x + w / 2], [y - h / 2, y + h / 2]
        corners = (min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height)
        boxes.add(where, names[int(index)], [round(value, 2) + 0.0 for value in corners])  # few decimals in the file
    return boxes


def _nearest(label: Path, sources: dict[Path, tuple[str, ...]], root: Path) -> tuple[str, ...]:
    """The class names for a label file: those in its folder, else in the nearest folder above, else the only ones."""
    for folder in label.parents:
        if folder in sources:
            return sources[folder]
        if folder == root:
            break
    distinct = {*sources.values()}
    if len(distinct) == 1:
        return distinct.pop()
    there = f"of {first_few(sorted(map(str, sources)))} none is above it" if sources else "there is none"
    raise InputError(
        f"{label}: YOLO text has class numbers, whose names are in classes.txt (one name on each line) or data.yaml "
        f"(names: [...]), and {there}: put classes.txt into {root}, or, if data.yaml is in a folder above, name that "
        "as data.root"
    )


def _class_names(tree: FileTree) -> dict[Path, tuple[str, ...]]:
    """The class names that a folder has, by folder. Raises InputError for two different lists in one folder."""
    found: dict[Path, tuple[str, ...]] = {}
    for path in tree.files:
        if path.name.lower() in NAME_FILES:
            names = tuple(read_lines(path))
        elif content := read_data_yaml(path):
            names = _yaml_names(path, content["names"])
        else:
            continue
        if found.setdefault(path.parent, names) != names:
            raise InputError(f"{path}: names {first_few([*names])}, but another file in its folder names "
                             f"{first_few([*found[path.parent]])}: keep the right one")  # fmt: skip
    return found


def _keypoints(tree: FileTree) -> set[int]:
    """How many numbers of keypoints follow a box: the products of `kpt_shape` in the data.yaml files of poses."""
    shapes = [(read_data_yaml(path) or {}).get("kpt_shape") for path in tree.files]
    return {a * b for a, b in (shape for shape in shapes if isinstance(shape, list) and len(shape) == 2)
            if isinstance(a, int) and isinstance(b, int)}  # fmt: skip


def read_data_yaml(path: Path) -> dict | None:
    """The content of a data.yaml, which has `names`; None for another file. Raises InputError for broken YAML."""
    if path.suffix.lower() not in (".yaml", ".yml") or path.stat().st_size > MAX_YAML_BYTES:
        return None
    text = read_text(path)
    if not re.search(r"^names\s*:", text, re.MULTILINE):
        return None
    with reading(path, "broken YAML"):
        content = yaml.safe_load(text)
    return content if isinstance(content, dict) and "names" in content else None


def _yaml_names(path: Path, names: object) -> tuple[str, ...]:
    if isinstance(names, dict) and {*map(str, names)} == {*map(str, range(len(names)))}:
        names = [names[key] for key in sorted(names, key=int)]
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        raise InputError(f"{path}: 'names' is neither a list of names nor a map from 0, 1, 2 ... to names")
    return tuple(str(name) for name in names)
