"""Several data sets as one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from detector.data.classes import WithoutClasses
from detector.data.loader import DetectionDataset, Proposals
from detector.data.subset import Subset
from detector.structures import GroundTruth


class JoinedDataset:
    """The images of all `parts`, one part after the other; their class lists are merged by name. A reader itself.

    Images keep their ids, unless two parts share one: then every image is called NUMBER-NAME/ID after its part, the
    first being 1.
    """

    def __init__(self, parts: Sequence[DetectionDataset], classes: Sequence[str] | None = None) -> None:
        self.classes = tuple(classes or sorted({name for part in parts for name in part.classes}))
        self.parts = [part.with_classes(self.classes) for part in parts]
        self.image_ids = [id for part in parts for id in part.image_ids]
        self.image_options = parts[0].image_options  # as data.exif and the like say, for all
        if len(set(self.image_ids)) < len(self.image_ids):
            self.image_ids = [
                f"{number}-{part.name}/{id}" for number, part in enumerate(parts, start=1) for id in part.image_ids
            ]
        self._places = [(part, index) for part in self.parts for index in range(len(part))]

    def with_classes(self, classes: Sequence[str]) -> "JoinedDataset":
        return JoinedDataset(self.parts, classes)

    @property
    def name(self) -> str:
        return "+".join(part.name for part in self.parts)[:100]  # it becomes part of files' names

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

    def left_out(self, index: int) -> Sequence[str]:
        part, own = self._places[index]
        return part.left_out(own)

    def ground_truth(self, index: int) -> GroundTruth:
        part, own = self._places[index]
        return replace(part.ground_truth(own), image_id=self.image_ids[index])


class JoinedProposals:
    """Proposals of a joined data set's images, each from its part's own: by id, (those proposals, the id in them)."""

    def __init__(self, sources: Mapping[str, tuple[Proposals, str]]) -> None:
        self._sources = sources

    def __getitem__(self, image_id: str) -> np.ndarray:
        """Boxes (P, 4) float32 of an image."""
        proposals, own_id = self._sources[image_id]
        return proposals[own_id]

    def scores(self, image_id: str) -> np.ndarray | None:
        """Scores (P,) float32 of its boxes, or None where its part has none."""
        proposals, own_id = self._sources[image_id]
        return proposals.scores(own_id)


def parts_of(reader: DetectionDataset) -> list[tuple[DetectionDataset, list[int]]]:
    """The data sets that a reader is joined of, each with the places of its images in `reader`; mostly it is one.

    A part of which no image is left, as in a small subset, is still among them.
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
