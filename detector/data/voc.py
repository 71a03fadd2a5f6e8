"""Data sets in the layout of Pascal VOC: JPEGImages/, Annotations/*.xml, ImageSets/Main/*.txt under one root."""

import copy
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError
from xml.sax.saxutils import escape

import numpy as np
from defusedxml import DefusedXmlException

from detector.data.classes import labels_by_name, unknown_class
from detector.data.image import read_image
from detector.data.safe_xml import parse_xml
from detector.errors import InputError, first_few
from detector.structures import GroundTruth

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Annotation:
    """What one XML file says. A VOC file counts pixels from 1 and includes the last; `boxes` are continuous."""

    path: Path
    names: tuple[str, ...]  # class of each object
    boxes: np.ndarray  # (G, 4) float32
    difficult: np.ndarray  # (G,) bool
    image_hw: tuple[int, int] | None  # the annotator's idea of the image's size, where the file gives one


class VocDataset:
    """Images with their ground truth, in the order of a split file.

    `classes` are the labels 1..K; without them, all names in the annotations, sorted. Every annotation is read at
    once, so that whatever is wrong in one is known before anything else happens; images are read one at a time.

    Raises InputError: no such root or split, an empty split, an id twice, a missing or broken XML file, an object
    of a class that is not among `classes`, an impossible box.
    """

    def __init__(self, root: str | Path, split: str, classes: Sequence[str] | None = None) -> None:
        self.root = Path(root)
        self.split = split
        self.image_ids = read_split(self.root, split)
        folder = self.root / "Annotations"
        missing = [id for id in self.image_ids if not (folder / f"{id}.xml").is_file()]
        if missing:
            raise InputError(
                f"{folder}: {len(missing)} of the {len(self.image_ids)} images of split '{split}' have no XML file: "
                f"{first_few(missing)}. An image without objects needs one too, without <object>."
            )
        self.annotations = [read_annotation(folder / f"{id}.xml") for id in self.image_ids]
        self.classes: tuple[str, ...] = ()
        self._label(classes or sorted({name for a in self.annotations for name in a.names}))

    def with_classes(self, classes: Sequence[str]) -> "VocDataset":
        """The same data with these labels."""
        other = copy.copy(self)
        other._label(classes)
        return other

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def name(self) -> str:
        return f"{self.root.resolve().name}-{self.split}"

    def image_path(self, index: int) -> Path:
        """The image's file: the id with any common suffix, in any case."""
        path = self.root / "JPEGImages" / f"{self.image_ids[index]}.jpg"
        if path.is_file():
            return path
        found = self._other_files.get(path.stem, [])
        if len(found) != 1:
            problem = f"more than one: {first_few(found)}" if found else "none"
            raise InputError(
                f"{path.parent}: image '{path.stem}' of split '{self.split}' needs one file, there is {problem}"
            )
        return path.parent / found[0]

    def annotation_path(self, index: int) -> Path:
        return self.annotations[index].path

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB. Raises InputError if its size is not the one that the annotation was made for."""
        path, annotation = self.image_path(index), self.annotations[index]
        image = read_image(path)
        height, width = image.shape[:2]
        if annotation.image_hw not in (None, (height, width)):
            xml_height, xml_width = annotation.image_hw
            raise InputError(
                f"{annotation.path}: its <size> is {xml_width}x{xml_height}, but {path} is {width}x{height} "
                "(upright as EXIF says): the boxes belong to another version of the image"
            )
        return image

    def ground_truth(self, index: int) -> GroundTruth:
        return self._ground_truth[index]

    def _label(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        label = labels_by_name(self.classes, self.root)
        for annotation in self.annotations:
            for number, name in enumerate(annotation.names, start=1):
                if name not in label:
                    raise unknown_class(f"{annotation.path}: object {number}", name, self.classes)
        self._ground_truth = [
            GroundTruth(
                image_id=id,
                boxes=a.boxes,
                labels=np.array([label[name] for name in a.names], dtype=np.int64),
                difficult=a.difficult,
                crowd=np.zeros(len(a.boxes), dtype=bool),
                areas=np.prod(a.boxes[:, 2:] - a.boxes[:, :2], axis=1, dtype=np.float64),
            )
            for id, a in zip(self.image_ids, self.annotations, strict=True)
        ]

    @cached_property
    def _other_files(self) -> dict[str, list[str]]:
        """Files in JPEGImages by stem, for images that are no plain .jpg."""
        folder = self.root / "JPEGImages"
        files: dict[str, list[str]] = {}
        for path in folder.iterdir() if folder.is_dir() else []:
            if path.suffix.lower() in IMAGE_SUFFIXES:
                files.setdefault(path.stem, []).append(path.name)
        return files


def read_split(root: Path, split: str) -> list[str]:
    """Image ids of ImageSets/Main/SPLIT.txt, one a line.

    A class's own split has -1, 0 or 1 behind each id, which is left out; an id may hold spaces.
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
        raise InputError(f"{path}: not a text in UTF-8: {error}") from None
    ids = [line.strip() for line in lines if line.strip()]
    if all(re.search(r"\s(-1|0|1)$", id) for id in ids):
        ids = [id.rsplit(maxsplit=1)[0] for id in ids]
    if not ids:
        raise InputError(f"{path}: the split has no images")
    seen: set[str] = set()
    twice = [id for id in ids if id in seen or seen.add(id)]  # type: ignore[func-returns-value]
    if twice:
        raise InputError(f"{path}: {len(twice)} images stand in it more than once: {first_few(twice)}")
    return ids


def read_annotation(path: Path) -> Annotation:
    """Read one VOC XML file; its boxes lose 1 from x1 and y1 (1-based inclusive to continuous), no more.

    Raises InputError that names the file, the object's number and the value.
    """
    try:
        root = parse_xml(path)
    except (ParseError, DefusedXmlException, UnicodeDecodeError, LookupError, ValueError) as error:
        raise InputError(f"{path}: broken XML: {error or type(error).__name__}") from None
    if root.tag != "annotation":
        raise InputError(f"{path}: its root is <{root.tag}>, not <annotation>: no VOC annotation file")
    objects = root.findall("object")  # direct children only: a <part> inside an object is none
    size = root.find("size")
    width, height = (_number(path, "<size>", size, tag, 0.0) for tag in ("width", "height"))
    return Annotation(
        path=path,
        names=tuple(_name(path, number, item) for number, item in enumerate(objects, start=1)),
        boxes=np.array(
            [_box(path, f"object {number}", item) for number, item in enumerate(objects, start=1)], dtype=np.float32
        ).reshape(-1, 4),
        difficult=np.array(
            [(item.findtext("difficult") or "").strip() == "1" for item in objects],  # some tools write "Unspecified"
            dtype=bool,
        ),
        image_hw=(int(height), int(width)) if width > 0 and height > 0 else None,
    )


def annotation_xml(file_name: str, shape: Sequence[int], objects: Sequence[dict]) -> str:
    """An annotation file for an image of this shape (H, W, ...); its boxes count pixels from 1 and include the last.

    Of each object: `name`, `box` (x1, y1, x2, y2) in whole pixels, and `difficult`.
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


def _name(path: Path, number: int, item: Element) -> str:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise InputError(f"{path}: object {number} has no <name>")
    return name


def _box(path: Path, what: str, item: Element) -> list[float]:
    bndbox = item.find("bndbox")
    if bndbox is None:
        raise InputError(f"{path}: {what} has no <bndbox>")
    x1, y1, x2, y2 = (_number(path, what, bndbox, tag, None) for tag in ("xmin", "ymin", "xmax", "ymax"))
    if x2 < x1 or y2 < y1:
        raise InputError(f"{path}: {what} has its corners swapped: xmin {x1:g} ymin {y1:g} xmax {x2:g} ymax {y2:g}")
    return [x1 - 1, y1 - 1, x2, y2]


def _number(path: Path, what: str, parent: Element | None, tag: str, default: float | None) -> float:
    """The number in <tag>; VOC 2012 itself holds decimal fractions. An absent tag is the default."""
    text = None if parent is None else parent.findtext(tag)
    if text is None and default is not None:
        return default
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = float("nan")
    if not math.isfinite(value):
        raise InputError(f"{path}: {what}: <{tag}> must be a number, it is {text!r}")
    return value
