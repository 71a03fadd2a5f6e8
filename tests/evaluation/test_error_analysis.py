import numpy as np
import pytest

from detector.evaluation.error_analysis import BACKGROUND, FALSE_POSITIVES, KINDS, error_costs, find_errors
from detector.evaluation.matching import HIT, match
from detector.structures import Detections
from tests.conftest import ground_truth
from tests.helpers.scoring import found, random_case, slow_ap

CAT, DOG, BIRD = 1, 2, 3
A, B, C, D = (0, 0, 10, 10), (100, 0, 110, 10), (200, 0, 210, 10), (300, 0, 310, 10)


def kinds_of(matches, errors):
    names = [*FALSE_POSITIVES, "none"]
    return {float(score): names[kind] for score, kind in zip(matches.scores, errors.kind, strict=True)}


def errors_of(truths, detections, num_classes=3, **options):
    matches = match(truths, detections, num_classes)
    return matches, find_errors(matches, **options)


def test_each_kind():
    truths = [ground_truth("a", (CAT, *A), (DOG, *B), (CAT, *C), (BIRD, *D), (BIRD, 400, 0, 410, 10, True))]
    detections = [
        found(
            "a",
            (CAT, 0.875, *A),
            (CAT, 0.75, *A),
            (CAT, 0.625, 200, 0, 210, 3),
            (CAT, 0.5, *B),
            (CAT, 0.375, 100, 0, 110, 3),
            (CAT, 0.25, 900, 0, 910, 10),
            (BIRD, 0.125, 400, 0, 410, 10),  # on a difficult object
        )
    ]
    matches, errors = errors_of(truths, detections)
    assert kinds_of(matches, errors) == {
        0.875: "none", 0.75: "duplicate", 0.625: "localisation", 0.5: "confusion", 0.375: "both", 0.25: "background",
        0.125: "none",
    }  # fmt: skip
    assert errors.missed.tolist() == [False, False, False, True, False]  # only for the bird is there no other error
    assert errors.target[matches.labels == CAT].tolist() == [0, 0, 2, 1, 1, -1]
    assert errors.iou[matches.labels == CAT].tolist() == pytest.approx([1, 1, 0.3, 1, 0.3, 0])
    assert errors.of_kind("confusion").tolist() == [3]
    assert errors.of_kind("missed").tolist() == [3]


def test_exactly_the_overlap_is_enough_but_for_the_devkit():
    half = found("a", (CAT, 0.5, 100, 0, 110, 5))  # of the dog
    for devkit, kind in ((False, "confusion"), (True, "both")):
        assert kinds_of(*errors_of([ground_truth("a", (DOG, *B))], [half], devkit=devkit)) == {0.5: kind}


def test_an_error_in_its_own_class_comes_before_one_in_another():
    truths = [ground_truth("a", (CAT, 0, 0, 10, 3), (DOG, *A))]
    matches, errors = errors_of(truths, [found("a", (CAT, 0.5, *A))])
    assert kinds_of(matches, errors) == {0.5: "localisation"}
    assert kinds_of(*errors_of(truths, [found("a", (CAT, 0.5, *A))], iou_threshold=0.3)) == {0.5: "none"}


def costs(truths, detections, num_classes):
    return error_costs(*errors_of(truths, detections, num_classes))


def test_what_each_kind_costs():
    """AP 0.5 in each case: a miss that is scored above the one hit, or one of two objects not found."""
    one, two = [ground_truth("a", (CAT, *A))], [ground_truth("a", (CAT, *A), (CAT, *B))]
    none = dict.fromkeys(KINDS, 0.0)
    background = costs(one, [found("a", (CAT, 0.9, *C), (CAT, 0.8, *A))], 1)
    assert background == none | {"background": 0.5}
    assert costs(two, [found("a", (CAT, 0.9, *A))], 1) == none | {"missed": 0.5}
    badly = (100, 0, 110, 4)
    assert costs(two, [found("a", (CAT, 0.9, *A), (CAT, 0.8, *badly))], 1) == none | {"localisation": 0.5}
    duplicate = costs(two, [found("a", (CAT, 0.9, *A), (CAT, 0.85, *A), (CAT, 0.8, *B))], 1)
    assert duplicate == none | {"duplicate": pytest.approx(1 - (0.5 + 0.5 * 2 / 3))}
    dog_as_cat = [ground_truth("a", (CAT, *A), (DOG, *B))]
    confused = costs(dog_as_cat, [found("a", (CAT, 0.9, *B), (CAT, 0.8, *A))], 2)  # cat 0.5, dog 0
    assert confused == none | {"confusion": 0.75}
    both = costs(dog_as_cat, [found("a", (CAT, 0.9, *badly), (CAT, 0.8, *A), (DOG, 0.9, *B))], 2)
    assert both == none | {"both": 0.25}


def test_a_mended_error_does_not_count_twice():
    """The dog is found already; the cat on it, put right, would be a second claim and goes away."""
    truths = [ground_truth("a", (CAT, *A), (DOG, *B))]
    detections = [found("a", (CAT, 0.9, *B), (CAT, 0.8, *A), (DOG, 0.7, *B))]
    assert costs(truths, detections, 2)["confusion"] == 0.25


def test_without_detections_and_without_objects():
    truths = [ground_truth("a", (CAT, *A))]
    assert costs(truths, [], 1) == dict.fromkeys(KINDS, 0.0) | {"missed": 1.0}
    assert costs([ground_truth("a")], [found("a", (CAT, 0.9, *A))], 1) == dict.fromkeys(KINDS)


def test_random_cases_are_sorted_completely():
    """Every miss is of one kind, every object hit, covered or missed; what a kind costs is seen by leaving it out."""
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(1000):
        truths, detections = random_case(generator)
        matches, errors = errors_of(truths, detections, 2)
        assert ((errors.kind >= 0) == (errors.judged == 0)).all()
        seen |= set(errors.kind.tolist())
        hit = errors.target[errors.judged == HIT]
        assert not errors.missed[hit].any()
        assert not errors.missed[matches.objects.ignored].any()
        kept = [
            Detections(truth.image_id, matches.boxes[mine], matches.labels[mine], matches.scores[mine])
            for number, truth in enumerate(truths)
            for mine in [(errors.kind != BACKGROUND) & (matches.images == number)]
        ]
        pairs = [(slow_ap(truths, d, 1, 0.5)[1], slow_ap(truths, d, 2, 0.5)[1]) for d in (detections, kept)]
        if pairs[0] != (None, None):
            before, after = (np.mean([ap for ap in pair if ap is not None]) for pair in pairs)
            assert error_costs(matches, errors)["background"] == pytest.approx(after - before)
    assert seen == {-1, 0, 1, 2, 3, 4}
