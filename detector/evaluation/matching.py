"""Pairing detections with ground truth, and the precision-recall curves that come of it.

The rules are those of the Pascal VOC challenge (Everingham et al., IJCV 2010, section 4.2). Per class, detections of
all images are taken from the highest score down. Each is compared with the ground truth box of its class and image that
it overlaps most. It is

    a hit       if that overlap reaches the threshold and no better scored detection claimed the box before,
    ignored     if it reaches the threshold and the box is marked difficult,
    a miss      otherwise: localised badly, on background, or a duplicate.

VOC knows no crowds and no sizes; here the rules are COCO's (Lin et al., ECCV 2014). What would be a miss is ignored
if enough of its own area lies in a crowd box of its class. For the objects of a range of sizes, those of other sizes
are taken as difficult, and what would be a miss is ignored if it is itself of another size.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from detector.structures import Detections, GroundTruth

Range = tuple[float, float]
ALL: Range = (0.0, math.inf)
HIT, MISS, IGNORED = 1, 0, -1
PAIRS_AT_ONCE = 1 << 19  # of a box and an object: bounds the memory of matching to some tens of MiB


@dataclass(frozen=True)
class Curve:
    """Precision against recall of one class at one overlap, one point for each detection that counts."""

    recall: np.ndarray  # (N,) float64
    precision: np.ndarray  # (N,) float64
    num_objects: int  # not difficult; without any, neither curve nor AP is defined


@dataclass(frozen=True)
class Objects:
    """The ground truth of all images, laid end to end; G objects."""

    images: np.ndarray  # (G,) int64: place of the image in the sequence of ground truths
    labels: np.ndarray  # (G,) int64
    boxes: np.ndarray  # (G, 4) float64
    areas: np.ndarray  # (G,) float64
    crowd: np.ndarray  # (G,) bool
    ignored: np.ndarray  # (G,) bool: difficult or a crowd, not to be found

    def counted(self, area_range: Range = ALL) -> np.ndarray:
        """(G,) bool: objects that are to be found."""
        return ~self.ignored & within(self.areas, area_range)


@dataclass(frozen=True)
class Matches:
    """All detections, class by class and best first; with each the object of its class that it overlaps most."""

    images: np.ndarray  # (N,) int64
    labels: np.ndarray  # (N,) int64, ascending
    scores: np.ndarray  # (N,) float64
    boxes: np.ndarray  # (N, 4) float64
    object_index: np.ndarray  # (N,) int64, into `objects`; -1 without an object of this class in the image
    iou: np.ndarray  # (N,) float64
    crowd_ioa_threshold: np.ndarray  # (N,) float64: the part of its own area in a crowd of its class
    objects: Objects
    num_classes: int

    def reached(self, overlap: float, devkit: bool = False) -> np.ndarray:
        """(N,) bool: the best object is overlapped enough."""
        return (self.object_index >= 0) & (self.iou > overlap if devkit else self.iou >= overlap)

    def judge(self, overlap: float, devkit: bool = False, area_range: Range = ALL) -> np.ndarray:
        """HIT, MISS or IGNORED of every detection at this overlap, (N,) int8."""
        judged = np.full(len(self.iou), MISS, dtype=np.int8)
        reached = np.flatnonzero(self.reached(overlap, devkit))
        target = self.object_index[reached]
        first = np.zeros(len(self.objects.labels), dtype=np.int64)
        first[target[::-1]] = reached[::-1]  # the last to be written stays: the best scored claim of each object
        judged[first[target]] = HIT
        judged[reached[~self.objects.counted(area_range)[target]]] = IGNORED
        elsewhere = (self.crowd_ioa_threshold >= overlap) | ~within(_areas(self.boxes), area_range)
        judged[elsewhere & (judged == MISS)] = IGNORED
        return judged

    def curves(self, overlap: float, devkit: bool = False, area_range: Range = ALL) -> list[Curve]:
        """The curve of each class 1..K."""
        counted = self.objects.labels[self.objects.counted(area_range)]
        num_objects = np.bincount(counted, minlength=self.num_classes + 1)[1:]
        return make_curves(self.labels, self.judge(overlap, devkit, area_range), num_objects)


def make_curves(labels: np.ndarray, judged: np.ndarray, num_objects: np.ndarray) -> list[Curve]:
    """Curves of the classes 1..K from judged detections (N,), class by class and best first, and their objects (K,)."""
    counts = judged != IGNORED
    labels, hits = labels[counts], judged[counts] == HIT
    curves = []
    for label, number in enumerate(num_objects.tolist(), start=1):
        found = np.cumsum(hits[np.searchsorted(labels, label) : np.searchsorted(labels, label, side="right")])
        curves.append(Curve(found / max(number, 1), found / np.arange(1, len(found) + 1), number))
    return curves


def match(truths: Sequence[GroundTruth], detections: Iterable[Detections], num_classes: int) -> Matches:
    """Pair the detections with the ground truth of their image and class. Equal scores keep the order of the images.

    Labels above `num_classes` count nowhere. Raises KeyError for detections of an image that has no ground truth
    record, not even an empty one.
    """
    objects = _objects(truths)
    image_number = {truth.image_id: number for number, truth in enumerate(truths)}
    found = list(detections)
    images = np.repeat(
        np.array([image_number[item.image_id] for item in found], dtype=np.int64), [len(item.scores) for item in found]
    )
    labels = _join([item.labels for item in found], np.int64)
    scores = _join([item.scores for item in found], np.float64)
    order = np.lexsort((images, -scores, labels))
    order = order[labels[order] <= num_classes]
    images, labels, scores = images[order], labels[order], scores[order]
    boxes = _join([item.boxes for item in found], np.float64).reshape(-1, 4)[order]

    def iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return pair_iou(boxes[one], objects.boxes[other])

    def part(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return _intersection(boxes[one], objects.boxes[other]) / np.maximum(_areas(boxes[one]), 1e-9)

    key, object_key = images * (num_classes + 1) + labels, objects.images * (num_classes + 1) + objects.labels
    object_key = np.where(objects.labels <= num_classes, object_key, -1)
    object_index, best_iou = best_object(key, np.where(objects.crowd, -1, object_key), iou)
    _, crowd_ioa_threshold = best_object(key, np.where(objects.crowd, object_key, -1), part)
    return Matches(images, labels, scores, boxes, object_index, best_iou, crowd_ioa_threshold, objects, num_classes)


def best_object(
    keys: np.ndarray, object_keys: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """For each box the object with the same key that it measures most with: index (N,), the first of equals, and value.

    keys (N,) int64, 0 or more, and object_keys (G,), any below 0 for none. `measure` takes the indices of boxes and of
    objects, pair by pair, and returns a number from 0 for each. A box without an object has -1 and 0.
    """
    by_key = np.argsort(object_keys, kind="stable")
    sorted_keys = object_keys[by_key]
    start = np.searchsorted(sorted_keys, keys, side="left")
    count = np.searchsorted(sorted_keys, keys, side="right") - start
    best_index, best_value = np.full(len(keys), -1, dtype=np.int64), np.zeros(len(keys))
    some = np.flatnonzero(count)
    pairs_before = np.cumsum(count[some]) // PAIRS_AT_ONCE
    for part in np.split(some, np.flatnonzero(np.diff(pairs_before)) + 1) if len(some) else []:
        ends = np.cumsum(count[part])
        begins = ends - count[part]
        place = np.arange(ends[-1]) - np.repeat(begins - start[part], count[part])
        values = measure(np.repeat(part, count[part]), by_key[place])
        best_value[part] = np.maximum.reduceat(values, begins)
        is_best = values == np.repeat(best_value[part], count[part])
        best_index[part] = by_key[np.minimum.reduceat(np.where(is_best, place, len(by_key)), begins)]
    return best_index, best_value


def _objects(truths: Sequence[GroundTruth]) -> Objects:
    crowd = _join([truth.crowd for truth in truths], bool)
    return Objects(
        images=np.repeat(np.arange(len(truths)), [len(truth.labels) for truth in truths]),
        labels=_join([truth.labels for truth in truths], np.int64),
        boxes=_join([truth.boxes for truth in truths], np.float64).reshape(-1, 4),
        areas=_join([truth.areas for truth in truths], np.float64),
        crowd=crowd,
        ignored=crowd | _join([truth.difficult for truth in truths], bool),
    )


def _join(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *(array.ravel() for array in arrays)]).astype(dtype, copy=False)


def within(areas: np.ndarray, area_range: Range) -> np.ndarray:
    """Which of the areas (N,), in pixels, lie in the range, its ends included."""
    return (areas >= area_range[0]) & (areas <= area_range[1])


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _intersection(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    width = np.minimum(boxes[:, 2], others[:, 2]) - np.maximum(boxes[:, 0], others[:, 0])
    height = np.minimum(boxes[:, 3], others[:, 3]) - np.maximum(boxes[:, 1], others[:, 1])
    return np.maximum(width, 0) * np.maximum(height, 0)


def pair_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Overlap (N,) of each box with the box of the same row, in float64: a threshold is met exactly or not at all."""
    shared = _intersection(boxes, others)
    return shared / np.maximum(_areas(boxes) + _areas(others) - shared, 1e-9)
