"""A dataset in memory, one record per image. The readers in formats/ build it from files."""

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from unicodedata import normalize

import numpy as np

from detector.data.classes import check_classes, require_none_unknown
from detector.data.image import UPRIGHT_IMAGES, ImageOptions, read_image
from detector.errors import InputError
from detector.structures import GroundTruth


def _none(width: int, kind: type) -> np.ndarray:
    return np.zeros((0, width) if width > 1 else 0, dtype=kind)


@dataclass(frozen=True)
class Record:
    """One image and its annotation, as in the files; boxes in continuous pixels of the original frame."""

    image_id: str
    image: Path | InputError  # the image file, or why there is none
    annotation: Path  # its file, for messages
    names: tuple[str, ...] = ()  # class of each of the G objects
    boxes: np.ndarray = field(default_factory=lambda: _none(4, np.float32))  # (G, 4) float32
    difficult: np.ndarray = field(default_factory=lambda: _none(1, bool))  # (G,) bool
    crowd: np.ndarray = field(default_factory=lambda: _none(1, bool))  # (G,) bool
    areas: np.ndarray = field(default_factory=lambda: _none(1, np.float64))  # (G,) float64
    annotated_hw: tuple[int, int] | None = None  # image size in the annotation, if given
    skipped: tuple[str, ...] = ()  # messages on objects that cannot be used, and are not included
    invalid: InputError | None = None  # why the annotation cannot be used
    part: int = 0  # of a joined dataset: the index of its part
    own_id: str = ""  # its id in that part

    def only(self, classes: Collection[str]) -> "Record":
        """The same image with the objects of these classes."""
        keep = np.array([name in classes for name in self.names], dtype=bool)
        if keep.all():
            return self
        names = tuple(name for name in self.names if name in classes)
        return replace(
            self, names=names, boxes=self.boxes[keep], difficult=self.difficult[keep], crowd=self.crowd[keep],
            areas=self.areas[keep],
        )  # fmt: skip


@dataclass(frozen=True)
class DetectionDataset:
    """Images with their ground truth. `classes` have the labels 1..K.

    Raises InputError for an object of a class that is not among `classes`.
    """

    name: str  # used in file names
    classes: tuple[str, ...]
    records: Sequence[Record]
    image_options: ImageOptions = UPRIGHT_IMAGES
    category_ids: Mapping[str, int] = field(default_factory=dict)  # of a COCO file, by class name
    parts: tuple[str, ...] = ()  # names of the datasets that were joined
    excluded: tuple[str, ...] = ()  # classes whose objects were left out

    def __post_init__(self) -> None:
        for record in self.records:  # ids are used in the names of result files
            if PurePosixPath(record.image_id).is_absolute() or ".." in record.image_id.split("/"):
                raise InputError(
                    f"{record.annotation}: image id {record.image_id!r}: must be a relative path without '..'"
                )
        counts: Counter[str] = Counter()
        first: dict[str, Path] = {}
        for record in self.records:
            counts.update(record.names)
            for name in record.names:
                first.setdefault(name, record.annotation)
        unknown = {name: count for name, count in counts.items() if name not in self.labels}
        require_none_unknown(unknown, first, self.classes)

    @cached_property
    def labels(self) -> dict[str, int]:
        """The label 1..K of each class. Raises InputError for duplicates and names that are not valid in file names."""
        return {name: label for label, name in enumerate(check_classes(self.name, self.classes), start=1)}

    @cached_property
    def image_ids(self) -> list[str]:
        """Ids of the images, in order."""
        return [record.image_id for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def image_path(self, index: int) -> Path:
        """The image file. Raises InputError if there is none."""
        record = self.records[index]
        if isinstance(record.image, InputError):
            raise record.image
        if not os.path.lexists(record.image):
            raise InputError(
                f"{record.image}: there is no such file, image {record.image_id} of {record.annotation}; in COCO "
                "layout data.train_images or data.val_images names the folder of the images, from data.root"
            )
        return record.image

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return read_image(self.image_path(index), self.image_options)

    def ground_truth(self, index: int) -> GroundTruth:
        """The objects of one image. Raises InputError if its annotation is invalid."""
        record = self.records[index]
        if record.invalid is not None:
            raise record.invalid
        return GroundTruth(
            image_id=record.image_id,
            boxes=record.boxes,
            labels=np.array([self.labels[name] for name in record.names], dtype=np.int64),
            difficult=record.difficult,
            crowd=record.crowd,
            areas=record.areas,
        )

    def with_classes(self, classes: Sequence[str]) -> "DetectionDataset":
        """The same data with these labels."""
        return replace(self, classes=tuple(normalize("NFC", name) for name in classes))  # as the readers do

    def without_classes(self, excluded: Collection[str]) -> "DetectionDataset":
        """The same images without the objects of these classes."""
        kept = tuple(name for name in self.classes if name not in excluded)
        gone = tuple(name for name in self.classes if name in excluded)
        return replace(self, classes=kept, records=[record.only(kept) for record in self.records], excluded=gone)

    def subset(self, indices: Sequence[int]) -> "DetectionDataset":
        """The images at these indices, in this order, with the same classes."""
        return replace(self, records=[self.records[index] for index in indices])


def image_dataset(
    paths: Mapping[str, Path], classes: Sequence[str], image_options: ImageOptions = UPRIGHT_IMAGES
) -> DetectionDataset:
    """A dataset of images by id, without annotations."""
    records = [Record(image_id, path, path) for image_id, path in paths.items()]
    return DetectionDataset("images", tuple(classes), records, image_options)


def join(datasets: Sequence[DetectionDataset]) -> DetectionDataset:
    """The images of all datasets in order; classes are merged by name.

    Images keep their ids, unless two datasets share one: then every id becomes NUMBER-NAME/ID, with the number (from
    1) and name of its dataset. All have the same image options.
    """
    ids = [id for item in datasets for id in item.image_ids]
    shared = len(set(ids)) < len(ids)
    records = []
    for part, item in enumerate(datasets):
        for record in item.records:
            image_id = f"{part + 1}-{item.name}/{record.image_id}" if shared else record.image_id
            records.append(replace(record, image_id=image_id, part=part, own_id=record.image_id))
    return DetectionDataset(
        name="+".join(item.name for item in datasets)[:100],
        classes=tuple(sorted({name for item in datasets for name in item.classes})),
        records=records,
        image_options=datasets[0].image_options,
        parts=tuple(item.name for item in datasets),
    )


def split_into_parts(dataset: DetectionDataset) -> list[tuple[DetectionDataset, list[int]]]:
    """The datasets that were joined, each with the indices of its images in `dataset`; usually there is one.

    Parts without images, as in a small subset, are included.
    """
    if not dataset.parts:
        return [(dataset, list(range(len(dataset))))]
    found = []
    for part, name in enumerate(dataset.parts):
        indices = [index for index, record in enumerate(dataset.records) if record.part == part]
        records = [replace(dataset.records[index], image_id=dataset.records[index].own_id) for index in indices]
        found.append((replace(dataset, name=name, records=records, parts=()), indices))
    return found
