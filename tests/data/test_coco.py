import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector.data.check import check_data
from detector.data.formats.coco import read_coco
from detector.errors import InputError


def content() -> dict:
    """Two images of 60x40, one in a folder, and three annotations, the ids in no order."""
    return {
        "images": [
            {"id": 900, "file_name": "b/two.jpg", "width": 60, "height": 40},
            {"id": 7, "file_name": "one.png", "width": 60, "height": 40},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 90, "name": "toothbrush"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 18, "bbox": [10.5, 0, 20, 5.25], "area": 44.5, "iscrowd": 0},
            {"id": 2, "image_id": 900, "category_id": 3, "bbox": [0, 0, 60, 40], "iscrowd": 1},
            {"id": 3, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]},
        ],
    }


def write(root: Path, data: object) -> Path:
    (root / "images/b").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40)).save(root / "images/b/two.jpg")
    Image.new("RGB", (60, 40), "white").save(root / "images/one.png")
    (root / "train.json").write_text(data if isinstance(data, str) else json.dumps(data))
    return root


def test_a_data_set_is_read(tmp_path):
    dataset = read_coco(write(tmp_path, content()), "train.json", "images")
    assert (dataset.image_ids, dataset.classes) == (["900", "7"], ("cat", "dog", "toothbrush"))
    assert dataset.category_ids == {"dog": 18, "cat": 3, "toothbrush": 90}
    assert dataset.name == f"{tmp_path.name}-train"
    crowd, objects = dataset.ground_truth(0), dataset.ground_truth(1)
    assert (crowd.crowd.tolist(), crowd.boxes.tolist(), crowd.areas.tolist()) == ([True], [[0, 0, 60, 40]], [2400])
    assert (objects.image_id, objects.labels.tolist(), objects.crowd.tolist()) == ("7", [2, 1], [False, False])
    assert objects.boxes.tolist() == [[10.5, 0, 30.5, 5.25], [1, 2, 4, 6]]
    assert objects.boxes.dtype == np.float32
    assert objects.areas.tolist() == [44.5, 12]
    assert not objects.difficult.any()
    assert (dataset.image(0).max(), dataset.image(1).min()) == (0, 255)
    other = dataset.with_classes(["dog", "cat"])  # no object is a toothbrush
    assert (other.ground_truth(1).labels.tolist(), dataset.ground_truth(1).labels.tolist()) == ([1, 2], [2, 1])


def without(key: str):
    return lambda data: data.pop(key)


def change(part: str, number: int, key: str, value: object):
    return lambda data: data[part][number].update({key: value})


def repeat(part: str):
    return lambda data: data[part].append(data[part][0])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (without("categories"), "not a COCO annotation file: it has no list of objects 'categories'"),
        (change("images", 1, "id", None), r"images\[1\] has no valid 'id': None"),
        (change("images", 1, "file_name", 3), r"images\[1\] has no valid 'file_name': 3"),
        (repeat("images"), r"image ids are listed more than once \(1\): 900"),
        (repeat("categories"), "two categories have the id 18"),
        (change("categories", 1, "name", "dog"), "two categories have the name dog"),
        (change("categories", 1, "name", "a/b"), "'a/b' cannot be a class"),
        (lambda data: data["annotations"][2].pop("bbox"), "annotation 3 has no valid 'bbox': it is missing"),
        (change("annotations", 2, "image_id", 8), "annotation 3 has the image_id 8, which is not among"),
        (change("annotations", 2, "category_id", 4), "annotation 3 has the category_id 4, .*among `categories`: 18, 3"),
        (change("annotations", 2, "category_id", True), "annotation 3 has no valid 'category_id': True"),
        (change("annotations", 2, "bbox", [1, 2, 3]), r"annotation 3 has the bbox \[1, 2, 3\]: it must be four"),
        (change("annotations", 2, "bbox", [1, 2, 3, float("nan")]), r"annotation 3 .*nan\]: it must be four numbers"),
        (change("annotations", 2, "bbox", [1, 2, 1e300, 4]), r"annotation 3 .*1e\+300, 4\]: it must be four numbers"),
        (change("annotations", 2, "bbox", [10**400, 2, 3, 4]), r"annotation 3 has the bbox \[1000.*0: it must be four"),
        (change("categories", 1, "id", 2**60), r"a category has the id 1152921504606846976: it must fit into 53 bits"),
        (change("annotations", 2, "bbox", [1, 2, -3, 4]), r"annotation 3 has the bbox \[1, 2, -3, 4\] of negative"),
        (change("categories", 1, "name", "\ud800"), r"categories\[1\] has no valid 'name'"),
        (change("images", 1, "id", "\ud800"), r"images\[1\] has no valid 'id'"),
        (change("images", 1, "file_name", "\ud800.jpg"), r"images\[1\] has no valid 'file_name'"),
        (change("categories", 1, "name", "  "), "cannot be a class"),
        (change("annotations", 2, "bbox", [50, 2, 1e-9, 4]), r"1 boxes .*annotation 3 .*data\.drop_empty_boxes=true"),
        (change("annotations", 2, "bbox", [60, 2, 3, 4]), "annotation 3 .* lies outside image 7 of 60x40"),
        (change("annotations", 2, "bbox", [1, 2, 0, 4]), r"1 boxes .*annotation 3 .*data\.drop_empty_boxes=true"),
        (lambda data: [data["images"].clear(), data["annotations"].clear()], "it has no images"),
    ],
)
def test_errors_name_the_file_the_annotation_and_the_value(tmp_path, spoil, says):
    data = content()
    spoil(data)
    with pytest.raises(InputError, match=rf"train\.json: .*{says}"):
        read_coco(write(tmp_path, data), "train.json", "images")


def test_sizes_beyond_any_image_are_not_taken(tmp_path):
    data = content()
    data["images"][1]["height"] = 10**400
    for item in data["annotations"]:
        item["area"] = 10**400
    dataset = read_coco(write(tmp_path, data), "train.json", "images")
    assert dataset.records[1].annotated_hw is None
    for index in range(len(dataset)):
        truth = dataset.ground_truth(index)
        np.testing.assert_allclose(truth.areas, np.prod(truth.boxes[:, 2:] - truth.boxes[:, :2], axis=1))


@pytest.mark.parametrize("text", ['{"images": [', "[1, 2]", "\udcff", "[" * 100_000])
def test_what_is_no_annotation_file(tmp_path, text):
    root = write(tmp_path, "")
    (root / "train.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"train\.json: (broken JSON|not a COCO annotation file)"):
        read_coco(root, "train.json")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"data\.root: there is no folder .*nowhere"):
        read_coco(tmp_path / "nowhere", "train.json")
    root = write(tmp_path, content())
    with pytest.raises(InputError, match=r"val\.json: file not found; the \.json files in .* are train\.json"):
        read_coco(root, "val.json")
    with pytest.raises(InputError, match=r"two\.jpg: .* image 900 .*data\.train_images or data\.val_images"):
        read_coco(root, "train.json").image(0)
    Image.new("RGB", (40, 60)).save(root / "images/one.png")
    [(kind, text)] = [bad for bad in check_data(read_coco(root, "train.json", "images")).bad if "one.png" in bad[1]]
    assert kind == "misannotated"
    assert "train.json: is for an image of 60x40, but" in text


def test_empty_boxes_can_be_dropped(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data = content()
    data["annotations"][0]["bbox"] = [10, 10, 0, 5]
    dataset = read_coco(write(tmp_path, data), "train.json", drop_empty_boxes=True)
    assert dataset.ground_truth(1).labels.tolist() == [1]
    assert "1 boxes without width or height are skipped" in caplog.text


def test_corners_in_place_of_sizes_are_noticed(tmp_path, caplog):
    read_coco(write(tmp_path, content()), "train.json")
    assert not caplog.text
    data = content()
    for item in data["annotations"]:
        item["bbox"] = [40, 20, 60, 40]
    read_coco(write(tmp_path, data), "train.json")
    assert "3 of 3 boxes extend beyond their images: bbox must be [x, y, width, height]" in caplog.text


def test_an_object_of_a_class_that_was_not_asked_for(tmp_path):
    with pytest.raises(InputError, match=r"train\.json: unknown class 'cat' \(did you mean 'cats'\?\), 2 objects"):
        read_coco(write(tmp_path, content()), "train.json", classes=["cats", "dog"])
