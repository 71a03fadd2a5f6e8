"""Average precision as the Pascal VOC challenge defines it (Everingham et al., IJCV 2010, section 4.2).

Two metrics summarize the precision-recall curve: `11point`, the mean of the best precision at or above recall 0, 0.1,
.. 1 (VOC 2007), and `area` under the monotonic curve (VOC 2010 and later).
"""

import math
from collections.abc import Sequence

import numpy as np

from detector.evaluation.matching import Curve, Matches, Range

MEAN = "0.50:0.95"  # the mean over these ten IoU thresholds
MEAN_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
# COCO's areas in pixels, both ends included.
SIZES: dict[str, Range] = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, math.inf)}


def score_voc(
    matches: Matches, classes: Sequence[str], iou_thresholds: Sequence[float] = (0.5,), devkit: bool = False
) -> tuple[dict, dict[str, dict[str, Curve]]]:
    """Both metrics at each IoU threshold, and the mean of each over the IoU thresholds 0.50, 0.55, .. 0.95.

    Returns (metrics, curves): metrics like `{"11point@0.50": {"mAP": 0.7, "AP": {"cat": 0.7, "unicorn": None}}, ...,
    "area@0.50:0.95": ...}` and curves by IoU threshold ("0.50") and class. A class without objects has the AP None and
    is not in the mean; the mean over no class is None.

    devkit: score like the Python code behind published numbers: a hit needs an IoU > threshold, where the challenge
        and this program need an IoU >= threshold; see also `eleven_point_ap`. That code reads rounded values from
        files: for its exact numbers, score the output of `round_trip_results` (results.py).
    """
    aps: dict[tuple[str, float], list[float | None]] = {}
    curves = {}
    for iou in {*iou_thresholds, *MEAN_THRESHOLDS}:
        of_classes = matches.curves(iou, devkit)
        aps["11point", iou] = [eleven_point_ap(curve, devkit) for curve in of_classes]
        aps["area", iou] = [area_ap(curve) for curve in of_classes]
        if iou in iou_thresholds:  # those of all would take 80 MiB for 500 000 detections
            curves[iou] = of_classes
    columns = {f"{iou:.2f}": [iou] for iou in iou_thresholds} | {MEAN: MEAN_THRESHOLDS}
    metrics = {
        f"{metric}@{column}": with_mean(
            {name: _mean([aps[metric, iou][index] for iou in averaged]) for index, name in enumerate(classes)}
        )
        for column, averaged in columns.items()
        for metric in ("11point", "area")
    }
    return metrics, {f"{iou:.2f}": dict(zip(classes, curves[iou], strict=True)) for iou in iou_thresholds}


def score_sizes(
    matches: Matches, classes: Sequence[str], iou_threshold: float, devkit: bool = False
) -> dict[str, dict]:
    """AP by object size, at one IoU threshold, `area` metric.

    Returns `{"objects": 12, "mAP": 0.7, "AP": {"cat": 0.7, ...}}` for each of SIZES, None as in `score_voc`.
    """
    sizes = {}
    for size, area_range in SIZES.items():
        curves = matches.curves(iou_threshold, devkit, area_range)
        ap = {name: area_ap(curve) for name, curve in zip(classes, curves, strict=True)}
        sizes[size] = {"objects": sum(curve.num_objects for curve in curves)} | with_mean(ap)
    return sizes


def with_mean(ap: dict[str, float | None]) -> dict:
    """`{"mAP": .., "AP": ..}` from the AP by class."""
    return {"mAP": _mean([value for value in ap.values() if value is not None]), "AP": ap}


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean, or None for no values and for undefined ones: a class has objects at every IoU threshold or at none."""
    return None if not values or values[0] is None else float(np.mean(np.array(values, dtype=float)))


def eleven_point_ap(curve: Curve, devkit: bool = False) -> float | None:
    """Mean over recall 0, 0.1, .. 1 of the best precision at or above that recall; None without objects.

    devkit: the steps of the published code, where 0.3, 0.6 and 0.7 are too large by a rounding error, so that a recall
        of exactly 3 in 10 does not reach 0.3.
    """
    if curve.num_objects == 0:
        return None
    steps = np.arange(0.0, 1.1, 0.1) if devkit else np.arange(11) / 10
    best = [curve.precision[curve.recall >= recall].max(initial=0.0) for recall in steps]
    return float(np.mean(best))


def area_ap(curve: Curve) -> float | None:
    """Area under the curve of the best precision at or above each recall; None without objects."""
    if curve.num_objects == 0:
        return None
    recall = np.concatenate([[0.0], curve.recall])
    monotonic = np.maximum.accumulate(curve.precision[::-1])[::-1]
    return float((np.diff(recall) * monotonic).sum())
