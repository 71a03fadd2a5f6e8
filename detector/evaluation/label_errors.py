"""Suspected label errors: annotations that disagree with confident detections.

The first three kinds are those of ObjectLab (Tkachenko et al., *ObjectLab: Automated Diagnosis of Mislabeled Images in
Object Detection Data*, 2023); the fourth is an annotation without an object. t is the IoU threshold of scoring:

    missing   a detection with an IoU below 0.1 with every object: is there an object without a label? Its suspicion is
              its score.
    class     a detection of another class with an IoU of at least t: is the label wrong? Its suspicion is its score
              minus that of the best detection of the labelled class on the object.
    box       a detection of the class with an IoU from 0.1 to t: is the annotated box wrong? Its suspicion is its score
              times 1 - IoU / t, minus that of the best detection with an IoU of at least t.
    spurious  an object: is it there at all? Its suspicion is 1 minus the score of the best detection of any class on it
              (IoU at least 0.1), times the fraction of its class that is found with a score of at least 0.5: a network
              that misses most objects of a class says little about one of them.

An object is listed once, with its highest suspicion. A network tends to agree with the labels that it was trained on,
so detections should come from a network that has not seen them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detector.evaluation.error_analysis import BACKGROUND, BACKGROUND_IOU, CONFUSION, DUPLICATE, LOCALISATION, Errors
from detector.evaluation.matching import HIT, Matches
from detector.runtime.files import csv_text

CONFIDENT = 0.5
MIN_SUSPICION, MAX_LISTED = 0.1, 1000


@dataclass(frozen=True)
class Suspect:
    """One suspected label error."""

    kind: str  # missing, class, box or spurious
    suspicion: float  # 0 to 1
    detection: int  # index in the matches; -1 for `spurious`
    target: int  # index of the object; -1 for `missing`


def find_label_errors(matches: Matches, errors: Errors, iou_threshold: float) -> list[Suspect]:
    """The most suspicious first: at most MAX_LISTED with a suspicion of at least MIN_SUSPICION."""
    objects, scores, target = matches.objects, matches.scores, errors.target
    counts = objects.counted() & (objects.labels <= matches.num_classes)
    none = np.zeros(len(counts) + 1)  # the last entry is that of the target -1, no object
    own_score, any_score = none.copy(), none.copy()
    of_class, near = (errors.judged == HIT) | (errors.kind == DUPLICATE), errors.iou >= BACKGROUND_IOU
    np.maximum.at(own_score, target[of_class], scores[of_class])
    np.maximum.at(any_score, target[near], scores[near])
    on_counted = np.append(counts, False)[target]

    badly_placed = scores * (1 - errors.iou / iou_threshold)
    suspects = []
    for kind, is_one, suspicion in (
        ("missing", errors.kind == BACKGROUND, scores),
        ("class", (errors.kind == CONFUSION) & on_counted, scores - own_score[target]),
        ("box", (errors.kind == LOCALISATION) & on_counted, badly_placed - own_score[target]),
    ):
        chosen = np.flatnonzero(is_one & (suspicion >= MIN_SUSPICION))
        suspects += [Suspect(kind, float(suspicion[i]), int(i), int(target[i])) for i in chosen]
    doubt = (1 - any_score[:-1]) * _confident_recall(matches, errors)[objects.labels * counts]
    suspects += [
        Suspect("spurious", float(doubt[i]), -1, int(i)) for i in np.flatnonzero(counts & (doubt >= MIN_SUSPICION))
    ]
    suspects.sort(key=lambda suspect: -suspect.suspicion)
    listed, seen = [], set()
    for suspect in suspects:
        if suspect.target < 0 or suspect.target not in seen:
            listed.append(suspect)
            seen.add(suspect.target)
    return listed[:MAX_LISTED]


def _confident_recall(matches: Matches, errors: Errors) -> np.ndarray:
    """(K+1,) by label: the fraction of the objects of the class that is found with a score of at least CONFIDENT."""
    size = matches.num_classes + 1
    hits = matches.labels[(errors.judged == HIT) & (matches.scores >= CONFIDENT)]
    objects = matches.objects.labels[matches.objects.counted()]
    return np.bincount(hits, minlength=size)[:size] / np.maximum(np.bincount(objects, minlength=size)[:size], 1)


def label_errors_csv(
    suspects: Sequence[Suspect], matches: Matches, image_ids: Sequence[str], classes: Sequence[str]
) -> str:
    """One line per suspect: `label` is the annotated class, `found` that of the detection, either can be empty.

    The box is the annotated one, for `missing` that of the detection, in continuous pixels counted from 0.
    """
    rows = [["image", "kind", "suspicion", "label", "found", "x1", "y1", "x2", "y2"]]
    for suspect in suspects:
        number, box = place_of(suspect, matches)
        label = classes[matches.objects.labels[suspect.target] - 1] if suspect.target >= 0 else ""
        found = classes[matches.labels[suspect.detection] - 1] if suspect.detection >= 0 else ""
        corners = [f"{value:.2f}" for value in box]
        rows.append([image_ids[number], suspect.kind, f"{suspect.suspicion:.4f}", label, found, *corners])
    return csv_text(rows)


def place_of(suspect: Suspect, matches: Matches) -> tuple[int, np.ndarray]:
    """The index of the image, and the box (4,) in question."""
    if suspect.target >= 0:
        return int(matches.objects.images[suspect.target]), matches.objects.boxes[suspect.target]
    return int(matches.images[suspect.detection]), matches.boxes[suspect.detection]
