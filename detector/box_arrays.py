"""Arithmetic on boxes (x1, y1, x2, y2) in numpy arrays. boxes.py does the same on tensors. Nothing here needs torch."""

from collections.abc import Sequence

import numpy as np


def clip_array(boxes: np.ndarray, image_hw: Sequence[int]) -> np.ndarray:
    """Clip boxes (..., 4) of numpy to the image, as `boxes.clip` does."""
    height, width = image_hw[:2]
    return np.clip(boxes, 0, np.array([width, height, width, height], dtype=boxes.dtype))


def to_xywh(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) as x1, y1, width, height, the form of COCO files."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Areas (...) in square pixels of boxes (..., 4)."""
    return (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)


def intersection_areas(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Areas in square pixels that boxes and others have in common; shapes as in `pair_iou`."""
    top_left = np.maximum(boxes[..., :2], others[..., :2])
    bottom_right = np.minimum(boxes[..., 2:], others[..., 2:])
    return np.clip(bottom_right - top_left, 0, None).prod(axis=-1)


def pair_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (..., 4) and others (..., 4), broadcast against each other; 0 without area.

    Pass float64 for comparisons with a threshold.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # of boxes that are checked only afterwards
        common = intersection_areas(boxes, others)
        union = box_areas(boxes) + box_areas(others) - common
        return np.where(union > 0, common / union, 0)


def box_iou_array(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union, (N, M), of boxes (N, 4) and others (M, 4), as `boxes.box_iou` computes it."""
    return pair_iou(boxes[:, None], others)


def nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Non-maximum suppression for each label: the indices of the boxes (N, 4) that are kept, highest score first.

    Of two boxes of a label with a higher IoU, the one with the lower score is removed. All boxes have an area.
    """
    boxes, kept = boxes.astype(np.float64), []
    for label in np.unique(labels):
        left = np.flatnonzero(labels == label)
        left = left[np.argsort(-scores[left], kind="stable")]
        while len(left):
            best, left = left[0], left[1:]
            kept.append(best)
            left = left[pair_iou(boxes[best], boxes[left]) <= iou_threshold]
    chosen = np.array(kept, dtype=np.int64)
    return chosen[np.argsort(-scores[chosen], kind="stable")]
