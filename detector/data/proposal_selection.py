"""Which proposals of an image are used."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Selection:
    """Which proposals of an image are used, in the original frame. They are taken in this order of steps."""

    by_score: bool = False  # best score first, where the file has scores; else in the file's order
    min_side_px: float = 0  # both sides must have this, after cutting at the image's border
    unique: bool = True  # of equal boxes the first
    max_proposals: int = 2000  # then the first ones


def select_proposals(
    boxes: np.ndarray, scores: np.ndarray | None, image_hw: tuple[int, int], selection: Selection
) -> np.ndarray:
    """Boxes (P', 4) of boxes (P, 4) and scores (P,): cut at the border, and those that `selection` leaves.

    What is not finite, lies outside the image or has no area is never used.
    """
    finite = np.isfinite(boxes).all(axis=1)  # else an infinite corner would be cut to one at the border
    boxes, scores = boxes[finite], None if scores is None else scores[finite]
    if selection.by_score and scores is not None:
        boxes = boxes[np.argsort(-scores, kind="stable")]
    height, width = image_hw
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float32))
    sides = boxes[:, 2:] - boxes[:, :2]
    boxes = boxes[np.all((sides > 0) & (sides >= selection.min_side_px), axis=1)]
    if selection.unique:
        boxes = boxes[first_of_equals(boxes)]
    return boxes[: selection.max_proposals]


def first_of_equals(boxes: np.ndarray) -> np.ndarray:
    """Indices, rising, of the boxes (P, 4) that equal none before them."""
    whole = np.ascontiguousarray(boxes, dtype=np.float32) + np.float32(0)  # -0 becomes 0
    return np.sort(np.unique(whole.view("V16").ravel(), return_index=True)[1])
