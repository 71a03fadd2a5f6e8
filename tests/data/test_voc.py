import numpy as np
import pytest

from detector.data.formats.voc import annotation_xml, read_annotation, read_voc
from detector.errors import InputError
from tests.conftest import write_xml


def test_boxes_lose_1_from_the_upper_left_corner_only(tmp_path):
    write_xml(tmp_path / "a.xml", [("cat", 1, 1, 60, 40), ("dog", 8, 12, 8, 12)])
    annotation = read_annotation(tmp_path / "a.xml")
    assert annotation.boxes.tolist() == [[0, 0, 60, 40], [7, 11, 8, 12]]
    assert annotation.boxes.dtype == np.float32
    assert annotation.names == ("cat", "dog")


def test_a_data_set(make_voc):
    root = make_voc({"train": {"b": [("dog", 1, 1, 20, 20)], "a": [], "c": [("cat", 5, 5, 9, 9, 1)]}})
    dataset = read_voc(root, "train")
    assert dataset.image_ids == ["b", "a", "c"]
    assert dataset.classes == ("cat", "dog")
    assert [dataset.ground_truth(i).labels.tolist() for i in range(3)] == [[2], [], [1]]
    assert dataset.ground_truth(1).boxes.shape == (0, 4)
    assert dataset.image(0).shape == (40, 60, 3)
    assert dataset.name == "set-train"
    other = dataset.with_classes(["dog", "bird", "cat"])
    assert [other.ground_truth(i).labels.tolist() for i in range(3)] == [[1], [], [3]]
    assert dataset.ground_truth(0).labels.tolist() == [2]


def test_a_split_file_may_hold_a_second_column(make_voc):
    root = make_voc({"train": {"a": [("cat", 1, 1, 2, 2)]}})
    (root / "ImageSets/Main/cat_train.txt").write_text("a  1\n\n")
    assert read_voc(root, "cat_train").image_ids == ["a"]


def test_a_split_file_from_anywhere(make_voc):
    root = make_voc({"train": {"IMG 1": [("cat", 1, 1, 2, 2)], "b.c": []}})
    (root / "ImageSets/Main/odd.txt").write_bytes(b"\xef\xbb\xbfIMG 1\r\nb.c\r\n")
    assert read_voc(root, "odd").image_ids == ["IMG 1", "b.c"]
    assert read_voc(root, "odd").image(1).shape == (40, 60, 3)
    (root / "ImageSets/Main/odd.txt").write_bytes(b"\xff\xfea")
    with pytest.raises(InputError, match=r"odd\.txt: not UTF-8 text"):
        read_voc(root, "odd")


@pytest.mark.parametrize("name", ["a/b", "..\\b", "x" * 101])
def test_a_class_that_is_no_file_name_is_refused(make_voc, name):
    with pytest.raises(InputError, match="cannot be a class"):
        read_voc(make_voc({"train": {"a": [(name, 1, 1, 2, 2)]}}), "train")


def test_errors_of_a_data_set_name_what_is_wrong(make_voc, tmp_path):
    root = make_voc({"train": {"a": [("cat", 1, 1, 2, 2)], "b": []}})
    main = root / "ImageSets/Main"

    def fails(says: str, split: str = "train", classes=None, where=root) -> None:
        with pytest.raises(InputError, match=says):
            read_voc(where, split, classes)

    fails("there is no folder .*nowhere", where=tmp_path / "nowhere")
    fails("not in VOC layout", where=root / "JPEGImages")
    fails("no such split; there is train", split="test")
    (main / "empty.txt").write_text("\n")
    fails("empty.txt: the split has no images", split="empty")
    (main / "none.txt").write_text("b\n")
    assert read_voc(root, "none").classes == ()
    fails("names a class twice", classes=["cat", "cat"])


def test_real_annotations(shared):
    dataset = read_voc(shared / "data/bccd", "trainval")
    assert (len(dataset), dataset.classes) == (292, ("Platelets", "RBC", "WBC"))
    assert dataset.image(0).shape == (480, 640, 3)


def test_flags_and_names_as_tools_write_them(make_voc):
    root = make_voc(
        {"train": {"a": [("cafe\u0301", 1, 1, 9, 9, flag) for flag in ("1", "true", "yes", "1.0", "0", "")]}}
    )
    dataset = read_voc(root, "train")
    assert dataset.classes == ("caf\u00e9",)  # one spelling of the same letters
    assert dataset.ground_truth(0).difficult.tolist() == [True, True, True, True, False, False]
    assert dataset.with_classes(["cafe\u0301"]).ground_truth(0).labels.tolist() == [1] * 6


@pytest.mark.parametrize("tag", ["Object", "objects", "OBJECT"])
def test_objects_under_another_tag_are_not_passed_over(tmp_path, tag):
    (tmp_path / "a.xml").write_text(f"<annotation><{tag}><name>cat</name></{tag}></annotation>")
    with pytest.raises(InputError, match=rf"a\.xml: <{tag}> is not VOC's <object>"):
        read_annotation(tmp_path / "a.xml")


def test_ids_that_end_like_the_flag_of_a_class_split(make_voc):
    root = make_voc({"train": {"cat 1": [], "cat 0": []}})
    assert read_voc(root, "train").image_ids == ["cat 1", "cat 0"]


def test_any_file_name_gives_valid_xml(tmp_path):
    for name in ("a\x01b.jpg", "\udcff.jpg", "\U0001f600.jpg", "a&b<c>.jpg", "a\nb.jpg"):
        text = annotation_xml(name, (40, 60), [{"name": "cat", "box": (0, 0, 9, 9), "difficult": False}])
        (tmp_path / "a.xml").write_bytes(text.encode())
        assert read_annotation(tmp_path / "a.xml").names == ("cat",)
