"""Selection of the proposals of an image."""

from dataclasses import dataclass

import numpy as np

from detector.box_arrays import clip_array
from detector.schema import default
from detector.settings import Data


@dataclass(frozen=True)
class Selection:
    """Rules for selecting the proposals of an image, in the original frame. The steps apply in this order."""

    by_score: bool = default(Data, "proposals_by_score")  # highest score first, if the file has scores
    min_side_px: float = default(Data, "min_proposal_px")  # minimum of both sides, after clipping to the image
    unique: bool = default(Data, "unique_proposals")  # keep the first of equal boxes
    max_proposals: int = default(Data, "train_max_proposals")  # keep the first ones


def selection_of(data: Data, part: str) -> Selection:
    """The rules in the settings for the images of the part `train` or `val`."""
    limit = data.train_max_proposals if part == "train" else data.val_max_proposals
    return Selection(data.proposals_by_score, data.min_proposal_px, data.unique_proposals, limit)


def select_proposals(
    boxes: np.ndarray, scores: np.ndarray | None, image_hw: tuple[int, int], selection: Selection
) -> np.ndarray:
    """Clip boxes (P, 4) with scores (P,) to the image and apply `selection`; returns boxes (P', 4).

    Boxes that are not finite, outside the image or without area are always dropped.
    """
    finite = np.isfinite(boxes).all(axis=1)  # clipping would turn an infinite corner into one at the border
    boxes, scores = boxes[finite], None if scores is None else scores[finite]
    if selection.by_score and scores is not None:
        boxes = boxes[np.argsort(-scores, kind="stable")]
    boxes = clip_array(boxes, image_hw)
    sides = boxes[:, 2:] - boxes[:, :2]
    boxes = boxes[np.all((sides > 0) & (sides >= selection.min_side_px), axis=1)]
    if selection.unique:
        boxes = boxes[first_of_equals(boxes)]
    return boxes[: selection.max_proposals]


def first_of_equals(boxes: np.ndarray) -> np.ndarray:
    """Ascending indices of the boxes (P, 4) that differ from all boxes before them."""
    whole = np.ascontiguousarray(boxes, dtype=np.float32) + np.float32(0)  # -0 becomes 0
    return np.sort(np.unique(whole.view("V16").ravel(), return_index=True)[1])
