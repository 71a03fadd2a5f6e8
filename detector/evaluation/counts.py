"""Counts of an evaluation at fixed scores: hits and misses over the score threshold, and confusions between classes."""

from dataclasses import dataclass

import numpy as np

from detector.box_arrays import pair_iou
from detector.evaluation.matching import HIT, IGNORED, Matches

NUM_THRESHOLDS = 101  # 0, 0.01, ... 1
CONFUSION_SCORE = 0.3


@dataclass(frozen=True)
class ThresholdCounts:
    """Detections of one class with a score of at least 0, 0.01, ... 1, each (101,) int64; ignored ones do not count."""

    hits: np.ndarray
    misses: np.ndarray
    num_objects: int

    @property
    def not_found(self) -> np.ndarray:
        """Objects without a hit."""
        return self.num_objects - self.hits


def count_by_threshold(matches: Matches, iou_threshold: float, devkit: bool = False) -> list[ThresholdCounts]:
    """For each class 1..K."""
    judged = matches.judge(iou_threshold, devkit)
    objects = np.bincount(matches.objects.labels[matches.objects.counted()], minlength=matches.num_classes + 1)
    thresholds = np.linspace(0, 1, NUM_THRESHOLDS)
    counts = []
    for label in range(1, matches.num_classes + 1):
        own = (matches.labels == label) & (judged != IGNORED)
        scores = np.sort(matches.scores[own])
        hits = np.concatenate([[0], np.cumsum(judged[own] == HIT)])  # of the n best; detections are by falling score
        above = len(scores) - np.searchsorted(scores, thresholds - 1e-6)  # a score of 0.9 in float32 is less
        counts.append(ThresholdCounts(hits[above], above - hits[above], int(objects[label])))
    return counts


def confusion_matrix(
    matches: Matches, iou_threshold: float = 0.5, score_threshold: float = CONFUSION_SCORE
) -> np.ndarray:
    """(K+1, K+1) int64: objects of the class of the row that were detected as the class of the column.

    Row 0 has detections without an object, column 0 objects without a detection. Each detection that reaches the score
    threshold, best first, is assigned to the unassigned object of any class with the highest IoU, if that reaches the
    IoU threshold. Difficult objects and crowds, and detections that cover one, do not count.
    """
    objects = matches.objects
    matrix = np.zeros((matches.num_classes + 1, matches.num_classes + 1), dtype=np.int64)
    taken = objects.labels > matches.num_classes  # never free
    missable = objects.counted() & ~taken
    shown = np.flatnonzero(matches.scores >= score_threshold)
    shown = shown[np.lexsort((-matches.scores[shown], matches.images[shown]))]
    for group in np.split(shown, np.flatnonzero(np.diff(matches.images[shown])) + 1) if len(shown) else []:
        image = matches.images[group[0]]
        first, last = np.searchsorted(objects.images, [image, image + 1])
        box, other = np.repeat(group, last - first), np.tile(np.arange(first, last), len(group))
        iou = pair_iou(matches.boxes[box], objects.boxes[other]).reshape(len(group), last - first)
        near = (iou >= iou_threshold).any(axis=1)
        np.add.at(matrix[0], matches.labels[group[~near]], 1)
        for index, row in zip(group[near], iou[near], strict=True):
            free = np.where(taken[first:last], -1.0, row)
            best = first + int(free.argmax())
            if free[best - first] < iou_threshold:
                matrix[0, matches.labels[index]] += 1
            elif not objects.ignored[best]:  # an ignored object can be covered by several
                taken[best] = True
                matrix[objects.labels[best], matches.labels[index]] += 1
    np.add.at(matrix[:, 0], objects.labels[missable & ~taken], 1)
    return matrix
