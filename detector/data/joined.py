"""Concatenation of data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from detector.data.classes import WithoutClasses
from detector.data.loader import DetectionDataset, Proposals
from detector.data.subset import Subset
from detector.structures import GroundTruth


class JoinedDataset:
    """The images of all `parts` in order; class lists are merged by name. Itself a DetectionDataset.

    Images keep their ids, unless two parts share one: then every image id becomes NUMBER-NAME/ID, with the number
    (from 1) and name of its part.
    """

    def __init__(self, parts: Sequence[DetectionDataset], classes: Sequence[str] | None = None) -> None:
        self.classes = tuple(classes or sorted({name for part in parts for name in part.classes}))
        self.parts = [part.with_classes(self.classes) for part in parts]
        self.image_ids = [id for part in parts for id in part.image_ids]
        self.image_options = parts[0].image_options  # the same for all parts: from data.exif and data.max_image_pixels
        if len(set(self.image_ids)) < len(self.image_ids):
            self.image_ids = [
                f"{number}-{part.name}/{id}" for number, part in enumerate(parts, start=1) for id in part.image_ids
            ]
        self._places = [(part, index) for part in self.parts for index in range(len(part))]

    def with_classes(self, classes: Sequence[str]) -> "JoinedDataset":
        return JoinedDataset(self.parts, classes)

    @property
    def name(self) -> str:
        return "+".join(part.name for part in self.parts)[:100]  # used in file names

    def __len__(self) -> int:
        return len(self.image_ids)

    def image(self, index: int) -> np.ndarray:
        part, own = self._places[index]
        return part.image(own)

    def image_path(self, index: int) -> Path:
        part, own = self._places[index]
        return part.image_path(own)

    def annotation_path(self, index: int) -> Path:
        part, own = self._places[index]
        return part.annotation_path(own)

    def annotated_hw(self, index: int) -> tuple[int, int] | None:
        part, own = self._places[index]
        return part.annotated_hw(own)

    def invalid_objects(self, index: int) -> Sequence[str]:
        part, own = self._places[index]
        return part.invalid_objects(own)

    def ground_truth(self, index: int) -> GroundTruth:
        part, own = self._places[index]
        return replace(part.ground_truth(own), image_id=self.image_ids[index])


class JoinedProposals:
    """Proposals of a joined data set; `sources` maps an image id to (proposals of its part, image id there)."""

    def __init__(self, sources: Mapping[str, tuple[Proposals, str]]) -> None:
        self._sources = sources

    def __getitem__(self, image_id: str) -> np.ndarray:
        """Boxes (P, 4) float32 of one image."""
        proposals, own_id = self._sources[image_id]
        return proposals[own_id]

    def scores(self, image_id: str) -> np.ndarray | None:
        """Scores (P,) float32 of its boxes, or None if its part has no scores."""
        proposals, own_id = self._sources[image_id]
        return proposals.scores(own_id)


def parts_of(reader: DetectionDataset) -> list[tuple[DetectionDataset, list[int]]]:
    """The data sets joined in `reader`, each with the indices of its images in `reader`; usually there is one.

    Parts without images, as in a small subset, are included.
    """
    if isinstance(reader, WithoutClasses):
        return parts_of(reader.reader)
    if isinstance(reader, Subset):
        place_of = {index: place for place, index in enumerate(reader.indices)}
        parts: list[tuple[DetectionDataset, list[int]]] = []
        for part, indices in parts_of(reader.reader):
            left = [number for number, index in enumerate(indices) if index in place_of]
            parts.append((Subset(part, left), [place_of[indices[number]] for number in left]))
        return parts
    if isinstance(reader, JoinedDataset):
        starts = np.cumsum([0, *map(len, reader.parts)]).tolist()
        return [
            (part, list(range(start, start + len(part)))) for part, start in zip(reader.parts, starts, strict=False)
        ]
    return [(reader, list(range(len(reader))))]
