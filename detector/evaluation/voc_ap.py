"""Average precision as the Pascal VOC challenge defines it (Everingham et al., IJCV 2010, section 4.2).

Per class, detections of all images are taken from the highest score down. Each is compared with the ground truth box
of its class and image that it overlaps most. It is

    a hit       if that overlap reaches the threshold and no better scored detection claimed the box before,
    ignored     if it reaches the threshold and the box is marked difficult,
    a miss      otherwise: localised badly, on background, or a duplicate.

Two metrics are made of the precision-recall curve: `11point`, the mean of the best precision at recall 0, 0.1, .. 1
and beyond (VOC 2007), and `area` under the curve made monotonic (VOC 2010 and later).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from detector.structures import Detections, GroundTruth


@dataclass(frozen=True)
class Curve:
    """Precision against recall of one class at one overlap, one point for each detection that counts."""

    recall: np.ndarray  # (N,) float64
    precision: np.ndarray  # (N,) float64
    num_objects: int  # not difficult; without any, neither curve nor AP is defined


def score_voc(
    truths: Sequence[GroundTruth],
    detections: Iterable[Detections],
    classes: Sequence[str],
    overlaps: Sequence[float] = (0.5,),
    devkit: bool = False,
) -> tuple[dict, dict[str, dict[str, Curve]]]:
    """Score detections by both metrics at each overlap.

    Returns (metrics, curves): metrics like `{"11point@0.50": {"mAP": 0.7, "AP": {"cat": 0.7, "unicorn": None}}, ...}`
    and curves by overlap ("0.50") and class. A class without an object has the AP None and is not in the mean; the
    mean over no class is None.

    devkit: count as the Python code that published numbers come from: a hit needs an overlap > threshold, where the
        challenge and this program take one >= threshold; and see `eleven_point_ap`. That code reads rounded values
        from files: to have its exact numbers, score what went `through_files` (results.py).
    """
    matches = match(truths, detections, num_classes=len(classes))
    metrics: dict = {}
    curves: dict[str, dict[str, Curve]] = {}
    for overlap in overlaps:
        at = f"{overlap:.2f}"
        curves[at] = {name: matches[index].curve(overlap, devkit) for index, name in enumerate(classes)}
        for metric in ("11point", "area"):
            ap = {
                name: area_ap(curve) if metric == "area" else eleven_point_ap(curve, devkit)
                for name, curve in curves[at].items()
            }
            defined = [value for value in ap.values() if value is not None]
            metrics[f"{metric}@{at}"] = {"mAP": float(np.mean(defined)) if defined else None, "AP": ap}
    return metrics, curves


@dataclass(frozen=True)
class Matches:
    """The detections of one class, best first, each with the object that it overlaps most."""

    object_index: np.ndarray  # (N,) int64, into the objects of this class; -1 if its image has none
    iou: np.ndarray  # (N,) float64
    difficult: np.ndarray  # (G,) bool, of the objects

    def curve(self, overlap: float, devkit: bool = False) -> Curve:
        """Count hits and misses at this overlap, from the best score down."""
        reached = self.iou > overlap if devkit else self.iou >= overlap
        reached &= self.object_index >= 0
        hits = np.zeros(len(self.iou), dtype=bool)
        _, first = np.unique(self.object_index[reached], return_index=True)  # the best scored claim of each object
        hits[np.flatnonzero(reached)[first]] = True
        ignored = np.zeros(len(self.iou), dtype=bool)
        ignored[reached] = self.difficult[self.object_index[reached]]
        hits = hits[~ignored]
        found, tried = np.cumsum(hits), np.arange(1, len(hits) + 1)
        num_objects = int((~self.difficult).sum())
        return Curve(found / max(num_objects, 1), found / tried, num_objects)


def match(truths: Sequence[GroundTruth], detections: Iterable[Detections], num_classes: int) -> list[Matches]:
    """Pair the detections of each class 1..K with ground truth. Equal scores keep the order of the images.

    Raises KeyError for detections of an image that has no ground truth record, not even an empty one.
    """
    image_number = {truth.image_id: number for number, truth in enumerate(truths)}
    found = list(detections)
    count = [len(item.scores) for item in found]
    images = np.repeat([image_number[item.image_id] for item in found], count).astype(np.int64)
    labels = _join([item.labels for item in found], np.int64)
    scores = _join([item.scores for item in found], np.float64)
    boxes = _join([item.boxes for item in found], np.float64).reshape(-1, 4)
    order = np.lexsort((images, -scores))
    images, labels, boxes = images[order], labels[order], boxes[order]

    gt_images = np.repeat(np.arange(len(truths)), [len(truth.labels) for truth in truths])
    gt_labels = _join([truth.labels for truth in truths], np.int64)
    gt_boxes = _join([truth.boxes for truth in truths], np.float64).reshape(-1, 4)
    difficult = _join([truth.difficult for truth in truths], bool)

    result = []
    for label in range(1, num_classes + 1):
        of_class, objects = labels == label, gt_labels == label
        index, iou = _best_object(boxes[of_class], images[of_class], gt_boxes[objects], gt_images[objects])
        result.append(Matches(index, iou, difficult[objects]))
    return result


def _join(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *(array.ravel() for array in arrays)]).astype(dtype)


def _best_object(
    boxes: np.ndarray, images: np.ndarray, gt_boxes: np.ndarray, gt_images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each box the index and overlap of the object of its image it overlaps most, the first of equals; else -1, 0.

    `gt_images` is sorted, so the objects of an image stand together; all pairs of a box and an object of its image
    are laid end to end and computed at once.
    """
    start = np.searchsorted(gt_images, images, side="left")
    count = np.searchsorted(gt_images, images, side="right") - start
    best_index, best_iou = np.full(len(boxes), -1, dtype=np.int64), np.zeros(len(boxes))
    some = np.flatnonzero(count)
    if len(some) == 0:
        return best_index, best_iou
    ends = np.cumsum(count[some])
    begins = ends - count[some]
    box_index = np.repeat(some, count[some])
    gt_index = np.arange(ends[-1]) - np.repeat(begins - start[some], count[some])
    iou = _pair_iou(boxes[box_index], gt_boxes[gt_index])
    best_iou[some] = np.maximum.reduceat(iou, begins)
    is_best = iou == np.repeat(best_iou[some], count[some])
    candidates = np.where(is_best, gt_index, np.iinfo(np.int64).max)
    best_index[some] = np.minimum.reduceat(candidates, begins)
    return best_index, best_iou


def _pair_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Overlap (N,) of each box with the box of the same row, in float64: a threshold is met exactly or not at all."""
    wh = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    intersection = np.clip(wh, 0, None).prod(axis=1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (others[:, 2:] - others[:, :2]).prod(axis=1)
    return intersection / (area - intersection)


def eleven_point_ap(curve: Curve, devkit: bool = False) -> float | None:
    """Mean over recall 0, 0.1, .. 1 of the best precision at that recall or beyond; None without objects.

    devkit: the steps of the published code, whose 0.3, 0.6 and 0.7 lie a rounding error above, so that a recall of
        exactly 3 in 10 does not reach 0.3.
    """
    if curve.num_objects == 0:
        return None
    steps = np.arange(0.0, 1.1, 0.1) if devkit else np.arange(11) / 10
    best = [curve.precision[curve.recall >= recall].max(initial=0.0) for recall in steps]
    return float(np.mean(best))


def area_ap(curve: Curve) -> float | None:
    """Area under the curve once precision at each recall is the best there or beyond; None without objects."""
    if curve.num_objects == 0:
        return None
    recall = np.concatenate([[0.0], curve.recall])
    monotonic = np.maximum.accumulate(curve.precision[::-1])[::-1]
    return float((np.diff(recall) * monotonic).sum())
