"""Read a folder of annotated images: find its format and its splits, or make a split, and say so."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from detector.data.classes import check_classes
from detector.data.dataset import DetectionDataset, Record
from detector.data.formats.folder import coco_and_voc, createml, csv_boxes, cvat_xml, label_studio, labelme, yolo
from detector.data.formats.folder.coco_and_voc import CHOOSE_COCO
from detector.data.formats.folder.new_split import make_split
from detector.data.formats.folder.splits import find_splits
from detector.data.formats.folder.tree import ANNOTATION_SUFFIXES, FileTree
from detector.data.image import UPRIGHT_IMAGES, ImageOptions
from detector.errors import InputError, first_few

logger = logging.getLogger(__name__)

# data.format: what it is called in messages, and the function that reads all of its files.
FORMATS: dict[str, tuple[str, Callable[[FileTree, ImageOptions], Iterator[Record]]]] = {
    "voc": ("VOC XML", coco_and_voc.read_voc_xml),
    "yolo": ("YOLO text", yolo.read),
    "coco": ("COCO JSON", coco_and_voc.read_coco_json),
    "labelme": ("LabelMe JSON", labelme.read),
    "label_studio": ("Label Studio JSON", label_studio.read),
    "createml": ("CreateML JSON", createml.read),
    "cvat": ("CVAT XML", cvat_xml.read),
    "csv": ("CSV", csv_boxes.read),
}
# The splits that the parts of a run are, the first that a folder has.
CHOICES = {"train": ("train", "trainval"), "val": ("val", "test")}
ALL = "all"
VAL_FRACTION = 0.2  # of a split that is made
SAME_PX = 2.0  # formats count pixels from 0 or 1


def read_folder(
    root: str | Path,
    split: str,
    format: str | None = None,
    val_fraction: float | None = None,
    fold: str | None = None,
    split_seed: int = 0,
    classes: Sequence[str] | None = None,
    image_options: ImageOptions = UPRIGHT_IMAGES,
) -> DetectionDataset:
    """Annotated images below a folder, in any of FORMATS. The log says what is found and used.

    `split` is train or val, another split that the folder has (test), or `all` images. Without splits, and always with
    `val_fraction` or `fold` (`2/5`: the second of five parts is val), train and val are made from all images outside
    of test: a function of the images, their classes, these arguments and `split_seed`. An image without annotation is
    not used. An annotation without its image is kept in a record without one. An image id is the file's name without
    suffix or, if two have the same, the path from `root`.

    `classes` are the labels 1..K; without them, all names in the annotations of all splits, sorted.

    Raises InputError if there is no annotation, if several formats, splits or files of one image contradict each
    other, or if a file that is needed for all images is broken.
    """
    tree = FileTree(Path(root))
    name, records = _choose_format(tree, format, image_options)
    _require_one_annotation_each(records)
    records = _with_ids(tree, records)
    indices, about = _select(tree, records, split, _shares(val_fraction, fold), split_seed, image_options)
    logger.info("%s: %s; %s", root, _summary(tree, name, records), about)
    found = check_classes(root, classes or sorted({name for record in records for name in record.names}))
    title = f"{tree.root.resolve().name or 'root'}-{split}"
    return DetectionDataset(title, found, [records[index] for index in indices], image_options)


def split_names(root: Path, format: str | None = None, options: ImageOptions = UPRIGHT_IMAGES) -> list[str]:
    """The splits that a folder has, without trainval if there is train; train, val if they are to be made."""
    tree = FileTree(root)
    found, _ = find_splits(tree, _choose_format(tree, format, options)[1])
    if None in _names(found).values():
        return ["train", "val", *(["test"] if "test" in found else [])]
    return [name for name in found if name != "trainval" or "train" not in found]


def _names(found: Collection[str]) -> dict[str, str | None]:
    """The split that is train and val: the first of CHOICES that there is."""
    return {part: next((name for name in choice if name in found), None) for part, choice in CHOICES.items()}


def _choose_format(tree: FileTree, format: str | None, options: ImageOptions) -> tuple[str, list[Record]]:
    """The format with the most annotated images, and its records; other formats must have the same annotations."""
    found = {name: [*read(tree, options)] for name, (_, read) in FORMATS.items() if format in (None, name)}
    found = {name: records for name, records in found.items() if records}
    wanted = "annotation" if format is None else f"{FORMATS[format][0]} (data.format={format})"
    if not found:
        raise InputError(f"{tree.root}: there is no {wanted} in it. {_seen(tree)}")
    usable = {name: len(_images_of(records)) for name, records in found.items()}
    if not any(usable.values()):
        name, records = next(iter(found.items()))
        raise InputError(
            f"{tree.root}: none of the {len(records)} annotations in {FORMATS[name][0]} has its image: "
            f"{records[0].image}. Seen: {tree.suffixes()}"
        )
    chosen, *others = sorted((name for name in found if usable[name]), key=lambda name: -usable[name])
    for other in others:
        if contradiction := _contradiction(found[chosen], found[other]):
            kinds = " and ".join(f"{usable[name]} images with {FORMATS[name][0]}" for name in (chosen, other))
            raise InputError(
                f"{tree.root}: {kinds}, which differ: {contradiction}. Choose one with data.format={chosen} or "
                f"data.format={other}"
            )
        logger.info("%s: %s has the same annotations as %s", tree.root, FORMATS[other][0], FORMATS[chosen][0])
    return chosen, found[chosen]


def _seen(tree: FileTree) -> str:
    """What a folder without annotations has."""
    first = {
        path.suffix.lower(): path
        for path in reversed(tree.with_suffix(*ANNOTATION_SUFFIXES))
        if path.name.lower() not in yolo.NAME_FILES
    }
    tables = [f"; {path.name} begins with `{csv_boxes.first_line(path):.80}`" for path in first.values()]
    readable = ", ".join(title for title, _ in FORMATS.values())
    seen = tree.suffixes() + "".join([*tables, *(f"; {error}" for error in [*tree.broken_json.values()][:3])])
    return f"Seen: {seen}. Supported formats: {readable} (docs/data_sets.md)"


def _images_of(records: Sequence[Record]) -> dict[Path, Record]:
    return {record.image: record for record in records if isinstance(record.image, Path)}


def _contradiction(records: Sequence[Record], others: Sequence[Record]) -> str | None:
    """Why the annotations in two formats differ, or None; the first has at least as many images."""
    one, other = _images_of(records), _images_of(others)
    for image, record in other.items():
        if image not in one:
            return f"{record.annotation} has {image.name}, and the other does not"
        rows = [
            sorted((name, *box) for name, box in zip(item.names, item.boxes.tolist(), strict=True))
            for item in (one[image], record)
        ]
        names = [[row[0] for row in of_one] for of_one in rows]
        if names[0] != names[1]:
            return f"{image.name} has {first_few(names[0]) or 'no object'} and {first_few(names[1]) or 'no object'}"
        boxes = [np.array([row[1:] for row in of_one], dtype=float).reshape(-1, 4) for of_one in rows]
        if np.abs(boxes[0] - boxes[1]).max(initial=0) > SAME_PX:
            return f"the boxes in {image.name}"
    return None


def _with_ids(tree: FileTree, records: Sequence[Record]) -> list[Record]:
    """The records with their final image ids, sorted by path of the image."""
    paths = [tree.relative(item.image) if isinstance(item.image, Path) else _below(item.image_id) for item in records]
    if odd := [path for path in paths if not path.isprintable()]:
        raise InputError(f"{tree.root}: {odd[0]!r} cannot be an image id: rename the file without control characters")
    stems = [PurePosixPath(path).stem for path in paths]
    without_suffix = [str(PurePosixPath(path).with_suffix("")) for path in paths]
    ids = next((ids for ids in (stems, without_suffix) if len({*ids}) == len(ids)), paths)
    order = sorted(range(len(records)), key=lambda number: (paths[number], number))
    return [replace(records[number], image_id=ids[number]) for number in order]


def _below(name: str) -> str:
    """The path of an image that is not there, of any origin, as one below the root."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part.strip(".")) or "unnamed"


def _require_one_annotation_each(records: Sequence[Record]) -> None:
    counts = Counter(record.image for record in records if isinstance(record.image, Path))
    for image, count in counts.items():
        if count > 1:
            files = dict.fromkeys(str(record.annotation) for record in records if record.image == image)
            times = f", {count} times" if len(files) == 1 else ""
            coco = (
                f", or choose the file of each split: {CHOOSE_COCO}"
                if all(file.endswith(".json") for file in files)
                else ""
            )
            raise InputError(
                f"{image}: it is annotated more than once, in {first_few([*files])}{times}: keep one of them, or name "
                f"a folder that has one as data.root{coco}"
            )


def _shares(val_fraction: float | None, fold: str | None) -> tuple[list[float], int] | None:
    """The shares of the parts of a split that is asked for, and the index of val."""
    if val_fraction is not None and fold is not None:
        raise InputError(f"data.val_fraction={val_fraction} and data.fold={fold}: give one of them")
    if val_fraction is not None:
        return [1 - val_fraction, val_fraction], 1
    if fold is None:
        return None
    part, count = (int(number) for number in fold.split("/"))
    if not 1 <= part <= count or count < 2:
        raise InputError(f"data.fold={fold}: must be K/N with K from 1 to N, and N at least 2, such as 1/5")
    return [1 / count] * count, part - 1


def _select(
    tree: FileTree,
    records: Sequence[Record],
    split: str,
    shares: tuple[list[float], int] | None,
    seed: int,
    options: ImageOptions,
) -> tuple[list[int], str]:
    """The indices of the records of a split, and what to say about them."""
    found, source = find_splits(tree, records)
    sizes = ", ".join(f"{name} {len(numbers)}" for name, numbers in found.items())
    outside = {*range(len(records))} - {number for numbers in found.values() for number in numbers}
    if split == ALL:
        return [*range(len(records))], f"all {len(records)} are used"
    if found and outside and not shares and source != "lists":
        some = first_few([records[number].image_id for number in sorted(outside)])
        raise InputError(
            f"{tree.root}: splits by {source}: {sizes}; {len(outside)} images are in none of them: {some}. Move "
            f"them, or make a split of all images outside of test with data.val_fraction={VAL_FRACTION}"
        )
    names = _names(found)
    if split in CHOICES and (shares or None in names.values()):
        if found and not shares and names["train"] is None:
            raise InputError(
                f"{tree.root}: splits by {source}: {sizes}, and none to train on; data.val_fraction={VAL_FRACTION} "
                "makes a split of the images outside of test"
            )
        test = {*found.get("test", ())}
        pool = [number for number in range(len(records)) if number not in test]
        if source == "lists" and found:
            pool = [number for number in pool if number not in outside]
        return _made(records, pool, split, shares or ([1 - VAL_FRACTION, VAL_FRACTION], 1), seed, options)
    name = names[split] if split in CHOICES else split
    if name is None or name not in found:
        raise InputError(
            f"{tree.root}: no split '{split}' in it; there is {sizes or 'none'}. data.train_split and data.val_split "
            f"are train, val, such a name, or {ALL}"
        )
    instead = "" if name == split else f", where {name} is used as {split}"
    return found[name], f"splits by {source}: {sizes}{instead}"


def _made(
    records: Sequence[Record],
    pool: Sequence[int],
    split: str,
    shares: tuple[list[float], int],
    seed: int,
    options: ImageOptions,
) -> tuple[list[int], str]:
    train, val, copies = make_split([records[number] for number in pool], *shares, seed, options)
    kept = f", {copies} near-copies of each other kept together" if copies else ""
    rest = f", {len(records) - len(pool)} others left" if len(pool) < len(records) else ""
    about = f"a split is made (data.split_seed={seed}): train {len(train)}, val {len(val)}{rest}{kept}"
    return [pool[number] for number in (train if split == "train" else val)], about


def _summary(tree: FileTree, name: str, records: Sequence[Record]) -> str:
    """What is found: images, format, classes, and what is not used."""
    annotated = _images_of(records)
    counts = Counter(label for record in records for label in record.names)
    classes = first_few([f"{label} {count}" for label, count in counts.most_common()], 10) or "none"
    parts = [f"{len(annotated)} images with {FORMATS[name][0]}, objects: {classes}"]
    if empty := sum(not record.names and not record.invalid for record in annotated.values()):
        parts.append(f"{empty} have no object (background)")
    if without := [tree.relative(path) for path in tree.images if path not in annotated]:
        parts.append(f"{len(without)} images without annotation are not used ({first_few(without, 3)})")
    if missing := len(records) - len(annotated):
        parts.append(f"{missing} annotations have no image")
    return "; ".join(parts)
