import json

import numpy as np
import pytest

from detector.errors import InputError
from detector.evaluation.results import (
    read_coco_results,
    read_result_files,
    result_classes,
    round_trip_results,
    write_coco_results,
    write_result_files,
)
from detector.structures import Detections

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
        order = np.argsort(-one.scores, kind="stable")  # best first
        assert one.image_id == two.image_id
        np.testing.assert_array_equal(one.labels[order], two.labels)
        np.testing.assert_array_equal(one.scores[order], two.scores.astype(np.float32))
        np.testing.assert_allclose(one.boxes[order], two.boxes, atol=1e-4)


def test_the_devkit_scores_rounded_values(tmp_path):
    detections = [Detections("a", np.zeros((1, 4), np.float32), np.array([1]), np.array([0.12345]))]
    assert round_trip_results(tmp_path, detections, ["cat"], devkit=False)[0].scores.tolist() == [0.12345]
    assert round_trip_results(tmp_path, detections, ["cat"], devkit=True)[0].scores.tolist() == [0.123]


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


def test_what_is_no_text_is_named(tmp_path):
    (tmp_path / "comp4_det_test_cat.txt").write_bytes(b"\xff\xfe\0")
    (tmp_path / "comp4_det_test_dog.txt").mkdir()
    for name, says in (("cat", "codec can't decode"), ("dog", "a folder")):
        with pytest.raises(InputError, match=rf"comp4_det_test_{name}\.txt: .*{says}"):
            read_result_files(tmp_path, ["a"], [name])


def test_other_wrong_input_is_named(tmp_path):
    with pytest.raises(InputError, match="has no file comp4_det_test_CLASS.txt"):
        result_classes(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        result_classes(tmp_path / "nowhere")
    (tmp_path / "comp4_det_test_cat.txt").write_text("z 0.5 1 2 3 4\n")
    with pytest.raises(InputError, match="line 1: image 'z' is not in the split"):
        read_result_files(tmp_path, ["a"], ["cat"])


def test_images_that_are_known_but_not_asked_for_are_passed_over(tmp_path):
    detections = [some_detections(id, count) for id, count in (("a", 4), ("b", 7), ("c", 2))]
    write_result_files(tmp_path, detections, ["cat", "dog"], devkit=False)
    write_coco_results(tmp_path / "d.json", detections, ["cat", "dog"], CATEGORIES)
    for found in (
        read_result_files(tmp_path, ["c", "a"], ["cat", "dog"], known_ids=["a", "b", "c"]),
        read_coco_results(tmp_path / "d.json", ["c", "a"], ["cat", "dog"], CATEGORIES, known_ids=["a", "b", "c"]),
    ):
        assert [(item.image_id, len(item.scores)) for item in found] == [("c", 2), ("a", 4)]
    with pytest.raises(InputError, match="image 'b' is not in the split"):
        read_result_files(tmp_path, ["c", "a"], ["cat", "dog"], known_ids=["a"])


def test_lines_that_are_wrong_together_are_not_taken_for_right(tmp_path):
    """Seven fields and five make twelve, all of them numbers."""
    (tmp_path / "comp4_det_test_cat.txt").write_text("1 2 0.5 1 2 3 4\n0.5 1 2 3 4\n")
    with pytest.raises(InputError, match="line 1: image '1 2' is not in the split"):
        read_result_files(tmp_path, ["1", "4"], ["cat"])


CATEGORIES = {"cat": 17, "dog": 18, "bird": 5}


def test_coco_results_that_are_written_are_read(tmp_path):
    detections = [some_detections("139", 20), some_detections("00", 0), some_detections("a b", 5)]
    write_coco_results(tmp_path / "d.json", detections, ["cat", "dog"], CATEGORIES)
    entries = json.loads((tmp_path / "d.json").read_text())
    assert [entry["image_id"] for entry in entries] == [139] * 20 + ["a b"] * 5
    x1, y1, x2, y2 = detections[0].boxes[0].tolist()
    assert entries[0]["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-5)
    again = read_coco_results(tmp_path / "d.json", ["139", "00", "a b"], ["cat", "dog"], CATEGORIES)
    for one, two in zip(detections, again, strict=True):
        order = np.argsort(-one.scores, kind="stable")  # best first
        np.testing.assert_array_equal(one.labels[order], two.labels)
        np.testing.assert_array_equal(one.scores[order], two.scores.astype(np.float32))
        np.testing.assert_allclose(one.boxes[order], two.boxes, atol=1e-4)
    dogs = read_coco_results(tmp_path / "d.json", ["139", "00", "a b"], ["dog"], CATEGORIES)
    assert [len(item.scores) for item in dogs] == [int((item.labels == 2).sum()) for item in detections]
    renumbered = read_coco_results(tmp_path / "d.json", ["139", "00", "a b"], ["dog", "cat"], {"dog": 1, "cat": 2})
    assert renumbered[0].labels.tolist() == (3 - again[0].labels).tolist()
    with pytest.raises(InputError, match="has no detection of the classes bird"):
        read_coco_results(tmp_path / "d.json", ["139", "00", "a b"], ["bird"], CATEGORIES)
    with pytest.raises(InputError, match=r"d\.json, entry 21: image 'a b' is not in the split"):
        read_coco_results(tmp_path / "d.json", ["139"], ["cat"], CATEGORIES)


ENTRY = '{"image_id": 1, "category_id": 17, "bbox": [1, 2, 3, 4], "score": 0.5}'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[", "broken JSON"),
        ("{}", "has no COCO results, which are a list"),
        (f"[{ENTRY}, 3]", "entry 2: not image_id, category_id, bbox of four, score: 3"),
        (f"[{ENTRY.replace('[1, 2, 3, 4]', '[1, 2, 3]')}]", "entry 1: not image_id"),
        (f"[{ENTRY.replace('0.5', 'NaN')}]", "entry 1: not image_id"),
        (f"[{ENTRY.replace('score', 'scores')}]", "entry 1: not image_id"),
        (f"[{ENTRY.replace('17', '[1]')}]", "entry 1: not image_id"),
        (f"[{ENTRY.replace('0.5', '1' + '0' * 400)}]", "entry 1: not image_id"),
        ('["image_id"]', "entry 1: not image_id"),
        (
            f"[{ENTRY.replace('17', '1')}]",
            r"entry 1: the category 1 is not among those of the dataset: 17 \(cat\), 18 \(dog\)",
        ),
    ],
)
def test_wrong_coco_results_are_named(tmp_path, content, says):
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(InputError, match=rf"d\.json.*{says}"):
        read_coco_results(tmp_path / "d.json", ["1"], ["cat"], CATEGORIES)
