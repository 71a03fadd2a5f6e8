"""Several sets of detections of the same images, compared with the first: AP with confidence intervals, and objects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detector.evaluation.bootstrap import interval, mean_ap, resample_images, weighted_ap
from detector.evaluation.matching import HIT, Matches

FOUND_SCORE = 0.5  # an object is found by a hit of at least this score


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Compared:
    """One run. Names of classes, and "mAP" for their mean."""

    ap: dict[str, Estimate]
    difference: dict[str, Estimate]  # to the first run: paired


def compare(
    runs: Mapping[str, Matches], classes: Sequence[str], metric: str, devkit: bool, num_images: int
) -> dict[str, Compared]:
    """Compare each run with the first. The matches are with the same ground truth; metric as in `weighted_ap`."""
    weights = np.vstack([np.ones((1, num_images), dtype=np.int64), resample_images(num_images)])
    aps = {name: weighted_ap(matches, metric, weights, devkit) for name, matches in runs.items()}
    tables = {name: np.column_stack([mean_ap(ap), ap]) for name, ap in aps.items()}
    base = next(iter(tables.values()))
    return {
        name: Compared(_estimates(table, classes), _estimates(table - base, classes)) for name, table in tables.items()
    }


def _estimates(table: np.ndarray, classes: Sequence[str]) -> dict[str, Estimate]:
    """From values (1 + S, 1 + K), the first row of which is that of all images once."""
    names = ["mAP", *classes]
    return {
        name: Estimate(float(column[0]), *interval(column[1:])) for name, column in zip(names, table.T, strict=True)
    }


def found_by_one(one: Matches, other: Matches, iou_threshold: float, devkit: bool) -> list[tuple[int, int]]:
    """(object, detection of `one`) for each object that only `one` finds, the largest difference of scores first."""
    scores, detections = _best_hits(one, iou_threshold, devkit)
    others, _ = _best_hits(other, iou_threshold, devkit)
    only = np.flatnonzero((scores >= FOUND_SCORE) & (others < FOUND_SCORE))
    only = only[np.argsort(others[only] - scores[only], kind="stable")]
    return [(int(index), int(detections[index])) for index in only]


def _best_hits(matches: Matches, iou_threshold: float, devkit: bool) -> tuple[np.ndarray, np.ndarray]:
    """For each object the score of its hit, 0 without one, and its index."""
    hits = np.flatnonzero(matches.judge(iou_threshold, devkit) == HIT)
    scores, detections = np.zeros(len(matches.objects.labels)), np.full(len(matches.objects.labels), -1)
    scores[matches.object_index[hits]], detections[matches.object_index[hits]] = matches.scores[hits], hits
    return scores, detections
