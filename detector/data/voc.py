"""Data sets in VOC layout: JPEGImages/, Annotations/*.xml, ImageSets/Main/*.txt under one root."""

import copy
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from xml.etree.ElementTree import Element, ParseError
from xml.sax.saxutils import escape

import numpy as np
from defusedxml import DefusedXmlException

from detector.data.classes import labels_by_name, require_none_unknown
from detector.data.image import UPRIGHT_IMAGES, ImageOptions, read_image
from detector.data.safe_xml import parse_xml
from detector.errors import InputError, first_few
from detector.structures import GroundTruth

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MAX_NAME_BYTES = 250  # of an image, without suffix; file systems allow 255 with suffix
MAX_XML_BYTES = 10_000_000  # real files have a few thousand; parsing takes many times the file size in memory


@dataclass(frozen=True)
class Annotation:
    """Content of one XML file. VOC files have 1-based inclusive boxes; `boxes` here are in continuous pixels."""

    path: Path
    names: tuple[str, ...]  # class of each object
    boxes: np.ndarray  # (G, 4) float32
    difficult: np.ndarray  # (G,) bool
    image_hw: tuple[int, int] | None  # image size in the file, if given
    invalid_objects: tuple[str, ...] = ()  # messages on objects without a class or a box, which are not included above


class _NoObject(Exception):
    """An <object> without a class or a box."""


class VocDataset:
    """Images with their ground truth, in the order of a split file.

    `classes` are the labels 1..K; without them, all names in the annotations, sorted. All annotations are read in the
    constructor; images are read one at a time.

    Raises InputError for a missing root or split, an empty split, a duplicate id, a missing XML file, or an object of
    a class that is not among `classes`. An invalid annotation raises when its ground truth is read, so that a few bad
    ones can be listed (see check.py) and skipped.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        classes: Sequence[str] | None = None,
        image_options: ImageOptions = UPRIGHT_IMAGES,
    ) -> None:
        self.root = Path(root)
        self.split = split
        self.image_options = image_options
        self.image_ids = read_split(self.root, split)
        missing = [id for index, id in enumerate(self.image_ids) if not self.annotation_path(index).is_file()]
        if missing:
            raise InputError(
                f"{self.root / 'Annotations'}: {len(missing)} of the {len(self.image_ids)} images of split '{split}' "
                f"have no XML file: {first_few(missing)}. An image without objects needs one too, without <object>."
            )
        self._annotations = [_read_or_error(self.annotation_path(index)) for index in range(len(self))]
        self._files: dict[Path, dict[str, list[str]]] = {}
        self.classes: tuple[str, ...] = ()
        self._label(
            classes or sorted({name for a in self._annotations if isinstance(a, Annotation) for name in a.names})
        )

    def with_classes(self, classes: Sequence[str]) -> "VocDataset":
        """The same data with these labels."""
        other = copy.copy(self)
        other._label(classes)
        return other

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def name(self) -> str:
        return f"{self.root.resolve().name}-{quote(self.split, safe='')}"  # used in file names

    def image_path(self, index: int) -> Path:
        """The image file: the id with any common suffix, in any case. Raises InputError unless there is exactly one."""
        image_id = self.image_ids[index]
        wanted = self.root / "JPEGImages" / image_id  # an id can contain a folder
        if wanted.parent not in self._files:
            self._files[wanted.parent] = _images_by_stem(wanted.parent)
        found = self._files[wanted.parent].get(wanted.name, [])
        if len(found) != 1:
            problem = f"more than one: {first_few(sorted(found))}" if found else "none"
            raise InputError(
                f"{wanted.parent}: image '{image_id}' of split '{self.split}' needs one file, there is {problem}"
            )
        return wanted.parent / found[0]

    def annotation_path(self, index: int) -> Path:
        return self.root / "Annotations" / f"{self.image_ids[index]}.xml"

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return read_image(self.image_path(index), self.image_options)

    def annotated_hw(self, index: int) -> tuple[int, int] | None:
        """(H, W) of the image in the annotation, or None."""
        return self._annotation(index).image_hw

    def invalid_objects(self, index: int) -> Sequence[str]:
        """One message per object of the annotation that is not in the ground truth."""
        return self._annotation(index).invalid_objects

    def ground_truth(self, index: int) -> GroundTruth:
        """Ground truth of one image. Raises InputError if the annotation is invalid."""
        annotation = self._annotation(index)
        return GroundTruth(
            image_id=self.image_ids[index],
            boxes=annotation.boxes,
            labels=np.array([self._labels[name] for name in annotation.names], dtype=np.int64),
            difficult=annotation.difficult,
            crowd=np.zeros(len(annotation.boxes), dtype=bool),
            areas=np.prod(annotation.boxes[:, 2:] - annotation.boxes[:, :2], axis=1, dtype=np.float64),
        )

    def _annotation(self, index: int) -> Annotation:
        annotation = self._annotations[index]
        if isinstance(annotation, InputError):
            raise annotation
        return annotation

    def _label(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._labels = labels_by_name(self.classes, self.root)
        unknown: Counter[str] = Counter()
        first: dict[str, Path] = {}
        for annotation in self._annotations:
            if isinstance(annotation, Annotation):
                for name in {*annotation.names} - self._labels.keys():
                    unknown[name] += annotation.names.count(name)
                    first.setdefault(name, annotation.path)
        require_none_unknown(unknown, first, self.classes)


def _images_by_stem(folder: Path) -> dict[str, list[str]]:
    """Names of the image files in a folder, by stem."""
    files: dict[str, list[str]] = {}
    for path in folder.iterdir() if folder.is_dir() else []:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            files.setdefault(path.stem, []).append(path.name)
    return files


def _read_or_error(path: Path) -> Annotation | InputError:
    try:
        return read_annotation(path)
    except InputError as error:
        return error


def read_split(root: Path, split: str) -> list[str]:
    """Image ids of ImageSets/Main/SPLIT.txt, one per line.

    The split of a single class has -1, 0 or 1 after each id, which is removed; an id may contain spaces.
    """
    folder = root / "ImageSets" / "Main"
    if not root.is_dir():
        raise InputError(f"data.root: there is no folder {root} (here is {Path.cwd()})")
    if not folder.is_dir():
        raise InputError(f"data.root: {root} is not in VOC layout: it has no folder ImageSets/Main")
    path = folder / f"{split}.txt"
    if not path.is_file():
        there = sorted(file.stem for file in folder.glob("*.txt"))
        raise InputError(f"{path}: no such split; there is {first_few(there, 20) or 'none'}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error}") from None
    ids = [line.strip() for line in lines if line.strip()]
    if all(re.search(r"\s(-1|0|1)$", id) for id in ids):
        ids = [id.rsplit(maxsplit=1)[0] for id in ids]
    if not ids:
        raise InputError(f"{path}: the split has no images")
    odd = [id for id in ids if "\0" in id or any(len(name.encode()) > MAX_NAME_BYTES for name in id.split("/"))]
    if odd:
        raise InputError(f"{path}: {odd[0]!r:.60} cannot be an image id: it must be valid in file names")
    seen: set[str] = set()
    twice = [id for id in ids if id in seen or seen.add(id)]  # type: ignore[func-returns-value]
    if twice:
        raise InputError(f"{path}: {len(twice)} images stand in it more than once: {first_few(twice)}")
    return ids


def read_annotation(path: Path) -> Annotation:
    """Read one VOC XML file. 1 is subtracted from x1 and y1 only (1-based inclusive to continuous pixels).

    An object without a class, or without four numbers that enclose a pixel, is skipped and listed in
    `invalid_objects`. Raises InputError if the file is not XML, not an annotation, too large, or has an object with
    swapped corners.
    """
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise InputError(f"{path}: has {path.stat().st_size} bytes; an annotation has {MAX_XML_BYTES} at most")
        root = parse_xml(path)
    except (ParseError, DefusedXmlException, UnicodeDecodeError, LookupError, ValueError, OSError) as error:
        raise InputError(f"{path}: broken XML: {error or type(error).__name__}") from None
    if root.tag != "annotation":
        raise InputError(f"{path}: its root is <{root.tag}>, not <annotation>: no VOC annotation file")
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
        difficult.append((item.findtext("difficult") or "").strip() == "1")  # some tools write "Unspecified"
    return Annotation(
        path=path,
        names=tuple(names),
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        difficult=np.array(difficult, dtype=bool),
        image_hw=_image_hw(path, root.find("size")),
        invalid_objects=tuple(invalid),
    )


def annotation_xml(file_name: str, shape: Sequence[int], objects: Sequence[dict]) -> str:
    """XML of an annotation file for an image of this shape (H, W, ...), with 1-based inclusive boxes.

    Each object has `name`, `box` (x1, y1, x2, y2) in integer continuous pixels, and `difficult`.
    """
    lines = [
        "<annotation>",
        f"  <filename>{escape(file_name)}</filename>",
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
    name = (item.findtext("name") or "").strip()
    if not name:
        raise _NoObject(f"{what} has no <name>")
    return name


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
