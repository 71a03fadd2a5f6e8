"""Average precision as the Pascal VOC challenge defines it (Everingham et al., IJCV 2010, section 4.2).

Two metrics are made of the precision-recall curve: `11point`, the mean of the best precision at recall 0, 0.1, .. 1
and beyond (VOC 2007), and `area` under the curve made monotonic (VOC 2010 and later).
"""

import math
from collections.abc import Sequence

import numpy as np

from detector.evaluation.matching import Curve, Matches, Range

MEAN = "0.50:0.95"  # the mean over these ten overlaps
MEAN_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
# Areas in pixels, ends included: COCO's.
SIZES: dict[str, Range] = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, math.inf)}


def score_voc(
    matches: Matches, classes: Sequence[str], iou_thresholds: Sequence[float] = (0.5,), devkit: bool = False
) -> tuple[dict, dict[str, dict[str, Curve]]]:
    """Score by both metrics at each overlap, and by the mean of each over the overlaps 0.50, 0.55, .. 0.95.

    Returns (metrics, curves): metrics like `{"11point@0.50": {"mAP": 0.7, "AP": {"cat": 0.7, "unicorn": None}}, ...,
    "area@0.50:0.95": ...}` and curves by overlap ("0.50") and class. A class without an object has the AP None and is
    not in the mean; the mean over no class is None.

    devkit: count as the Python code that published numbers come from: a hit needs an overlap > threshold, where the
        challenge and this program take one >= threshold; and see `eleven_point_ap`. That code reads rounded values
        from files: to have its exact numbers, score what went `round_trip_results` (results.py).
    """
    by_overlap = {overlap: matches.curves(overlap, devkit) for overlap in {*iou_thresholds, *MEAN_THRESHOLDS}}
    columns = {f"{overlap:.2f}": [overlap] for overlap in iou_thresholds} | {MEAN: MEAN_THRESHOLDS}
    metrics = {
        f"{metric}@{column}": with_mean(
            {
                name: _mean([average_precision(by_overlap[overlap][index], metric, devkit) for overlap in averaged])
                for index, name in enumerate(classes)
            }
        )
        for column, averaged in columns.items()
        for metric in ("11point", "area")
    }
    curves = {f"{overlap:.2f}": dict(zip(classes, by_overlap[overlap], strict=True)) for overlap in iou_thresholds}
    return metrics, curves


def score_sizes(matches: Matches, classes: Sequence[str], overlap: float, devkit: bool = False) -> dict[str, dict]:
    """AP by the size of objects, at one overlap, `area` metric.

    Returns for each of SIZES `{"objects": 12, "mAP": 0.7, "AP": {"cat": 0.7, ...}}`, None as in `score_voc`.
    """
    sizes = {}
    for size, area_range in SIZES.items():
        curves = matches.curves(overlap, devkit, area_range)
        ap = {name: area_ap(curve) for name, curve in zip(classes, curves, strict=True)}
        sizes[size] = {"objects": sum(curve.num_objects for curve in curves)} | with_mean(ap)
    return sizes


def with_mean(ap: dict[str, float | None]) -> dict:
    """`{"mAP": .., "AP": ..}` of the AP by class."""
    return {"mAP": _mean([value for value in ap.values() if value is not None]), "AP": ap}


def _mean(values: Sequence[float | None]) -> float | None:
    """None of nothing, and of values that are not defined: a class has objects at every overlap or at none."""
    return None if not values or values[0] is None else float(np.mean(np.array(values, dtype=float)))


def average_precision(curve: Curve, metric: str, devkit: bool = False) -> float | None:
    """By the metric `area` or `11point`; None without objects. devkit: see `eleven_point_ap`."""
    return area_ap(curve) if metric == "area" else eleven_point_ap(curve, devkit)


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
