"""Splits that a folder has: lists of images, a data.yaml, or the names of folders and annotation files.

For a folder without any, a new split: stratified by class, with copies and near-copies of an image on one side.
"""

import re
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np

from detector.data.dataset import Record
from detector.data.formats.folder.boxes import read_text
from detector.data.formats.folder.tree import SPLITS, FileTree
from detector.data.formats.folder.yolo import read_data_yaml
from detector.data.formats.voc import read_split
from detector.data.image import ImageOptions, read_image_hw, read_thumbnail
from detector.errors import InputError
from detector.runtime.files import digest_of
from detector.runtime.ranks import cores
from detector.runtime.threads import thread_pool

# Words that the name of a split's folder or file can have beside it: obj_train_data, instances_val2017.json.
OTHER_WORDS = {
    "", "obj", "data", "dataset", "set", "images", "image", "imgs", "img", "labels", "label", "annotations",
    "annotation", "instances", "coco", "boxes",
}  # fmt: skip

SIDE_PX = 16  # of the thumbnails that are compared
LENGTH = SIDE_PX * SIDE_PX * 3
MIN_CORRELATION = 0.98  # of the thumbnails of near-copies
_thumbnails: dict[str, np.ndarray] = {}  # by digest of the file: a dataset is read for each part


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
            lines = read_split(path.parents[2], path.stem) if _is_voc(path) else _lines(path)
            found.setdefault(split, []).extend(_named(tree, annotated, path, lines))
    return found


def _is_voc(path: Path) -> bool:
    """Whether a file is a list of VOC layout."""
    return path.parent.name == "Main" and path.parent.parent.name == "ImageSets"


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


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
                        inside = _named(tree, annotated, place, _lines(place)) if place in tree.files else []
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


def make_split(
    records: Sequence[Record], shares: Sequence[float], part: int, seed: int, options: ImageOptions
) -> tuple[list[int], list[int], int]:
    """Divide the records into parts of these shares, of which the one of index `part` is val and the others train.

    Returns the indices of train and val, and how many images have a near-copy. The result depends only on the images,
    classes, shares and seed. Scoring needs every image and object, so records that cannot be used go to train, which
    can skip them. Raises InputError if there are too few images.
    """
    with thread_pool(cores()) as pool:
        thumbnails = [*pool.map(lambda record: _thumbnail(record, options), records)]
    usable = [number for number, thumbnail in enumerate(thumbnails) if thumbnail is not None]
    if len(usable) < 2:
        usable = [*range(len(records))]  # a fault of all, which the validation explains
    groups = near_copies([records[number] for number in usable], [thumbnails[number] for number in usable])
    groups = [[usable[number] for number in group] for group in groups]
    chosen = stratify(groups, [{*record.names} or {""} for record in records], shares, seed)
    val = sorted(number for group, own in zip(groups, chosen, strict=True) if own == part for number in group)
    train = sorted({*range(len(records))} - {*val})
    if not (train and val):
        raise InputError(
            f"only {len(groups)} of {len(records)} images are distinct, too few for a split: make folders train/ and "
            "val/, or give data.val_fraction"
        )
    return train, val, sum(len(group) for group in groups if len(group) > 1)


def near_copies(records: Sequence[Record], thumbnails: Sequence[np.ndarray | None]) -> list[list[int]]:
    """Groups of the records, in order, that are copies of one image or, by Roboflow's file names, augmented from one.

    Re-encoded and resized copies are found, and those with another brightness; mirrored and cropped ones are not.
    """
    from scipy.sparse import coo_array  # here, as the import is slow and few datasets need it
    from scipy.sparse.csgraph import connected_components

    pairs: list[tuple[int, int]] = []
    sources: dict[str, int] = {}
    for number, record in enumerate(records):
        if isinstance(record.image, Path) and record.image.is_file():
            source, _, augmented = record.image.name.partition(".rf.")
            for key in (digest_of(record.image), *([source] if augmented else [])):
                pairs.append((number, sources.setdefault(key, number)))
    vectors = np.stack([np.zeros(LENGTH, np.float32) if item is None else item for item in thumbnails])
    for start in range(0, len(vectors), 1024):  # limits the memory
        close = np.argwhere(vectors[start : start + 1024] @ vectors.T > MIN_CORRELATION)
        pairs += [(start + one, other) for one, other in close.tolist()]
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(records), len(records)))
    groups: dict[int, list[int]] = {}
    for number, group in enumerate(connected_components(graph, directed=False)[1].tolist()):
        groups.setdefault(group, []).append(number)
    return [*groups.values()]


def stratify(
    groups: Sequence[Sequence[int]], labels: Sequence[set[str]], shares: Sequence[float], seed: int
) -> list[int]:
    """The part of each group of images, so that each part has its share of the images of every label.

    Greedy, from the rarest label on (Sechidis et al. 2011, "On the stratification of multi-label data"): a group goes
    to the part that lacks most images of that label.
    """
    counts = [Counter(label for number in group for label in labels[number]) for group in groups]
    totals = sum(counts, Counter[str]())
    lacking = [{label: share * count for label, count in totals.items()} for share in shares]
    capacity = [share * sum(map(len, groups)) for share in shares]
    chosen = [0] * len(groups)
    left = np.random.default_rng(seed).permutation(len(groups)).tolist()
    while left:
        there = sum((counts[group] for group in left), Counter[str]())
        label = min(there, key=lambda label: (there[label], label))
        for group in [group for group in left if label in counts[group]]:
            part = max(range(len(shares)), key=lambda part: (lacking[part][label], capacity[part], -part))
            chosen[group] = part
            capacity[part] -= len(groups[group])
            for own, count in counts[group].items():
                lacking[part][own] -= count
        left = [group for group in left if label not in counts[group]]
    return chosen


def _thumbnail(record: Record, options: ImageOptions) -> np.ndarray | None:
    """(N,) a small image, each colour with mean 0, of norm 1; None if the image or an object of it cannot be used."""
    if isinstance(record.image, InputError) or record.invalid or record.skipped:
        return None
    try:
        height, width = hw = read_image_hw(record.image, options)
        digest = digest_of(record.image)
        if digest not in _thumbnails:
            pixels = read_thumbnail(record.image, SIDE_PX, options).astype(np.float32)
            pixels = (pixels - pixels.mean(axis=(0, 1))).ravel()
            _thumbnails[digest] = pixels / max(float(np.linalg.norm(pixels)), 1.0)  # nothing of an even image
    except InputError:
        return None
    x1, y1, x2, y2 = record.boxes.T
    outside = (x2 <= 0) | (y2 <= 0) | (x1 >= width) | (y1 >= height)
    return None if record.annotated_hw not in (None, hw) or outside.any() else _thumbnails[digest]
