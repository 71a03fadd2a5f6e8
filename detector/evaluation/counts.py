"""Counts of an evaluation at fixed scores: hits and misses over the score threshold, and confusions between classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from detector.boxes import box_iou
from detector.evaluation.matching import HIT, IGNORED, Matches
from detector.structures import Detections, GroundTruth

NUM_THRESHOLDS = 101  # 0, 0.01, ... 1


@dataclass(frozen=True)
class ThresholdCounts:
    """Detections of one class with a score of at least 0, 0.01, ... 1, each (101,) int64; ignored ones do not count."""

    hits: np.ndarray
    misses: np.ndarray
    not_found: np.ndarray  # objects


def count_by_threshold(matches: Matches, iou_threshold: float, devkit: bool = False) -> list[ThresholdCounts | None]:
    """For each class 1..K; None for a class without objects."""
    judged = matches.judge(iou_threshold, devkit)
    objects = np.bincount(matches.objects.labels[matches.objects.counted()], minlength=matches.num_classes + 1)
    thresholds = np.linspace(0, 1, NUM_THRESHOLDS)
    counts: list[ThresholdCounts | None] = []
    for label in range(1, matches.num_classes + 1):
        own = (matches.labels == label) & (judged != IGNORED)
        scores = np.sort(matches.scores[own])
        hits = np.concatenate([[0], np.cumsum(judged[own] == HIT)])  # of the n best; detections are by falling score
        above = len(scores) - np.searchsorted(scores, thresholds - 1e-6)  # a score of 0.9 in float32 is less
        found = hits[above]
        counts.append(ThresholdCounts(found, above - found, objects[label] - found) if objects[label] else None)
    return counts


def confusion_matrix(
    truths: Sequence[GroundTruth],
    detections: Sequence[Detections],
    num_classes: int,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.3,
) -> np.ndarray:
    """(K+1, K+1) int64: objects of the class of the row that were detected as the class of the column.

    Row 0 has detections without an object, column 0 objects without a detection. Each detection with the score, best
    first, takes the object of any class with the highest IoU, if that reaches the threshold and no other has taken it.
    Difficult objects and crowds, and detections that cover one, do not count.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for truth, found in zip(truths, detections, strict=True):
        ignored, taken = truth.difficult | truth.crowd, np.zeros(len(truth.labels), dtype=bool)
        keep = found.scores >= score_threshold
        boxes, labels = torch.from_numpy(found.boxes[keep]), found.labels[keep]
        ious = box_iou(boxes, torch.from_numpy(truth.boxes)).numpy()
        for label, iou in zip(labels, ious, strict=True):
            free = np.where(taken, -1.0, iou)
            best = int(free.argmax()) if len(free) else -1
            if best < 0 or free[best] < iou_threshold:
                matrix[0, label] += 1
            elif not ignored[best]:  # an ignored object can be covered by several
                taken[best] = True
                matrix[truth.labels[best], label] += 1
        np.add.at(matrix[:, 0], truth.labels[~taken & ~ignored], 1)
    return matrix
