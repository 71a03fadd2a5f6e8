"""Subset of a data set."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detector.data.loader import DetectionDataset
from detector.structures import GroundTruth


class Subset:
    """The images of `reader` at `indices`, in that order, with the same classes. Itself a DetectionDataset."""

    def __init__(self, reader: DetectionDataset, indices: Sequence[int]) -> None:
        self.reader = reader
        self.indices = list(indices)
        self.image_ids = [reader.image_ids[index] for index in self.indices]
        self.classes = reader.classes
        self.image_options = reader.image_options

    @property
    def name(self) -> str:
        return self.reader.name

    def __len__(self) -> int:
        return len(self.indices)

    def with_classes(self, classes: Sequence[str]) -> "Subset":
        return Subset(self.reader.with_classes(classes), self.indices)

    def image(self, index: int) -> np.ndarray:
        return self.reader.image(self.indices[index])

    def image_path(self, index: int) -> Path:
        return self.reader.image_path(self.indices[index])

    def annotation_path(self, index: int) -> Path:
        return self.reader.annotation_path(self.indices[index])

    def ground_truth(self, index: int) -> GroundTruth:
        return self.reader.ground_truth(self.indices[index])

    def annotated_hw(self, index: int) -> tuple[int, int] | None:
        return self.reader.annotated_hw(self.indices[index])

    def invalid_objects(self, index: int) -> Sequence[str]:
        return self.reader.invalid_objects(self.indices[index])
