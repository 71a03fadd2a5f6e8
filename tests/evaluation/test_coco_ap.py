import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.data.formats.voc import read_voc
from detector.evaluation.coco_ap import NAMES, score_coco
from detector.structures import Detections
from tests.conftest import ground_truth
from tests.evaluation.test_voc_ap import found, random_case

BOX, FAR = (0, 0, 100, 100), (200, 200, 300, 300)


def plain_pycocotools(folder, truths, detections, num_classes):
    """The twelve numbers from files, as pycocotools' own example computes them."""
    number = {truth.image_id: index for index, truth in enumerate(truths)}

    def rows(items):
        return [(item, i, [float(v) for v in (*box[:2], *(box[2:] - box[:2]))])
                for item in items for i, box in enumerate(item.boxes)]  # fmt: skip

    annotations = [
        {"id": n, "image_id": number[t.image_id], "category_id": int(t.labels[i]), "bbox": bbox,
         "area": t.areas[i], "iscrowd": int(t.crowd[i])}
        for n, (t, i, bbox) in enumerate(rows(truths), start=1)
    ]  # fmt: skip
    results = [
        {"image_id": number[d.image_id], "category_id": int(d.labels[i]), "bbox": bbox, "score": float(d.scores[i])}
        for d, i, bbox in rows(detections)
    ]
    images, categories = [{"id": n} for n in number.values()], [{"id": n} for n in range(1, num_classes + 1)]
    (folder / "gt.json").write_text(
        json.dumps({"images": images, "categories": categories, "annotations": annotations})
    )
    (folder / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "gt.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(folder / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: None if value < 0 else value for name, value in zip(NAMES, evaluation.stats, strict=True)}


def without_classes(scores: dict) -> dict:
    return {name: value for name, value in scores.items() if name != "classes"}


def test_bccd_has_pycocotools_own_numbers(shared, tmp_path):
    """Detections made of the ground truth: jittered, twice, some of another class; some objects are crowds."""
    dataset, generator = read_voc(shared / "data/bccd", "test"), np.random.default_rng(0)
    truths, detections = [], []
    for index in range(len(dataset)):
        truth = dataset.ground_truth(index)
        rows = zip(truth.labels, *truth.boxes.T, [False] * len(truth.labels), strict=True)
        truths.append(ground_truth(truth.image_id, *((*row, generator.random() < 0.1) for row in rows)))
        boxes = np.repeat(truth.boxes, 2, axis=0)
        boxes += generator.normal(0, 8, boxes.shape).astype(np.float32)
        labels = np.where(
            generator.random(len(boxes)) < 0.8, np.repeat(truth.labels, 2), generator.integers(1, 4, len(boxes))
        )
        detections.append(Detections(truth.image_id, boxes, labels, generator.random(len(boxes)).astype(np.float32)))
    scores = score_coco(truths, detections, dataset.classes)
    assert without_classes(scores) == pytest.approx(plain_pycocotools(tmp_path, truths, detections, 3), abs=1e-9)
    assert 0.1 < scores["AP"] < 0.9
    assert scores["AP"] == pytest.approx(np.mean(list(scores["classes"].values())))


def test_random_cases_without_difficult_objects_have_pycocotools_own_numbers(tmp_path):
    generator = np.random.default_rng(0)
    for _ in range(100):
        truths, detections = random_case(generator)
        for truth in truths:
            truth.difficult[:] = False
        if sum(len(item.scores) for item in detections):  # pycocotools fails without
            expected = plain_pycocotools(tmp_path, truths, detections, 2)
            assert without_classes(score_coco(truths, detections, ["cat", "dog"])) == pytest.approx(expected)


def test_difficult_objects_are_neither_hits_nor_misses_nor_to_be_found():
    truths = [ground_truth("a", (1, *BOX), (1, *FAR, True))]
    twice = found("a", (1, 0.9, *FAR), (1, 0.8, *FAR), (1, 0.7, *BOX))
    assert score_coco(truths, [twice], ["cat"])["AP"] == pytest.approx(1)
    assert score_coco(truths, [found("a", (1, 0.7, *BOX))], ["cat"])["AR100"] == pytest.approx(1)
    inside = found("a", (1, 0.9, 200, 200, 210, 210), (1, 0.8, *BOX))  # a miss, for it is no crowd ...
    assert score_coco(truths, [inside], ["cat"])["AP"] == pytest.approx(0.5)
    crowd = [ground_truth("a", (1, *BOX), (1, *FAR, False, True))]  # ... as this is
    assert score_coco(crowd, [inside], ["cat"])["AP"] == pytest.approx(1)


def test_nothing_detected_and_nothing_to_detect():
    nothing = score_coco([ground_truth("a", (1, *BOX))], [found("a")], ["cat", "unicorn"])
    assert (nothing["AP"], nothing["AR100"], nothing["APs"]) == (0.0, 0.0, None)
    assert nothing["classes"] == {"cat": 0.0, "unicorn": None}
    assert set(without_classes(score_coco([ground_truth("a")], [], ["cat"])).values()) == {None}


def test_of_an_image_and_class_100_detections_count(capsys):
    truths = [ground_truth("a", (1, *BOX))]
    others = [(1, 0.9, 300, 300, 310, 310)] * 100
    assert score_coco(truths, [found("a", *others[:99], (1, 0.5, *BOX))], ["cat"])["AP"] > 0
    assert score_coco(truths, [found("a", *others, (1, 0.5, *BOX))], ["cat"])["AP"] == 0
    assert capsys.readouterr().out == ""
