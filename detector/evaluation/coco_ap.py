"""COCO's twelve metrics and the AP of each class (cocodataset.org/#detection-eval), equal to those of pycocotools."""

from collections.abc import Sequence

import numpy as np

from detector.box_arrays import to_xywh
from detector.evaluation.matching import HIT, Curve, Matches, make_curves, within

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")  # pycocotools' order
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
LIMITS = (1, 10, 100)  # of detections per image and class
LARGEST = 1e5**2
AREAS = ((0.0, LARGEST), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, LARGEST))  # all, small, medium, large


def score_coco(matches: Matches, classes: Sequence[str]) -> dict:
    """Score by COCO's rules: the best scored 100 detections per image and class.

    A difficult object is ignored like a crowd: any number of detections can match it. As for other objects, the IoU
    decides.

    Returns the twelve metrics by NAMES, and `classes`, the AP (mean over IoU 0.50:0.95) of each class; None without
    objects.
    """
    judged, order, rank = _judge(matches)
    ap = np.full((len(AREAS), len(IOU_THRESHOLDS), len(classes)), np.nan)
    recall = np.full((len(AREAS), len(LIMITS), *ap.shape[1:]), np.nan)
    for area, area_range in enumerate(AREAS):
        objects = matches.objects
        of_class = objects.labels[objects.counted(area_range)]
        num_objects = np.bincount(of_class, minlength=len(classes) + 1)[1 : len(classes) + 1]
        some = num_objects > 0
        for number, in_groups in enumerate(judged[area]):
            of_threshold = np.empty_like(in_groups)
            of_threshold[order] = in_groups
            curves = make_curves(matches.labels, of_threshold, num_objects)
            ap[area, number, some] = [_mean_precision(curve) for curve in curves if curve.num_objects]
            for limit, detections in enumerate(LIMITS):
                found = matches.labels[(of_threshold == HIT) & (rank < detections)]
                hits = np.bincount(found, minlength=len(classes) + 1)[1:]
                recall[area, limit, number, some] = hits[some] / num_objects[some]
    numbers = [ap[0], ap[0, 0], ap[0, 5], *ap[1:], *recall[0], *recall[1:, -1]]
    return {name: _mean(values) for name, values in zip(NAMES, numbers, strict=True)} | {
        "classes": {name: _mean(ap[0, :, index]) for index, name in enumerate(classes)}
    }


def _judge(matches: Matches) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HIT, MISS or IGNORED (A, T, N) for AREAS and IOU_THRESHOLDS, sorted by class, image and descending score; the
    index (N,) of each in `matches`; and in the order of `matches` the rank (N,), from 0, within image and class.

    `matches` has the best object of each detection, as VOC's rules require. By COCO's rules, a detection whose best
    object is already matched gets another one, so detections are matched again here.
    """
    from detector.evaluation.coco_matching import judge  # imports numba, which takes time

    objects = matches.objects
    order = np.lexsort((matches.images, matches.labels))  # stable: by falling score within an image and class
    by_group = np.lexsort((objects.images, objects.labels))
    by_group = by_group[objects.labels[by_group] <= matches.num_classes]
    images = max(matches.images.max(initial=0), objects.images.max(initial=0)) + 1
    keys = matches.labels[order] * images + matches.images[order]
    object_keys = objects.labels[by_group] * images + objects.images[by_group]
    boxes, others = to_xywh(matches.boxes[order]), to_xywh(objects.boxes[by_group])
    outside = np.array([~within(boxes[:, 2] * boxes[:, 3], area_range) for area_range in AREAS])
    ignored = np.array([~objects.counted(area_range)[by_group] for area_range in AREAS])
    judged = judge(
        keys, boxes, object_keys, others, objects.crowd[by_group], objects.ignored[by_group], ignored, outside,
        IOU_THRESHOLDS, LIMITS[-1],
    )  # fmt: skip
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.searchsorted(keys, keys)
    return judged, order, rank


def _mean_precision(curve: Curve) -> float:
    """Mean over 101 recalls of the best precision at or above each; 0 if the curve does not reach it."""
    best = np.maximum.accumulate(curve.precision[::-1])[::-1]
    return float(np.append(best, 0.0)[np.searchsorted(curve.recall, RECALLS)].mean())


def _mean(values: np.ndarray) -> float | None:
    """Mean of the values that are defined, or None."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None
