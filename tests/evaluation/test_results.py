import json

import numpy as np
import pytest

from detector.errors import InputError
from detector.evaluation.report import write_report
from detector.evaluation.results import ap_table, read_result_files, result_classes, through_files, write_result_files
from detector.structures import Detections
from tests.conftest import ground_truth

GENERATOR = np.random.default_rng(0)


def some_detections(image_id: str, count: int) -> Detections:
    corner = GENERATOR.random((count, 2)) * 100
    boxes = np.concatenate([corner, corner + 1 + GENERATOR.random((count, 2)) * 50], axis=1).astype(np.float32)
    return Detections(image_id, boxes, GENERATOR.integers(1, 3, count), GENERATOR.random(count).astype(np.float32))


def test_files_are_1_based_and_inclusive(tmp_path):
    one = Detections(
        "000004", np.array([[0, 1.5, 20, 30.25]], np.float32), np.array([2]), np.array([0.12345678], np.float32)
    )
    write_result_files(tmp_path, [one], ["cat", "dog"], devkit=False)
    assert (tmp_path / "comp4_det_test_dog.txt").read_text() == "000004 0.123456784 1.00000 2.50000 20.00000 30.25000\n"
    assert (tmp_path / "comp4_det_test_cat.txt").read_text() == ""
    write_result_files(tmp_path, [one], ["cat", "dog"], devkit=True)
    assert (tmp_path / "comp4_det_test_dog.txt").read_text() == "000004 0.123 1.0 2.5 20.0 30.2\n"


def test_what_is_written_is_read(tmp_path):
    detections = [some_detections("b", 20), some_detections("a", 0), some_detections("c", 5)]
    write_result_files(tmp_path, detections, ["cat", "dog"], devkit=False)
    assert result_classes(tmp_path) == ["cat", "dog"]
    again = read_result_files(tmp_path, ["b", "a", "c"], ["cat", "dog"])
    for one, two in zip(detections, again, strict=True):
        order = np.argsort(one.labels, kind="stable")
        assert one.image_id == two.image_id
        np.testing.assert_array_equal(one.labels[order], two.labels)
        np.testing.assert_array_equal(one.scores[order], two.scores.astype(np.float32))
        np.testing.assert_allclose(one.boxes[order], two.boxes, atol=1e-4)


def test_the_devkit_scores_rounded_values(tmp_path):
    detections = [Detections("a", np.zeros((1, 4), np.float32), np.array([1]), np.array([0.12345]))]
    assert through_files(tmp_path, detections, ["cat"], devkit=False)[0].scores.tolist() == [0.12345]
    assert through_files(tmp_path, detections, ["cat"], devkit=True)[0].scores.tolist() == [0.123]


def test_ids_with_spaces(tmp_path):
    write_result_files(
        tmp_path, [some_detections("IMG 1", 2), some_detections("IMG 2", 3)], ["cat", "dog"], devkit=True
    )
    again = read_result_files(tmp_path, ["IMG 1", "IMG 2"], ["cat", "dog"])
    assert [len(item.scores) for item in again] == [2, 3]


@pytest.mark.parametrize("line", ["a 0.5 1 2 3", "0.5 1 2 3 4", "a high 1 2 3 4", "a nan 1 2 3 4"])
def test_bad_lines_are_named(tmp_path, line):
    (tmp_path / "comp4_det_test_cat.txt").write_text(f"a 0.5 1 2 3 4\n{line}\n")
    with pytest.raises(InputError, match=r"comp4_det_test_cat\.txt, line 2: not `image_id"):
        read_result_files(tmp_path, ["a"], ["cat"])


def test_other_wrong_input_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no file comp4_det_test_CLASS.txt"):
        result_classes(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        result_classes(tmp_path / "nowhere")
    (tmp_path / "comp4_det_test_cat.txt").write_text("z 0.5 1 2 3 4\n")
    with pytest.raises(InputError, match="line 1: image 'z' is not in the split"):
        read_result_files(tmp_path, ["a"], ["cat"])


def test_the_report(tmp_path):
    truths = [ground_truth("a", (1, 0, 0, 10, 10))]
    found = [Detections("a", np.array([[0, 0, 10, 8]], np.float32), np.array([1]), np.array([0.9], np.float32))]
    metrics = write_report(tmp_path, truths, found, ["traffic/light", "unicorn"], [0.5, 0.9], False, {"cls": 1.0})
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert metrics["voc"]["11point@0.50"] == {"mAP": 1.0, "AP": {"traffic/light": 1.0, "unicorn": None}}
    assert metrics["voc"]["area@0.90"]["mAP"] == 0.0
    assert metrics["loss"] == {"cls": 1.0}
    plots = list((tmp_path / "precision_recall").iterdir())
    assert [path.name for path in plots] == ["traffic%2Flight.png"]
    assert plots[0].read_bytes().startswith(b"\x89PNG")
    table = ap_table(metrics["voc"])
    assert "no object" in table
    assert table.splitlines()[-1].split() == ["mAP", "1.0000", "1.0000", "0.0000", "0.0000"]
