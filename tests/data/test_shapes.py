import numpy as np
import pytest

from detector.data.formats import shapes
from detector.data.formats.shapes import CLASSES, draw_scene, read_shapes
from detector.data.formats.voc import read_voc
from detector.errors import InputError


def test_scenes_are_functions_of_the_generator():
    image, objects = draw_scene(np.random.default_rng(5))
    again, same = draw_scene(np.random.default_rng(5))
    np.testing.assert_array_equal(image, again)
    assert objects == same
    assert not np.array_equal(image, draw_scene(np.random.default_rng(6))[0][: image.shape[0], : image.shape[1]])


def test_objects_lie_in_the_image_and_look_their_part():
    names, difficult = set(), 0
    for seed in range(60):
        image, objects = draw_scene(np.random.default_rng(seed))
        for item in objects:
            x1, y1, x2, y2 = item["box"]
            assert 0 <= x1 < x2 <= image.shape[1]
            assert 0 <= y1 < y2 <= image.shape[0]
            names.add(item["name"])
            difficult += item["difficult"]
    assert names == set(CLASSES)
    assert 0 < difficult < 30


def test_the_data_set_is_made_once_and_only_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "COUNTS", {"train": 3, "test": 2})
    dataset = read_shapes(tmp_path / "shapes", "train")
    assert (len(dataset), len(read_shapes(tmp_path / "shapes", "test"))) == (3, 2)
    assert set(dataset.classes) <= set(CLASSES)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    read_shapes(tmp_path / "shapes", "train")
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    monkeypatch.setattr(shapes, "VERSION", "2")
    with pytest.raises(InputError, match=r"not the shapes of this version \(2\): delete"):
        read_shapes(tmp_path / "shapes", "train")


def test_nothing_is_left_of_what_could_not_be_made_whole(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shapes, "annotation_xml", full)
    with pytest.raises(OSError, match="No space left"):
        read_shapes(tmp_path / "shapes", "train")
    assert list(tmp_path.iterdir()) == []


def test_annotations_match_the_drawing(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "COUNTS", {"train": 4})
    root = tmp_path / "shapes"
    shapes.generate_shapes(root)
    dataset = read_voc(root, "train")
    for number in range(4):
        image, objects = draw_scene(np.random.default_rng([shapes.SEED, 0, number]))
        truth = dataset.ground_truth(number)
        assert truth.boxes.tolist() == [list(map(float, item["box"])) for item in objects]
        assert [dataset.classes[label - 1] for label in truth.labels] == [item["name"] for item in objects]
        assert truth.difficult.tolist() == [item["difficult"] for item in objects]
        assert np.abs(dataset.image(number).astype(int) - image).mean() < 12  # but for JPEG
