"""What every format has to say, and how its coordinates become boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detector.errors import InputError, first_few

ORDERS = {"xyxy": "x1 y1 x2 y2", "yxyx": "y1 x1 y2 x2", "xywh": "x1 y1 width height"}
BASES = {
    "0": "from 0, x2 y2 behind the last pixel",
    "1": "from 1, x2 y2 the last pixel",
    "0-inclusive": "from 0, x2 y2 the last pixel",
}
_TO_CONTINUOUS = {"0": (0, 0, 0, 0), "1": (-1, -1, 0, 0), "0-inclusive": (0, 0, 1, 1)}


@dataclass(frozen=True)
class Layout:
    """What four numbers of a file mean: `order` is a key of ORDERS, `base` of BASES.

    A width and height count pixels in every base.
    """

    order: str
    base: str

    def __str__(self) -> str:
        return f"{ORDERS[self.order]}, {BASES[self.base]}"

    def to_boxes(self, coordinates: np.ndarray) -> np.ndarray:
        """Boxes (P, 4) float32, x1 y1 x2 y2 in continuous pixels, of a file's coordinates (P, 4)."""
        corners = coordinates.astype(np.float64)
        shift = np.array(_TO_CONTINUOUS[self.base])
        if self.order == "xywh":
            corners[:, :2] += shift[:2]
            corners[:, 2:] += corners[:, :2]
        else:
            corners = corners[:, [1, 0, 3, 2]] + shift if self.order == "yxyx" else corners + shift
        return corners.astype(np.float32)

    def from_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """The file's coordinates (P, 4) float64 of boxes (P, 4): the inverse of `to_boxes`."""
        corners = boxes.astype(np.float64)
        shift = np.array(_TO_CONTINUOUS[self.base])
        if self.order == "xywh":
            return np.concatenate([corners[:, :2] - shift[:2], corners[:, 2:] - corners[:, :2]], axis=1)
        return (corners - shift)[:, [1, 0, 3, 2]] if self.order == "yxyx" else corners - shift


@dataclass(frozen=True)
class ImageProposals:
    """The proposals of one image, ready to be written in any format."""

    image_id: str
    boxes: np.ndarray  # (P, 4) float32, x1 y1 x2 y2, continuous pixels
    scores: np.ndarray | None = None  # (P,) float32
    image_hw: tuple[int, int] | None = None  # size of the image they were made on, where it is known
    image_path: Path | None = None  # its file, where it is known


@dataclass(frozen=True)
class RawProposals:
    """A file of proposals as it stands: nothing converted yet."""

    path: Path
    layout: Layout | None  # what the format or the file states; None: neither does, or not all of it
    rows: Mapping[str, np.ndarray]  # by image id: coordinates (P, 4), or (P, 5) with a score behind them
    order: str | None = None  # where a file states its order, but not its base

    def boxes(self, image_id: str, layout: Layout) -> np.ndarray:
        """Boxes (P, 4) float32, continuous, if the file's coordinates are in this layout."""
        return layout.to_boxes(self.rows[image_id][:, :4])

    def scores(self, image_id: str) -> np.ndarray | None:
        """Scores (P,) float32, or None where the file has none."""
        rows = self.rows[image_id]
        return rows[:, 4].astype(np.float32) if rows.shape[1] == 5 else None


def as_rows(path: Path, what: str, array: np.ndarray, scores: np.ndarray | None = None) -> np.ndarray:
    """Coordinates (P, 4) or, with scores, (P, 5). Raises InputError, naming file and object, for anything else."""
    try:
        array, scores = np.asarray(array), None if scores is None else np.ravel(scores)
    except ValueError:  # lists of different lengths, for one
        raise InputError(f"{path}: {what} is a {type(array).__name__} of parts that make no array") from None
    if array.size == 0:
        return np.zeros((0, 4 if scores is None else 5))
    if array.ndim != 2 or array.shape[1] not in (4, 5) or array.dtype.kind not in "iuf":
        raise InputError(f"{path}: {what} has shape {array.shape} of {array.dtype}, not (P, 4) of numbers")
    if scores is None or array.shape[1] == 5:
        return array
    if len(scores) != len(array) or scores.dtype.kind not in "iuf":
        raise InputError(f"{path}: {what} has {len(array)} boxes but {len(scores)} scores of {scores.dtype}")
    return np.column_stack([array, scores])


def require_distinct(path: Path, image_ids: Sequence[str]) -> None:
    """Raise InputError if an image id stands there twice."""
    seen: set[str] = set()
    twice = [id for id in image_ids if id in seen or seen.add(id)]  # type: ignore[func-returns-value]
    if twice:
        raise InputError(f"{path}: {len(twice)} images stand in it more than once: {first_few(twice)}")


def ranked(image: ImageProposals) -> np.ndarray:
    """Scores (P,) for a format that cannot do without: the image's own, or falling from 1 by rank."""
    if image.scores is not None:
        return image.scores
    return (1 - np.arange(len(image.boxes)) / max(len(image.boxes), 1)).astype(np.float32)
