"""Several sets of detections of the same images, compared with the first: AP with confidence intervals, and objects.

The intervals are those of the bootstrap over images (Efron and Tibshirani 1993, chapter 13). A resample has as many
images as the dataset, drawn with replacement. Its AP is computed exactly: each detection and object counts as often as
its image was drawn. All sets of detections use the same resamples, so the differences of their APs are paired, and the
difficulty of an image for all of them cancels out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from detector.evaluation.matching import HIT, IGNORED, Matches
from detector.evaluation.voc_ap import MEAN, MEAN_THRESHOLDS

RESAMPLES = 1000
MAX_CELLS = 2_000_000  # hits x resamples that are computed at once, in about six arrays of float64
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


def resample_images(num_images: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each image is drawn in each resample, (S, I) int64."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_images, np.full(num_images, 1 / num_images), size=resamples)


def weighted_ap(matches: Matches, metric: str, weights: np.ndarray, devkit: bool = False) -> np.ndarray:
    """AP (S, K) of each class if image i counts weights[s, i] times; NaN without objects.

    metric: as in metrics.json, such as `area@0.50` or `11point@0.50:0.95`; weights (S, I) int64.
    """
    kind, _, at = metric.partition("@")
    thresholds = MEAN_THRESHOLDS if at == MEAN else (float(at),)
    return np.mean([_ap_at(matches, kind, threshold, weights, devkit) for threshold in thresholds], axis=0)


def _ap_at(matches: Matches, kind: str, iou_threshold: float, weights: np.ndarray, devkit: bool) -> np.ndarray:
    judged, objects = matches.judge(iou_threshold, devkit), matches.objects
    counted, aps = objects.counted(), np.full((len(weights), matches.num_classes), np.nan)
    by_image = weights.T.astype(np.float64)  # (I, S)
    for label in range(1, matches.num_classes + 1):
        of_class = np.bincount(objects.images[counted & (objects.labels == label)], minlength=len(by_image))
        rows = np.flatnonzero((matches.labels == label) & (judged != IGNORED))
        images, hits = matches.images[rows], judged[rows] == HIT
        step = max(MAX_CELLS // (int(hits.sum()) + 1), 1)
        for start in range(0, len(weights), step):
            some = by_image[:, start : start + step]
            ap = _ap_of_class(kind, some, images, hits, of_class @ some, devkit)
            aps[start : start + step, label - 1] = ap
    return aps


def _ap_of_class(
    kind: str, weights: np.ndarray, images: np.ndarray, hits: np.ndarray, num_objects: np.ndarray, devkit: bool
) -> np.ndarray:
    """AP (S,) as in `area_ap` and `eleven_point_ap`, from weights (I, S) and the detections (N,), best first.

    Only the H hits are points of the curve: misses lower the precision of the next hit, and those after the last hit
    have no effect. Row h of the sparse matrix counts, for each image, the detections after hit h - 1 up to hit h.
    """
    next_hit, num_hits = np.cumsum(hits) - hits, int(hits.sum())
    used = next_hit < num_hits
    ones = np.ones(int(used.sum()))
    taken = csr_matrix((ones, (next_hit[used], images[used])), shape=(num_hits, len(weights))) @ weights
    found = np.cumsum(weights[images[hits]], axis=0)  # (H, S)
    end = np.zeros((1, weights.shape[1]))
    recall = np.vstack([end, found / np.maximum(num_objects, 1)])
    precision = np.vstack([found / np.maximum(np.cumsum(taken, axis=0), 1), end])
    monotonic = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    if kind == "area":
        ap = (np.diff(recall, axis=0) * monotonic[:-1]).sum(axis=0)
    else:
        steps = np.arange(0.0, 1.1, 0.1) if devkit else np.arange(11) / 10
        first = [(recall[1:] < step).sum(axis=0) for step in steps]  # the first hit with this recall, or the end
        ap = np.mean([np.take_along_axis(monotonic, index[None], axis=0)[0] for index in first], axis=0)
    return np.where(num_objects > 0, ap, np.nan)


def mean_ap(aps: np.ndarray) -> np.ndarray:
    """mAP (S,) over the classes of (S, K) that have objects; NaN if none has."""
    has_objects = ~np.isnan(aps)
    return np.where(has_objects.any(axis=1), np.nansum(aps, axis=1) / np.maximum(has_objects.sum(axis=1), 1), np.nan)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of the values (S,) that are defined; NaN if none is."""
    defined = values[~np.isnan(values)]
    low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (np.nan, np.nan)
    return float(low), float(high)
