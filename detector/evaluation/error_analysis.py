"""Errors by kind, and the mAP that each kind costs.

Kinds and costs follow TIDE (Bolya et al., *TIDE: A General Toolbox for Identifying Object Detection Errors*, ECCV 2020,
section 2). A false positive is of the first kind that applies, at an IoU threshold t (default 0.5):

    duplicate     IoU with an object of its class is at least t, but a better scored detection has matched that
    localisation  IoU with an object of its class is from 0.1 to t
    confusion     IoU with an object of another class is at least t: right place, wrong class
    both          IoU with an object of another class is from 0.1 to t: wrong class and badly localised
    background    IoU with every object is below 0.1

and `missed` is an object that no detection hits, not even with localisation and class corrected. The cost of a kind is
the gain in mAP if only its errors are fixed: a localisation or confusion error becomes a hit on its object (only the
best scored of several on one object), the other false positives are removed, and missed objects are no longer counted.
Costs do not add up to 1 - mAP: fixing one kind changes the weight of the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detector.box_arrays import pair_iou
from detector.evaluation.matching import HIT, IGNORED, MISS, Curve, Matches, best_object, make_curves
from detector.evaluation.voc_ap import area_ap

FALSE_POSITIVES = ("duplicate", "localisation", "confusion", "both", "background")
DUPLICATE, LOCALISATION, CONFUSION, BOTH, BACKGROUND = range(5)
KINDS = (*FALSE_POSITIVES, "missed")
BACKGROUND_IOU = 0.1


@dataclass(frozen=True)
class Errors:
    """The kind of error of every detection and object."""

    judged: np.ndarray  # (N,) int8: HIT, MISS or IGNORED, in the order of the matches
    kind: np.ndarray  # (N,) int8: index in FALSE_POSITIVES of a miss, else -1
    target: np.ndarray  # (N,) int64: the object hit or nearly hit; -1 on background
    iou: np.ndarray  # (N,) float64, with the target
    missed: np.ndarray  # (G,) bool

    def of_kind(self, kind: str) -> np.ndarray:
        """Indices of detections, best scored first within a class; for `missed`, indices of objects."""
        return np.flatnonzero(self.missed if kind == "missed" else self.kind == FALSE_POSITIVES.index(kind))


def find_errors(matches: Matches, iou_threshold: float = 0.5, devkit: bool = False) -> Errors:
    """Classify the misses and the objects not found by kind."""
    objects, judged = matches.objects, matches.judge(iou_threshold, devkit)
    misses = np.flatnonzero(judged == MISS)
    boxes, labels = matches.boxes[misses], matches.labels[misses]

    def iou_of_another_class(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return pair_iou(boxes[one], objects.boxes[other]) * (labels[one] != objects.labels[other])

    may_be_meant = np.where(objects.crowd | (objects.labels > matches.num_classes), -1, objects.images)
    other_index, other_iou = best_object(matches.images[misses], may_be_meant, iou_of_another_class)
    same_index, same_iou = matches.object_index[misses], matches.iou[misses]

    kind = np.full(len(judged), -1, dtype=np.int8)
    kind[misses] = np.select(
        [
            matches.reached(iou_threshold, devkit)[misses],
            same_iou >= BACKGROUND_IOU,
            other_iou > iou_threshold if devkit else other_iou >= iou_threshold,
            other_iou >= BACKGROUND_IOU,
        ],
        [DUPLICATE, LOCALISATION, CONFUSION, BOTH],
        default=BACKGROUND,
    )
    target, iou = matches.object_index.copy(), matches.iou.copy()
    other = np.isin(kind[misses], [CONFUSION, BOTH])
    target[misses] = np.select([kind[misses] == BACKGROUND, other], [-1, other_index], same_index)
    iou[misses] = np.where(other, other_iou, same_iou)

    covered = np.zeros(len(objects.labels), dtype=bool)
    covered[target[(judged == HIT) | (kind == LOCALISATION) | (kind == CONFUSION)]] = True
    missed = objects.counted() & (objects.labels <= matches.num_classes) & ~covered
    return Errors(judged, kind, target, iou, missed)


def error_costs(matches: Matches, errors: Errors) -> dict[str, float | None]:
    """The gain in mAP (area) from fixing each kind of error; None without objects."""
    classes = slice(1, matches.num_classes + 1)
    labels = matches.objects.labels
    num_objects = np.bincount(labels[matches.objects.counted()], minlength=classes.stop)[classes]
    if not num_objects.any():
        return dict.fromkeys(KINDS)
    actual = _mean_ap(make_curves(matches.labels, errors.judged, num_objects), num_objects)
    fixed = {}
    for kind in FALSE_POSITIVES:
        if kind in ("localisation", "confusion"):
            curves = make_curves(*_corrected(matches, errors, errors.of_kind(kind)), num_objects)
        else:
            judged = errors.judged.copy()
            judged[errors.of_kind(kind)] = IGNORED
            curves = make_curves(matches.labels, judged, num_objects)
        fixed[kind] = _mean_ap(curves, num_objects)
    found = num_objects - np.bincount(labels[errors.missed], minlength=classes.stop)[classes]
    fixed["missed"] = _mean_ap(make_curves(matches.labels, errors.judged, found), num_objects)
    return {kind: value - actual for kind, value in fixed.items()}


def _corrected(matches: Matches, errors: Errors, detections: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and judgements, sorted again, with these detections given the class and box of their objects."""
    objects, labels, judged = matches.objects, matches.labels.copy(), errors.judged.copy()
    labels[detections] = objects.labels[errors.target[detections]]
    claims = np.concatenate([np.flatnonzero(judged == HIT), detections])
    claims = claims[np.argsort(-matches.scores[claims], kind="stable")]
    _, first = np.unique(errors.target[claims], return_index=True)
    best = claims[first]
    judged[claims] = IGNORED
    judged[best[~objects.ignored[errors.target[best]]]] = HIT
    if np.array_equal(labels, matches.labels):
        return labels, judged
    order = np.lexsort((matches.images, -matches.scores, labels))
    return labels[order], judged[order]


def _mean_ap(curves: Sequence[Curve], num_objects: np.ndarray) -> float:
    """Mean over the classes that have objects; a class without any counted object left has AP 1."""
    aps = [area_ap(curve) for curve, number in zip(curves, num_objects, strict=True) if number]
    return float(np.mean([1.0 if ap is None else ap for ap in aps]))
