"""Splits that a folder has: lists of images, a data.yaml, or the names of folders and annotation files."""

import re
from collections.abc import Container, Sequence
from pathlib import Path

from detector.data.dataset import Record
from detector.data.formats.folder.boxes import read_lines
from detector.data.formats.folder.tree import SPLITS, FileTree
from detector.data.formats.folder.yolo import read_data_yaml
from detector.data.formats.voc import read_split
from detector.errors import InputError

# Words that the name of a split's folder or file can have beside it: obj_train_data, instances_val2017.json.
OTHER_WORDS = {
    "", "obj", "data", "dataset", "set", "images", "image", "imgs", "img", "labels", "label", "annotations",
    "annotation", "instances", "coco", "boxes",
}  # fmt: skip


def find_splits(tree: FileTree, records: Sequence[Record]) -> tuple[dict[str, list[int]], str]:
    """The indices of the records of each split, named as in SPLITS, and where they come from; none: {}.

    Lists come first, then data.yaml, then names, which also give the splits that data.yaml lacks. Lists may share
    images, as VOC's trainval and train do. Raises InputError for a list that names an image which is not there.
    """
    index = {record.image: number for number, record in enumerate(records) if isinstance(record.image, Path)}
    for find, source in ((_lists, "lists"), (_yaml, "data.yaml")):
        images = find(tree, index)
        found = {split: [index[image] for image in of_split if image in index] for split, of_split in images.items()}
        found = {split: numbers for split, numbers in found.items() if numbers}
        if found and source == "lists":
            return found, source
    listed = {number for numbers in found.values() for number in numbers}
    by_name: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        if number not in listed and (split := _split_of(tree, record)) and split not in found:
            by_name.setdefault(split, []).append(number)
    return found | by_name, source if found else "folder and file names"


def _lists(tree: FileTree, annotated: Container[Path]) -> dict[str, list[Path]]:
    """Images of ImageSets/Main/SPLIT.txt below the root, or of SPLIT.txt in the root."""
    found: dict[str, list[Path]] = {}
    if len(roots := sorted({path.parents[2] for path in tree.with_suffix(".txt") if _is_voc(path)})) > 1:
        parts = ", ".join(f"{{root: {tree.relative(root)}}}" for root in roots[:5])
        raise InputError(
            f"{tree.root}: has {len(roots)} datasets in VOC layout, each with its own lists: name one as data.root, or "
            f"join them with data=joined data.root={tree.root} 'data.parts=[{parts}]'"
        )
    for path in tree.with_suffix(".txt"):
        split = SPLITS.get(path.stem.lower())
        if split and (_is_voc(path) or path.parent == tree.root):
            lines = read_split(path.parents[2], path.stem) if _is_voc(path) else read_lines(path)
            found.setdefault(split, []).extend(_named(tree, annotated, path, lines))
    return found


def _is_voc(path: Path) -> bool:
    """Whether a file is a list of VOC layout."""
    return path.parent.name == "Main" and path.parent.parent.name == "ImageSets"


def _named(tree: FileTree, annotated: Container[Path], path: Path, lines: Sequence[str]) -> list[Path]:
    """The annotated images that a list names; none if it names no image at all, so that it is not such a list."""
    images, missing = [], []
    for line in lines:
        image = tree.image_named(line, path, annotated)
        if isinstance(image, Path):
            images.append(image)
        elif isinstance(tree.image_named(line, path), InputError):
            missing.append(image)
    if images and missing:
        raise InputError(f"{missing[0]}; a list of a split names it")
    return [*dict.fromkeys(images)]


def _yaml(tree: FileTree, annotated: Container[Path]) -> dict[str, list[Path]]:
    """Images of `train`, `val` and `test` of a data.yaml: folders or lists, often with paths of another machine."""
    found: dict[str, list[Path]] = {}
    for path in tree.files:
        content = read_data_yaml(path) or {}
        for key in sorted(content.keys() & SPLITS.keys()):
            entries = content[key] if isinstance(content[key], list) else [content[key]]
            for entry in entries:
                for place in _places(path.parent, content.get("path"), entry):
                    if place.is_dir():
                        inside = [image for image in tree.images if place in image.parents]
                    else:
                        inside = _named(tree, annotated, place, read_lines(place)) if place in tree.files else []
                    if inside:
                        found.setdefault(SPLITS[key], []).extend(inside)
                        break
    return {split: [*dict.fromkeys(images)] for split, images in found.items()}


def _places(folder: Path, base: object, entry: object) -> list[Path]:
    """Where a path of a data.yaml can be: below its `path`, beside the file, or there without a leading `../`."""
    if not isinstance(entry, str) or not isinstance(base, str | None):
        return []
    relative = re.sub(r"^(\.\.?/)+", "", entry.replace("\\", "/"))
    return [folder / (base or "") / relative, folder / relative]


def _split_of(tree: FileTree, record: Record) -> str | None:
    """The split by a folder of the image, else by a folder or the name of the annotation file."""
    parts: list[str] = []
    if isinstance(record.image, Path):
        parts += record.image.relative_to(tree.root).parts[:-1]
    annotation = record.annotation.relative_to(tree.root)
    parts += annotation.parts[:-1]
    if annotation.suffix.lower() in (".json", ".csv"):
        parts.append(annotation.stem)
    return next((split for part in parts if (split := _split_in(part))), None)


def _split_in(name: str) -> str | None:
    """The split in a name such as `valid`, `train2017` or `obj_train_data`; None for `trainers` and `test car`."""
    words = re.split(r"[^a-z]+", name.lower())
    found = [SPLITS[word] for word in words if word in SPLITS]
    return found[0] if len(found) == 1 and {*words} <= {*SPLITS, *OTHER_WORDS} else None
