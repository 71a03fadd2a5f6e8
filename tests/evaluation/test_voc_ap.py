import json
import math
from pathlib import Path

import numpy as np
import pytest

from detector.data.formats.voc import read_voc
from detector.evaluation.matching import match
from detector.evaluation.results import read_result_files
from detector.evaluation.voc_ap import area_ap, eleven_point_ap, score_sizes, score_voc
from tests.conftest import ground_truth
from tests.helpers.scoring import found, random_case, slow_ap

BOX = (0, 0, 10, 10)
FAR = (50, 50, 60, 60)


def score(truths, detections, classes, *args, **options):
    return score_voc(match(truths, detections, len(classes)), classes, *args, **options)


def ap(truths, detections, metric="area@0.50", classes=("cat",), **options):
    return score(truths, detections, classes, **options)[0][metric]["AP"][classes[0]]


def test_literal_curve():
    """A hit, a miss, a hit: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1."""
    truths = [ground_truth("a", (1, *BOX), (1, *FAR))]
    detections = [found("a", (1, 0.9, *BOX), (1, 0.8, 20, 20, 30, 30), (1, 0.7, *FAR))]
    assert ap(truths, detections) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert ap(truths, detections, "11point@0.50") == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_a_second_detection_of_an_object_is_a_miss():
    detections = [found("a", (1, 0.9, *BOX), (1, 0.8, *BOX))]
    assert ap([ground_truth("a", (1, *BOX), (1, *FAR))], detections) == pytest.approx(0.5)
    _, curves = score([ground_truth("a", (1, *BOX), (1, *FAR))], detections, ["cat"])
    assert curves["0.50"]["cat"].precision.tolist() == [1.0, 0.5]


def test_the_best_score_claims_the_object_whatever_the_order():
    detections = [found("a", (1, 0.5, 0, 0, 10, 9), (1, 0.9, 0, 0, 10, 8))]
    _, curves = score([ground_truth("a", (1, *BOX))], detections, ["cat"])
    assert curves["0.50"]["cat"].precision.tolist() == [1.0, 0.5]


def test_difficult_objects_are_neither_hits_nor_misses():
    truths = [ground_truth("a", (1, *BOX), (1, *FAR, True))]
    detections = [found("a", (1, 0.9, *FAR), (1, 0.8, *FAR), (1, 0.7, *BOX))]
    assert ap(truths, detections) == 1.0


def test_objects_of_another_image_or_class_do_not_count():
    truths = [ground_truth("a", (1, *BOX)), ground_truth("b", (2, *BOX))]
    metrics, _ = score(truths, [found("a", (2, 0.9, *BOX)), found("b", (1, 0.9, *BOX))], ["cat", "dog"])
    assert metrics["area@0.50"]["AP"] == {"cat": 0.0, "dog": 0.0}


def test_a_class_without_objects_is_not_in_the_mean():
    truths = [ground_truth("a", (1, *BOX), (3, *FAR, True))]
    metrics, _ = score(truths, [found("a", (1, 0.9, *BOX), (2, 0.9, *BOX))], ["cat", "unicorn", "hidden"])
    assert metrics["area@0.50"] == {"mAP": 1.0, "AP": {"cat": 1.0, "unicorn": None, "hidden": None}}
    nothing, _ = score([ground_truth("a")], [found("a")], ["cat"])
    assert nothing["11point@0.50"] == {"mAP": None, "AP": {"cat": None}}


def test_no_detections_score_0():
    assert ap([ground_truth("a", (1, *BOX))], [found("a")]) == 0.0
    assert ap([ground_truth("a", (1, *BOX))], []) == 0.0


def test_an_iou_of_the_threshold_is_a_hit_but_not_for_the_devkit():
    truths, detections = [ground_truth("a", (1, *BOX))], [found("a", (1, 0.9, 0, 0, 10, 5))]
    assert ap(truths, detections) == 1.0
    assert ap(truths, detections, devkit=True) == 0.0


def test_a_recall_of_3_in_10_reaches_0_3_but_not_for_the_devkit():
    objects = [(1, 20 * n, 0, 20 * n + 10, 10) for n in range(10)]
    detections = [found("a", *[(1, 0.9, *box) for _, *box in objects[:3]])]
    assert ap([ground_truth("a", *objects)], detections, "11point@0.50") == pytest.approx(4 / 11)
    assert ap([ground_truth("a", *objects)], detections, "11point@0.50", devkit=True) == pytest.approx(3 / 11)


def test_equal_scores_keep_the_order_of_images():
    truths = [ground_truth("b"), ground_truth("a", (1, *BOX))]
    detections = [found("b", (1, 0.5, *BOX)), found("a", (1, 0.5, *BOX))]
    assert ap(truths, detections) == ap(truths, detections[::-1]) == 0.5


@pytest.mark.parametrize("cases", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_cases_equal_the_slow_rules(cases):
    generator = np.random.default_rng(0)
    for case in range(cases):
        truths, detections = random_case(generator)
        matches = match(truths, detections, num_classes=2)
        for area_range in ((0, math.inf), (8, 16)):
            for label, curve in enumerate(matches.curves(0.5, area_range=area_range), start=1):
                expected = slow_ap(truths, detections, label, 0.5, area_range)
                assert eleven_point_ap(curve) == pytest.approx(expected[0]), case
                assert area_ap(curve) == pytest.approx(expected[1]), case


def test_the_mean_over_overlaps():
    """IoU 0.7 is a hit at 0.50, 0.55, .. 0.70: at five of the ten overlaps."""
    truths, detections = [ground_truth("a", (1, *BOX))], [found("a", (1, 0.9, 0, 0, 10, 7))]
    metrics, _ = score(truths, detections, ["cat", "unicorn"], [0.9])
    assert metrics["area@0.50:0.95"] == {"mAP": 0.5, "AP": {"cat": 0.5, "unicorn": None}}
    assert metrics["11point@0.50:0.95"]["mAP"] == 0.5
    assert metrics["area@0.90"]["mAP"] == 0.0


def test_crowds_need_not_be_found_and_misses_in_them_are_ignored():
    crowd = (1, 100, 100, 200, 200, False, True)
    truths = [ground_truth("a", (1, *BOX), crowd)]
    inside, half_out, beside = (100, 100, 110, 110), (190, 100, 210, 110), (192, 100, 212, 110)
    assert ap(truths, [found("a", (1, 0.9, *inside), (1, 0.8, *half_out), (1, 0.7, *BOX))]) == 1.0
    assert ap(truths, [found("a", (1, 0.9, *beside), (1, 0.8, *BOX))]) == 0.5
    other_class = [ground_truth("a", (1, *BOX), (2, *crowd[1:]))]
    assert ap(other_class, [found("a", (1, 0.9, *inside), (1, 0.8, *BOX))], classes=("cat", "dog")) == 0.5


def test_ap_by_size():
    small, large = (0, 0, 32, 32), (100, 100, 200, 200)
    truths = [ground_truth("a", (1, *small), (1, *large))]
    stray = (300, 300, 310, 310)
    matches = match(truths, [found("a", (1, 0.9, *stray), (1, 0.8, *large), (1, 0.7, *small))], 1)
    sizes = score_sizes(matches, ["cat"], 0.5)
    assert sizes["small"] == {"objects": 1, "mAP": 0.5, "AP": {"cat": 0.5}}
    assert sizes["medium"] == {"objects": 1, "mAP": 1.0, "AP": {"cat": 1.0}}  # 32 x 32 is both
    assert sizes["large"] == {"objects": 1, "mAP": 1.0, "AP": {"cat": 1.0}}
    assert score_sizes(match([ground_truth("a")], [], 1), ["cat"], 0.5)["large"]["mAP"] is None


def test_matching_in_parts_changes_nothing(monkeypatch):
    truths, detections = random_case(np.random.default_rng(7))
    whole = match(truths, detections, 2)
    monkeypatch.setattr("detector.evaluation.matching.PAIRS_AT_ONCE", 1)
    parts = match(truths, detections, 2)
    assert whole.object_index.tolist() == parts.object_index.tolist()
    assert whole.iou.tolist() == parts.iou.tolist()
    assert len(whole.iou) > 5


def test_the_published_evaluator_s_values(shared: Path):
    root = shared / "golden/voc_eval"
    expected = json.loads((root / "expected_ap.json").read_text())
    dataset = read_voc(root, "test").with_classes(tuple(expected["area@0.5"]))
    truths = [dataset.ground_truth(index) for index in range(len(dataset))]
    detections = read_result_files(root / "results", dataset.image_ids, dataset.classes)
    metrics, _ = score(truths, detections, dataset.classes, [0.5, 0.7], devkit=True)
    for key, values in expected.items():
        metric, overlap = key.removeprefix("voc07_").split("@")
        assert metrics[f"{metric}@{float(overlap):.2f}"]["AP"] == pytest.approx(values, abs=1e-6)
