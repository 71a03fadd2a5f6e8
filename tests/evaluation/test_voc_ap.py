import json
import math
from pathlib import Path

import numpy as np
import pytest

from detector.data.formats.voc import read_voc
from detector.evaluation.matching import match
from detector.evaluation.results import read_result_files
from detector.evaluation.voc_ap import area_ap, eleven_point_ap, score_sizes, score_voc
from detector.structures import Detections, GroundTruth
from tests.conftest import ground_truth


def found(image_id: str, *detections: tuple) -> Detections:
    """Detections as (label, score, x1, y1, x2, y2)."""
    return Detections(
        image_id,
        np.array([d[2:] for d in detections], dtype=np.float32).reshape(-1, 4),
        np.array([d[0] for d in detections], dtype=np.int64),
        np.array([d[1] for d in detections], dtype=np.float32),
    )


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


def test_difficult_objects_are_neither_hits_nor_misses_nor_to_be_found():
    truths = [ground_truth("a", (1, *BOX), (1, *FAR, True))]
    detections = [found("a", (1, 0.9, *FAR), (1, 0.8, *FAR), (1, 0.7, *BOX))]
    assert ap(truths, detections) == 1.0


def test_objects_of_another_image_or_class_do_not_count():
    truths = [ground_truth("a", (1, *BOX)), ground_truth("b", (2, *BOX))]
    metrics, _ = score(truths, [found("a", (2, 0.9, *BOX)), found("b", (1, 0.9, *BOX))], ["cat", "dog"])
    assert metrics["area@0.50"]["AP"] == {"cat": 0.0, "dog": 0.0}


def test_a_class_without_objects_has_no_ap_and_is_not_in_the_mean():
    truths = [ground_truth("a", (1, *BOX), (3, *FAR, True))]
    metrics, _ = score(truths, [found("a", (1, 0.9, *BOX), (2, 0.9, *BOX))], ["cat", "unicorn", "hidden"])
    assert metrics["area@0.50"] == {"mAP": 1.0, "AP": {"cat": 1.0, "unicorn": None, "hidden": None}}
    nothing, _ = score([ground_truth("a")], [found("a")], ["cat"])
    assert nothing["11point@0.50"] == {"mAP": None, "AP": {"cat": None}}


def test_no_detections_score_0():
    assert ap([ground_truth("a", (1, *BOX))], [found("a")]) == 0.0
    assert ap([ground_truth("a", (1, *BOX))], []) == 0.0


def test_an_overlap_of_exactly_the_threshold_is_a_hit_but_not_for_the_devkit():
    truths, detections = [ground_truth("a", (1, *BOX))], [found("a", (1, 0.9, 0, 0, 10, 5))]
    assert ap(truths, detections) == 1.0
    assert ap(truths, detections, devkit=True) == 0.0


def test_a_recall_of_exactly_3_in_10_reaches_the_step_at_0_3_but_not_for_the_devkit():
    objects = [(1, 20 * n, 0, 20 * n + 10, 10) for n in range(10)]
    detections = [found("a", *[(1, 0.9, *box) for _, *box in objects[:3]])]
    assert ap([ground_truth("a", *objects)], detections, "11point@0.50") == pytest.approx(4 / 11)
    assert ap([ground_truth("a", *objects)], detections, "11point@0.50", devkit=True) == pytest.approx(3 / 11)


def test_equal_scores_keep_the_order_of_images():
    truths = [ground_truth("b"), ground_truth("a", (1, *BOX))]
    detections = [found("b", (1, 0.5, *BOX)), found("a", (1, 0.5, *BOX))]
    assert ap(truths, detections) == ap(truths, detections[::-1]) == 0.5


def slow_ap(truths, detections, label, overlap, area_range=(0, math.inf)):
    """The rules once more, one detection after the other. Returns both metrics."""

    def fits(area):
        return area_range[0] <= area <= area_range[1]

    def shared(box, other):
        w, h = min(box[2], other[2]) - max(box[0], other[0]), min(box[3], other[3]) - max(box[1], other[1])
        return float(w) * float(h) if w > 0 and h > 0 else 0.0

    def area(box):
        return float(box[2] - box[0]) * float(box[3] - box[1])

    by_id = {t.image_id: t for t in truths}
    number = {t.image_id: i for i, t in enumerate(truths)}
    found = set()
    objects = sum(
        of == label and not difficult and not crowd and fits(area)
        for t in truths
        for of, difficult, crowd, area in zip(t.labels, t.difficult, t.crowd, t.areas, strict=True)
    )
    rows = [(-s, number[d.image_id], i, d.image_id, b) for d in detections
            for i, (s, b, of) in enumerate(zip(d.scores, d.boxes, d.labels, strict=True)) if of == label]  # fmt: skip
    points, hits, tried = [], 0, 0
    for _, _, _, image_id, box in sorted(rows, key=lambda row: row[:3]):
        t, best, best_iou, in_crowd = by_id[image_id], -1, 0.0, False
        for index in range(len(t.labels)):
            inter = shared(box, t.boxes[index])
            if t.labels[index] != label:
                continue
            if t.crowd[index]:
                in_crowd |= inter / area(box) >= overlap
            elif inter / (area(box) + area(t.boxes[index]) - inter) > best_iou:
                best, best_iou = index, inter / (area(box) + area(t.boxes[index]) - inter)
        reached = best >= 0 and best_iou >= overlap
        if reached and (t.difficult[best] or not fits(t.areas[best])):
            continue
        hit = reached and (image_id, best) not in found
        if hit:
            found.add((image_id, best))
        elif in_crowd or not fits(area(box)):
            continue
        hits, tried = hits + hit, tried + 1
        points.append((hits / objects if objects else 0.0, hits / tried))
    if not objects:
        return None, None
    eleven = sum(max([p for r, p in points if r >= level], default=0.0) for level in (n / 10 for n in range(11))) / 11
    under, last = 0.0, 0.0
    for index, (recall, _) in enumerate(points):
        under += (recall - last) * max(p for _, p in points[index:])
        last = recall
    return eleven, under


def random_case(generator: np.random.Generator) -> tuple[list[GroundTruth], list[Detections]]:
    """Boxes on a coarse grid, so that overlaps, thresholds, sizes and scores often tie."""
    truths, detections = [], []
    for number in range(generator.integers(1, 4)):

        def boxes(count):
            corner = generator.integers(0, 4, (count, 2)) * 2
            return np.concatenate([corner, corner + generator.integers(1, 4, (count, 2)) * 2], axis=1)

        g, n = generator.integers(0, 5), generator.integers(0, 6)
        flags = generator.random((2, g)) < [[0.3], [0.2]]
        truths.append(ground_truth(str(number), *zip(generator.integers(1, 3, g), *boxes(g).T, *flags, strict=True)))
        detections.append(
            Detections(
                str(number), boxes(n).astype(np.float32), generator.integers(1, 3, n), generator.integers(1, 6, n) / 8
            )
        )
    return truths, detections


def test_10000_random_cases_equal_the_slow_rules():
    generator = np.random.default_rng(0)
    for case in range(10_000):
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


def test_a_miss_in_a_crowd_is_ignored_and_a_crowd_need_not_be_found():
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
