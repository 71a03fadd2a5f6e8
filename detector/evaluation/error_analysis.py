"""Errors by kind, and the mAP that each kind costs.

Kinds and costs follow TIDE (Bolya et al., *TIDE: A General Toolbox for Identifying Object Detection Errors*, ECCV 2020,
section 2). A detection that is a miss is the first of these that fits, at an overlap t (0.5 unless told otherwise):

    duplicate     overlaps an object of its class by t or more, but a better scored detection claimed that
    localisation  overlaps an object of its class by 0.1 to t
    confusion     overlaps an object of another class by t or more: right place, wrong class
    both          overlaps an object of another class by 0.1 to t: wrong class and badly localised
    background    overlaps no object by 0.1

and `missed` is an object that no detection hits, nor would if localisation and class were put right. The cost of a kind
is the mAP that would be gained if its errors alone were mended: a localisation or confusion becomes a hit on its object
(of several claims of one object the best scored stays), the other detections go away, and objects that are missed are
no longer looked for. Costs do not add up to what lacks for mAP 1: mending one kind changes the weight of the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detector.evaluation.matching import HIT, IGNORED, MISS, Curve, Matches, best_object, make_curves, pair_iou
from detector.evaluation.voc_ap import area_ap

FALSE_POSITIVES = ("duplicate", "localisation", "confusion", "both", "background")
DUPLICATE, LOCALISATION, CONFUSION, BOTH, BACKGROUND = range(5)
KINDS = (*FALSE_POSITIVES, "missed")
BACKGROUND_OVERLAP = 0.1


@dataclass(frozen=True)
class Errors:
    """Every detection's kind of error, and every object's."""

    judged: np.ndarray  # (N,) int8: HIT, MISS or IGNORED, in the order of the matches
    kind: np.ndarray  # (N,) int8: place in FALSE_POSITIVES of a miss, else -1
    target: np.ndarray  # (N,) int64: the object that was hit or is meant; -1 on background
    iou: np.ndarray  # (N,) float64, with the target
    missed: np.ndarray  # (G,) bool

    def of_kind(self, kind: str) -> np.ndarray:
        """Indices of detections, best scored first within a class; of `missed`, of objects."""
        return np.flatnonzero(self.missed if kind == "missed" else self.kind == FALSE_POSITIVES.index(kind))


def find_errors(matches: Matches, overlap: float = 0.5, devkit: bool = False) -> Errors:
    """Sort the misses and the objects that were not found by kind."""
    objects, judged = matches.objects, matches.judge(overlap, devkit)
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
            matches.reached(overlap, devkit)[misses],
            same_iou >= BACKGROUND_OVERLAP,
            other_iou > overlap if devkit else other_iou >= overlap,
            other_iou >= BACKGROUND_OVERLAP,
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
    """The mAP (area) that mending each kind of error would gain; None without any object."""
    classes = slice(1, matches.num_classes + 1)
    labels = matches.objects.labels
    num_objects = np.bincount(labels[matches.objects.counted()], minlength=classes.stop)[classes]
    if not num_objects.any():
        return dict.fromkeys(KINDS)
    base = _mean_ap(make_curves(matches.labels, errors.judged, num_objects), num_objects)
    mended = {}
    for kind in FALSE_POSITIVES:
        if kind in ("localisation", "confusion"):
            curves = make_curves(*_put_right(matches, errors, errors.of_kind(kind)), num_objects)
        else:
            judged = errors.judged.copy()
            judged[errors.of_kind(kind)] = IGNORED
            curves = make_curves(matches.labels, judged, num_objects)
        mended[kind] = _mean_ap(curves, num_objects)
    found = num_objects - np.bincount(labels[errors.missed], minlength=classes.stop)[classes]
    mended["missed"] = _mean_ap(make_curves(matches.labels, errors.judged, found), num_objects)
    return {kind: value - base for kind, value in mended.items()}


def _put_right(matches: Matches, errors: Errors, detections: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and judgements, sorted again, after these detections have got class and box of their objects."""
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
    """Over the classes that have objects; one of which none is left to be found is at 1."""
    aps = [area_ap(curve) for curve, number in zip(curves, num_objects, strict=True) if number]
    return float(np.mean([1.0 if ap is None else ap for ap in aps]))
