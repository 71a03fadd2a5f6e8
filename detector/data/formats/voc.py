"""Datasets in VOC layout: JPEGImages/, Annotations/*.xml, ImageSets/Main/*.txt under one root."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize
from urllib.parse import quote
from xml.etree.ElementTree import Element
from xml.sax.saxutils import escape

import numpy as np

from detector.data.classes import check_classes
from detector.data.dataset import DetectionDataset, Record
from detector.data.formats.safe_xml import parse_xml
from detector.data.image import UPRIGHT_IMAGES, ImageOptions
from detector.errors import InputError, first_few, require_distinct
from detector.runtime.files import reading

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
MAX_NAME_BYTES = 250  # of an image, without suffix; file systems allow 255 with suffix
TRUE, FALSE = ("1", "1.0", "true", "yes"), ("", "0", "0.0", "false", "no", "unspecified")  # flags as tools write them
MAX_XML_BYTES = 10_000_000  # real files have a few thousand


class NotAnAnnotation(InputError):
    """An XML file that is not a VOC annotation."""


class _NoObject(Exception):
    """An <object> without a class or a box."""


def read_voc(
    root: str | Path, split: str, classes: Sequence[str] | None = None, image_options: ImageOptions = UPRIGHT_IMAGES
) -> DetectionDataset:
    """Images with their ground truth, in the order of a split file.

    `classes` are the labels 1..K; without them, all names in the annotations, sorted.

    Raises InputError for a missing root or split, an empty split, a duplicate id, a missing XML file, or an object of
    a class that is not among `classes`. An invalid annotation is kept in its record, so that a few bad ones can be
    listed (see check.py) and skipped.
    """
    root = Path(root)
    image_ids = read_split(root, split)
    missing = [id for id in image_ids if not _annotation_path(root, id).is_file()]
    if missing:
        raise InputError(
            f"{root / 'Annotations'}: {len(missing)} of the {len(image_ids)} images of split '{split}' have no XML "
            f"file: {first_few(missing)}. An image without objects needs one too, without <object>."
        )
    files: dict[Path, dict[str, list[str]]] = {}  # by folder and stem
    records = []
    for image_id in image_ids:
        image, annotation = _image_path(root, image_id, split, files), _annotation_path(root, image_id)
        try:
            records.append(replace(read_annotation(annotation), image_id=image_id, image=image))
        except InputError as error:
            records.append(Record(image_id, image, annotation, invalid=error))
    named = check_classes(root, classes or sorted({name for record in records for name in record.names}))
    return DetectionDataset(_name_of(root, split), named, records, image_options)


def is_unlabelled(root: str | Path, split: str) -> bool:
    """Whether no image of the split has an XML file, as in the test splits of an evaluation server."""
    return not any(_annotation_path(Path(root), image_id).is_file() for image_id in read_split(Path(root), split))


def read_voc_images(
    root: str | Path, split: str, classes: Sequence[str], image_options: ImageOptions = UPRIGHT_IMAGES
) -> DetectionDataset:
    """The images of a split without any ground truth. Raises InputError as `read_voc`."""
    root = Path(root)
    files: dict[Path, dict[str, list[str]]] = {}
    records = [
        Record(image_id, _image_path(root, image_id, split, files), _annotation_path(root, image_id))
        for image_id in read_split(root, split)
    ]
    return DetectionDataset(_name_of(root, split), tuple(classes), records, image_options)


def _name_of(root: Path, split: str) -> str:
    return f"{root.resolve().name}-{quote(split, safe='')}"


def _annotation_path(root: Path, image_id: str) -> Path:
    return root / "Annotations" / f"{image_id}.xml"


def _image_path(root: Path, image_id: str, split: str, files: dict[Path, dict[str, list[str]]]) -> Path | InputError:
    """The image file: the id with a supported suffix, in upper or lower case; an error unless there is exactly one."""
    wanted = root / "JPEGImages" / image_id  # an id can contain a folder
    if wanted.parent not in files:
        files[wanted.parent] = _images_by_stem(wanted.parent)
    found = files[wanted.parent].get(wanted.name, [])
    if len(found) == 1:
        return wanted.parent / found[0]
    problem = f"more than one: {first_few(sorted(found))}" if found else "none"
    return InputError(f"{wanted.parent}: image '{image_id}' of split '{split}' needs one file, there is {problem}")


def _images_by_stem(folder: Path) -> dict[str, list[str]]:
    """Names of the image files in a folder, by stem."""
    files: dict[str, list[str]] = {}
    for path in folder.iterdir() if folder.is_dir() else []:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            files.setdefault(path.stem, []).append(path.name)
    return files


def read_split(root: Path, split: str) -> list[str]:
    """Image ids of ImageSets/Main/SPLIT.txt, one per line.

    The split of a single class has -1, 0 or 1 after each id, which is removed; an id may contain spaces.
    """
    folder = root / "ImageSets" / "Main"
    if not root.is_dir():
        raise InputError(f"data.root: there is no folder {root} (current directory: {Path.cwd()})")
    if not folder.is_dir():
        raise InputError(
            f"data.root: {root} is not in VOC layout: it has no folder ImageSets/Main. data=folder "
            "reads any folder of annotated images, and makes a split if there is none"
        )
    path = folder / f"{split}.txt"
    if not path.exists():
        there = sorted(file.stem for file in folder.glob("*.txt"))
        raise InputError(f"{path}: no such split; there is {first_few(there, 20) or 'none'}")
    with reading(path, "not UTF-8 text"):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    ids = [line.strip() for line in lines if line.strip()]
    flagged = ids and all(re.search(r"\s(-1|0|1)$", id) for id in ids)
    if flagged and not (root / "Annotations" / f"{ids[0]}.xml").is_file():  # an id may end in " 1" itself
        ids = [id.rsplit(maxsplit=1)[0] for id in ids]
    if not ids:
        raise InputError(f"{path}: the split has no images")
    odd = [id for id in ids if "\0" in id or any(len(name.encode()) > MAX_NAME_BYTES for name in id.split("/"))]
    if odd:
        raise InputError(f"{path}: {odd[0]!r:.60} cannot be an image id: it must be valid in file names")
    require_distinct(path, ids)
    return ids


def read_annotation(path: Path) -> Record:
    """Read one VOC XML file; the record has no image yet.

    1 is subtracted from x1 and y1 only (1-based inclusive to continuous pixels). An object without a class, or without
    four numbers that enclose a pixel, is left out and listed in `skipped`. Raises InputError if the file is not XML,
    not an annotation (NotAnAnnotation), too large, or has an object with swapped corners.
    """
    root = parse_xml(path, MAX_XML_BYTES)
    if root.tag != "annotation":
        raise NotAnAnnotation(f"{path}: its root is <{root.tag}>, not <annotation>: no VOC annotation file")
    for item in root:
        if item.tag != "object" and (item.tag.lower() in ("object", "objects") or item.find(".//bndbox") is not None):
            raise InputError(f"{path}: <{item.tag}> is not VOC's <object>, so its objects would not be read")
    names, boxes, difficult, invalid = [], [], [], []
    for number, item in enumerate(root.findall("object"), start=1):  # a <part> inside an object is not an object
        what = f"{path}: object {number}"
        try:
            name, box = _name(what, item), _box(what, item)
        except _NoObject as error:
            invalid.append(str(error))
            continue
        names.append(name)
        boxes.append(box)
        difficult.append(_flag(what, item, "difficult"))
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Record(
        image_id=path.stem,
        image=InputError(f"{path}: read without its image"),
        annotation=path,
        names=tuple(names),
        boxes=corners,
        difficult=np.array(difficult, dtype=bool),
        crowd=np.zeros(len(corners), dtype=bool),
        areas=np.prod(corners[:, 2:] - corners[:, :2], axis=1, dtype=np.float64),
        annotated_hw=_image_hw(path, root.find("size")),
        skipped=tuple(invalid),
    )


def read_file_name(path: Path) -> str:
    """The image file that an annotation names."""
    return (parse_xml(path, MAX_XML_BYTES).findtext("filename") or "").strip()


def annotation_xml(file_name: str, shape: Sequence[int], objects: Sequence[dict]) -> str:
    """XML of an annotation file for an image of this shape (H, W, ...), with 1-based inclusive boxes.

    Each object has `name`, `box` (x1, y1, x2, y2) in integer continuous pixels, and `difficult`.
    """
    lines = [
        "<annotation>",
        f"  <filename>{escape(_printable(file_name))}</filename>",
        f"  <size><width>{shape[1]}</width><height>{shape[0]}</height><depth>3</depth></size>",
    ]
    for item in objects:
        x1, y1, x2, y2 = item["box"]
        lines += [
            f"  <object><name>{escape(item['name'])}</name><difficult>{item['difficult']:d}</difficult>",
            f"    <bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>",
            "  </object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def _printable(name: str) -> str:
    """The name with ? for characters that XML cannot represent: control characters, and bytes that are not UTF-8."""
    return "".join(character if character.isprintable() else "?" for character in name)


def _image_hw(path: Path, size: Element | None) -> tuple[int, int] | None:
    """(H, W) from <size>, or None; some tools omit it or write zeros."""
    if size is None:
        return None
    try:
        height, width = (_number(f"{path}: <size>", size, tag) for tag in ("height", "width"))
    except _NoObject:
        return None
    return (int(height), int(width)) if width > 0 and height > 0 else None


def _name(what: str, item: Element) -> str:
    name = normalize("NFC", (item.findtext("name") or "").strip())
    if not name:
        raise _NoObject(f"{what} has no <name>")
    return name


def _flag(what: str, item: Element, tag: str) -> bool:
    text = (item.findtext(tag) or "").strip()
    if text.lower() not in (*TRUE, *FALSE):
        raise InputError(f"{what} has <{tag}>{text}</{tag}>: must be 0 or 1")
    return text.lower() in TRUE


def _box(what: str, item: Element) -> list[float]:
    bndbox = item.find("bndbox")
    if bndbox is None:
        raise _NoObject(f"{what} has no <bndbox>")
    x1, y1, x2, y2 = (_number(what, bndbox, tag) for tag in ("xmin", "ymin", "xmax", "ymax"))
    corners = f"xmin {x1:g} ymin {y1:g} xmax {x2:g} ymax {y2:g}"
    if x2 < x1 - 1 or y2 < y1 - 1:
        raise InputError(f"{what} has its corners swapped: {corners}")
    if x2 <= x1 - 1 or y2 <= y1 - 1:
        raise _NoObject(f"{what} holds no pixel: {corners}")
    return [x1 - 1, y1 - 1, x2, y2]


def _number(what: str, parent: Element, tag: str) -> float:
    """The number in <tag>; VOC 2012 itself has decimal fractions."""
    text = parent.findtext(tag)
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = float("nan")
    if not abs(value) < 1e9:  # also rejects nan and inf
        raise _NoObject(f"{what}: <{tag}> must be a number, it is {text!r}")
    return value
