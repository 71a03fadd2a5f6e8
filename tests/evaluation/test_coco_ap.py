import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.data.formats.voc import read_voc
from detector.evaluation.coco_ap import NAMES, score_coco
from detector.evaluation.matching import match
from detector.structures import Detections, GroundTruth
from tests.conftest import ground_truth
from tests.helpers.scoring import found, random_case

BOX, FAR = (0, 0, 100, 100), (200, 200, 300, 300)


class WithDifficult(COCOeval):
    """COCO's rules for crowds, and VOC's for difficult objects: ignored, with any number of matching detections.

    In pycocotools one flag, `iscrowd`, means three things: the object is ignored; many detections can match it; its
    overlap is the fraction of the detection inside it, not the IoU. Only the first two apply to difficult objects, so
    their flag is cleared while overlaps are computed, which pycocotools does before matching.
    """

    def computeIoU(self, imgId, catId):
        objects = self._gts[imgId, catId]
        for item in objects:
            item["iscrowd"] = item["crowd"]
        ious = super().computeIoU(imgId, catId)
        for item in objects:
            item["iscrowd"] = item["ignore"]
        return ious


def plain_pycocotools(folder, truths, detections, num_classes, by_class=False):
    """The numbers from files, as pycocotools' own example computes them."""
    number = {truth.image_id: index for index, truth in enumerate(truths)}

    def rows(items):
        return [(item, i, [float(v) for v in (*box[:2], *(box[2:] - box[:2]))])
                for item in items for i, box in enumerate(item.boxes)]  # fmt: skip

    annotations = [
        {"id": n, "image_id": number[t.image_id], "category_id": int(t.labels[i]), "bbox": bbox,
         "area": t.areas[i], "iscrowd": int(t.crowd[i] or t.difficult[i]), "crowd": int(t.crowd[i])}
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
        evaluation = WithDifficult(coco, coco.loadRes(str(folder / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = {name: None if value < 0 else value for name, value in zip(NAMES, evaluation.stats, strict=True)}
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class; any size, 100 detections
    ap = [float(precision[:, :, index].mean()) for index in range(num_classes)]
    return numbers | ({"classes": [None if value < 0 else value for value in ap]} if by_class else {})


def score(truths, detections, classes):
    return score_coco(match(truths, detections, len(classes)), classes)


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
    scores = score(truths, detections, dataset.classes)
    assert without_classes(scores) == pytest.approx(plain_pycocotools(tmp_path, truths, detections, 3), abs=1e-9)
    assert 0.1 < scores["AP"] < 0.9
    assert scores["AP"] == pytest.approx(np.mean(list(scores["classes"].values())))


def test_random_cases_equal_pycocotools(tmp_path):
    generator = np.random.default_rng(0)
    for _ in range(30):
        truths, detections = random_case(generator)
        for truth in truths:
            truth.difficult[:] = False
        if sum(len(item.scores) for item in detections):  # pycocotools fails without
            expected = plain_pycocotools(tmp_path, truths, detections, 2)
            assert without_classes(score(truths, detections, ["cat", "dog"])) == pytest.approx(expected)


def hard_case(generator) -> tuple[list[GroundTruth], list[Detections]]:
    """Objects of all sizes, some difficult, some crowds; many detections with equal scores and equal overlaps."""
    truths, detections = [], []
    for image_id in "abcdef":
        corners = generator.integers(0, 200, (generator.integers(0, 12), 2))
        sides = generator.choice([8, 30, 32, 64, 96, 200], corners.shape)
        rows = np.concatenate([generator.integers(1, 4, (len(corners), 1)), corners, corners + sides], axis=1)
        flags = generator.random((len(rows), 2)) < 0.15
        truths.append(ground_truth(image_id, *((*row, *flag) for row, flag in zip(rows, flags, strict=True))))
        near = rows[generator.integers(0, len(rows), 150)] if len(rows) else np.zeros((0, 5), int)
        boxes = (near[:, 1:] + generator.choice([-8, -2, 0, 0, 2, 8], (len(near), 4))).reshape(-1, 2, 2)
        boxes = np.sort(boxes, axis=1).reshape(-1, 4).astype(np.float32)
        labels = np.where(generator.random(len(near)) < 0.8, near[:, 0], generator.integers(1, 4, len(near)))
        scores = (generator.integers(0, 40, len(near)) / 40).astype(np.float32)
        detections.append(Detections(image_id, boxes, labels, scores))
    return truths, detections


@pytest.mark.parametrize("seed", range(4))
def test_crowds_ties_sizes_and_difficult_equal_pycocotools(tmp_path, seed):
    truths, detections = hard_case(np.random.default_rng(seed))
    detections[0].labels[:] = 1  # more than 100 of one class
    expected = plain_pycocotools(tmp_path, truths, detections, 3, by_class=True)
    scores = score(truths, detections, ["a", "b", "c"])
    assert [*scores.pop("classes").values()] == pytest.approx(expected.pop("classes"), abs=1e-9)
    assert scores == pytest.approx(expected, abs=1e-9)
    assert None not in expected.values()
    assert score(truths, detections[::-1], ["a", "b", "c"])["AP"] == scores["AP"]  # in any order of the images


def test_difficult_objects_are_neither_hits_nor_misses():
    truths = [ground_truth("a", (1, *BOX), (1, *FAR, True))]
    twice = found("a", (1, 0.9, *FAR), (1, 0.8, *FAR), (1, 0.7, *BOX))
    assert score(truths, [twice], ["cat"])["AP"] == pytest.approx(1)
    assert score(truths, [found("a", (1, 0.7, *BOX))], ["cat"])["AR100"] == pytest.approx(1)
    inside = found("a", (1, 0.9, 200, 200, 210, 210), (1, 0.8, *BOX))  # a miss, for it is no crowd ...
    assert score(truths, [inside], ["cat"])["AP"] == pytest.approx(0.5)
    crowd = [ground_truth("a", (1, *BOX), (1, *FAR, False, True))]  # ... as this is
    assert score(crowd, [inside], ["cat"])["AP"] == pytest.approx(1)


def test_nothing_detected_and_nothing_to_detect():
    nothing = score([ground_truth("a", (1, *BOX))], [found("a")], ["cat", "unicorn"])
    assert (nothing["AP"], nothing["AR100"], nothing["APs"]) == (0.0, 0.0, None)
    assert nothing["classes"] == {"cat": 0.0, "unicorn": None}
    assert set(without_classes(score([ground_truth("a")], [], ["cat"])).values()) == {None}


def test_of_an_image_and_class_100_detections_count(capsys):
    truths = [ground_truth("a", (1, *BOX))]
    others = [(1, 0.9, 300, 300, 310, 310)] * 100
    assert score(truths, [found("a", *others[:99], (1, 0.5, *BOX))], ["cat"])["AP"] > 0
    assert score(truths, [found("a", *others, (1, 0.5, *BOX))], ["cat"])["AP"] == 0
    assert capsys.readouterr().out == ""
