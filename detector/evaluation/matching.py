"""Matching of detections with ground truth, and the resulting precision-recall curves.

The rules are those of the Pascal VOC challenge (Everingham et al., IJCV 2010, section 4.2). Per class, detections of
all images are processed by descending score. Each is matched with the ground truth box of its class and image with the
highest IoU. It is

    a hit       if the IoU reaches the threshold and no better scored detection has matched the box,
    ignored     if the IoU reaches the threshold and the box is marked difficult,
    a miss      otherwise: badly localised, on background, or a duplicate.

VOC has no crowds and no size ranges; for these the rules are COCO's (Lin et al., ECCV 2014). A miss is ignored if
enough of its own area is in a crowd box of its class. For a range of object sizes, objects of other sizes are treated
as difficult, and a miss is ignored if its own size is outside the range.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from detector.box_arrays import box_areas, intersection_areas, pair_iou
from detector.structures import Detections, GroundTruth

Range = tuple[float, float]
ALL: Range = (0.0, math.inf)
HIT, MISS, IGNORED = 1, 0, -1
PAIRS_AT_ONCE = 1 << 16  # of a box and an object: limits the memory of matching to some MiB


@dataclass(frozen=True)
class Curve:
    """Precision and recall of one class at one IoU threshold, one point per detection that is not ignored."""

    recall: np.ndarray  # (N,) float64
    precision: np.ndarray  # (N,) float64
    num_objects: int  # objects that count; with 0, neither curve nor AP is defined


@dataclass(frozen=True)
class Objects:
    """The ground truth of all images, concatenated; G objects."""

    images: np.ndarray  # (G,) int64: index of the image in the sequence of ground truths
    labels: np.ndarray  # (G,) int64
    boxes: np.ndarray  # (G, 4) float64
    areas: np.ndarray  # (G,) float64
    crowd: np.ndarray  # (G,) bool
    ignored: np.ndarray  # (G,) bool: difficult or a crowd

    def counted(self, area_range: Range = ALL) -> np.ndarray:
        """(G,) bool: objects that count in recall."""
        return ~self.ignored & within(self.areas, area_range)


@dataclass(frozen=True)
class Matches:
    """All detections, by class and descending score, each with the object of its class that has the highest IoU."""

    images: np.ndarray  # (N,) int64
    labels: np.ndarray  # (N,) int64, ascending
    scores: np.ndarray  # (N,) float64
    boxes: np.ndarray  # (N, 4) float64
    object_index: np.ndarray  # (N,) int64, into `objects`; -1 without an object of this class in the image
    iou: np.ndarray  # (N,) float64
    crowd_ioa: np.ndarray  # (N,) float64: fraction of its own area in a crowd of its class
    proposals: np.ndarray  # (N, 4) float64: what each was refined from; NaN if not known
    objects: Objects
    num_classes: int

    def reached(self, iou_threshold: float, devkit: bool = False) -> np.ndarray:
        """(N,) bool: the IoU with the best object reaches the threshold."""
        return (self.object_index >= 0) & (self.iou > iou_threshold if devkit else self.iou >= iou_threshold)

    def judge(self, iou_threshold: float, devkit: bool = False, area_range: Range = ALL) -> np.ndarray:
        """HIT, MISS or IGNORED for every detection at this IoU threshold, (N,) int8."""
        judged = np.full(len(self.iou), MISS, dtype=np.int8)
        reached = np.flatnonzero(self.reached(iou_threshold, devkit))
        target = self.object_index[reached]
        first = np.zeros(len(self.objects.labels), dtype=np.int64)
        first[target[::-1]] = reached[::-1]  # the last write stays: the best scored detection of each object
        judged[first[target]] = HIT
        judged[reached[~self.objects.counted(area_range)[target]]] = IGNORED
        elsewhere = (self.crowd_ioa >= iou_threshold) | ~within(box_areas(self.boxes), area_range)
        judged[elsewhere & (judged == MISS)] = IGNORED
        return judged

    def curves(self, iou_threshold: float, devkit: bool = False, area_range: Range = ALL) -> list[Curve]:
        """The curve of each class 1..K."""
        counted = self.objects.labels[self.objects.counted(area_range)]
        num_objects = np.bincount(counted, minlength=self.num_classes + 1)[1:]
        return make_curves(self.labels, self.judge(iou_threshold, devkit, area_range), num_objects)


def make_curves(labels: np.ndarray, judged: np.ndarray, num_objects: np.ndarray) -> list[Curve]:
    """Curves of the classes 1..K from judged detections (N,), by class and descending score, and object counts (K,)."""
    counts = judged != IGNORED
    labels, hits = labels[counts], judged[counts] == HIT
    curves = []
    for label, number in enumerate(num_objects.tolist(), start=1):
        found = np.cumsum(hits[np.searchsorted(labels, label) : np.searchsorted(labels, label, side="right")])
        curves.append(Curve(found / max(number, 1), found / np.arange(1, len(found) + 1), number))
    return curves


def match(truths: Sequence[GroundTruth], detections: Iterable[Detections], num_classes: int) -> Matches:
    """Match the detections with the ground truth of their image and class. Equal scores keep the order of the images.

    Labels above `num_classes` are ignored. Raises KeyError for detections of an image without a ground truth record
    (which can be empty).
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
    proposals = _join([_proposals(item) for item in found], np.float64).reshape(-1, 4)[order]

    def iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return pair_iou(boxes[one], objects.boxes[other])

    def part(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return intersection_areas(boxes[one], objects.boxes[other]) / np.maximum(box_areas(boxes[one]), 1e-9)

    key, object_key = images * (num_classes + 1) + labels, objects.images * (num_classes + 1) + objects.labels
    object_key = np.where(objects.labels <= num_classes, object_key, -1)
    object_index, best_iou = best_object(key, np.where(objects.crowd, -1, object_key), iou)
    _, crowd_ioa = best_object(key, np.where(objects.crowd, object_key, -1), part)
    return Matches(images, labels, scores, boxes, object_index, best_iou, crowd_ioa, proposals, objects, num_classes)


def _proposals(found: Detections) -> np.ndarray:
    return np.full(found.boxes.shape, np.nan) if found.proposals is None else found.proposals


def best_object(
    keys: np.ndarray, object_keys: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """For each box, index and value (N,) of the object with the same key and the largest `measure`; first if equal.

    keys (N,) int64 are not negative; an object with a negative key in object_keys (G,) is never chosen. `measure` takes
    the indices of boxes and objects, as pairs, and returns values >= 0. A box without an object gets -1 and 0.
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
    """Mask of the areas (N,), in pixels, within the range, both ends included."""
    return (areas >= area_range[0]) & (areas <= area_range[1])
