"""Common records of all proposal formats, and the conversion of their coordinates to boxes."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detector.errors import InputError

ORDERS = {"xyxy": "x1 y1 x2 y2", "yxyx": "y1 x1 y2 x2", "xywh": "x1 y1 width height"}
PIXEL_ORIGINS = {
    "0": "from 0, x2 y2 behind the last pixel",
    "1": "from 1, x2 y2 the last pixel",
    "0-inclusive": "from 0, x2 y2 the last pixel",
}
_TO_CONTINUOUS = {"0": (0, 0, 0, 0), "1": (-1, -1, 0, 0), "0-inclusive": (0, 0, 1, 1)}


@dataclass(frozen=True)
class BoxFormat:
    """Meaning of the four numbers of a box in a file: `order` is a key of ORDERS, `pixel_origin` of PIXEL_ORIGINS.

    Width and height count pixels with every pixel origin.
    """

    order: str
    pixel_origin: str

    def __str__(self) -> str:
        return f"{ORDERS[self.order]}, {PIXEL_ORIGINS[self.pixel_origin]}"

    def to_boxes(self, coordinates: np.ndarray) -> np.ndarray:
        """Convert coordinates (P, 4) of a file to boxes (P, 4) float32, x1 y1 x2 y2 in continuous pixels."""
        corners = coordinates.astype(np.float64)
        shift = np.array(_TO_CONTINUOUS[self.pixel_origin])
        if self.order == "xywh":
            corners[:, :2] += shift[:2]
            corners[:, 2:] += corners[:, :2]
        else:
            corners = corners[:, [1, 0, 3, 2]] + shift if self.order == "yxyx" else corners + shift
        return corners.astype(np.float32)

    def from_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Convert boxes (P, 4) to coordinates (P, 4) float64 of a file: the inverse of `to_boxes`."""
        corners = boxes.astype(np.float64)
        shift = np.array(_TO_CONTINUOUS[self.pixel_origin])
        if self.order == "xywh":
            return np.concatenate([corners[:, :2] - shift[:2], corners[:, 2:] - corners[:, :2]], axis=1)
        return (corners - shift)[:, [1, 0, 3, 2]] if self.order == "yxyx" else corners - shift


@dataclass(frozen=True)
class ImageProposals:
    """The proposals of one image, independent of a file format."""

    image_id: str
    boxes: np.ndarray  # (P, 4) float32, x1 y1 x2 y2, continuous pixels
    scores: np.ndarray | None = None  # (P,) float32
    image_hw: tuple[int, int] | None = None  # size of the image they were made on, if known
    image_path: Path | None = None  # the image file, if known


@dataclass(frozen=True)
class RawProposals:
    """The unconverted content of a proposal file."""

    path: Path
    box_format: BoxFormat | None  # as the format or the file states it; None if not stated completely
    rows: Mapping[str, np.ndarray]  # by image id: coordinates (P, 4), or (P, 5) with a score in the last column
    order: str | None = None  # set if a file states its order, but not its pixel origin

    def boxes(self, image_id: str, box_format: BoxFormat) -> np.ndarray:
        """Boxes (P, 4) float32 in continuous pixels, with the file read in this box format."""
        return box_format.to_boxes(self.rows[image_id][:, :4])

    def scores(self, image_id: str) -> np.ndarray | None:
        """Scores (P,) float32, or None if the file has no scores."""
        rows = self.rows[image_id]
        return rows[:, 4].astype(np.float32) if rows.shape[1] == 5 else None


@dataclass(frozen=True, eq=False)
class LazyRows(Mapping[str, np.ndarray]):
    """Rows by image id, each read on access by `read`."""

    ids: Collection[str]  # a set or dict, whose order is kept
    read: Callable[[str], np.ndarray]

    def __getitem__(self, image_id: str) -> np.ndarray:
        if image_id not in self.ids:
            raise KeyError(image_id)
        return self.read(image_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.ids

    def __len__(self) -> int:
        return len(self.ids)


def as_rows(path: Path, what: str, array: np.ndarray, scores: np.ndarray | None = None) -> np.ndarray:
    """Coordinates (P, 4) or, with scores, (P, 5). Raises InputError, naming file and object, for other contents."""
    try:
        array, scores = np.asarray(array), None if scores is None else np.ravel(scores)
    except ValueError:  # lists of different lengths, for example
        raise InputError(f"{path}: {what} is a {type(array).__name__} that cannot be an array") from None
    if array.size == 0:
        return np.zeros((0, 4 if scores is None else 5))
    if array.ndim != 2 or array.shape[1] not in (4, 5) or array.dtype.kind not in "iuf":
        raise InputError(f"{path}: {what} has shape {array.shape} of {array.dtype}, not (P, 4) of numbers")
    if scores is None or array.shape[1] == 5:
        return array
    if len(scores) != len(array) or scores.dtype.kind not in "iuf":
        raise InputError(f"{path}: {what} has {len(array)} boxes but {len(scores)} scores of {scores.dtype}")
    return np.column_stack([array, scores])


def ranked(image: ImageProposals) -> np.ndarray:
    """Scores (P,) for a format that requires them: those of the image, or decreasing from 1 by rank."""
    if image.scores is not None:
        return image.scores
    return (1 - np.arange(len(image.boxes)) / max(len(image.boxes), 1)).astype(np.float32)
