import numpy as np
import pytest
from PIL import Image

from detector.data.voc import VocDataset, read_annotation
from detector.errors import InputError
from tests.conftest import write_xml


def test_boxes_lose_1_from_the_upper_left_corner_only(tmp_path):
    write_xml(tmp_path / "a.xml", [("cat", 1, 1, 60, 40), ("dog", 8, 12, 8, 12)])
    annotation = read_annotation(tmp_path / "a.xml")
    assert annotation.boxes.tolist() == [[0, 0, 60, 40], [7, 11, 8, 12]]
    assert annotation.boxes.dtype == np.float32
    assert annotation.names == ("cat", "dog")


def test_fractions_and_zero_coordinates_are_kept(tmp_path):
    write_xml(tmp_path / "a.xml", [("cat", "45.70000076293945", 0, 60, 40)])
    assert read_annotation(tmp_path / "a.xml").boxes[0].tolist() == pytest.approx([44.7, -1, 60, 40])


def test_difficult_is_1_only_where_it_says_so(tmp_path):
    write_xml(
        tmp_path / "a.xml",
        [("cat", 1, 1, 2, 2, 1), ("cat", 1, 1, 2, 2, 0), ("cat", 1, 1, 2, 2), ("cat", 1, 1, 2, 2, "Unspecified")],
    )
    assert read_annotation(tmp_path / "a.xml").difficult.tolist() == [True, False, False, False]


def test_parts_of_an_object_are_no_objects(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    box = "<bndbox><xmin>3</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    text = f"<annotation><object><name>person</name>{part}{box}</object></annotation>"
    (tmp_path / "a.xml").write_text(text)
    annotation = read_annotation(tmp_path / "a.xml")
    assert (annotation.names, annotation.boxes.tolist()) == (("person",), [[2, 2, 9, 9]])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<annotation><object>", "broken XML"),
        ("", "broken XML"),
        ("<html></html>", "its root is <html>, not <annotation>"),
        ("<annotation><object><name>cat</name></object></annotation>", "object 1 has no <bndbox>"),
        ("<annotation><object><bndbox/></object></annotation>", "object 1 has no <name>"),
        ('<!DOCTYPE a [<!ENTITY b "x">]><annotation>&b;</annotation>', "broken XML"),
    ],
)
def test_broken_files_are_named(tmp_path, text, says):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(InputError, match=rf"a\.xml.*{says}"):
        read_annotation(tmp_path / "a.xml")


@pytest.mark.parametrize(
    ("box", "says"),
    [((1, 1, "wide", 9), "object 2: <xmax> must be a number, it is 'wide'"),
     ((1, 1, "nan", 9), "object 2: <xmax>"),
     ((9, 1, 4, 9), "object 2 has its corners swapped: xmin 9 ymin 1 xmax 4 ymax 9")],
)  # fmt: skip
def test_impossible_boxes_are_named(tmp_path, box, says):
    write_xml(tmp_path / "a.xml", [("cat", 1, 1, 2, 2), ("cat", *box)])
    with pytest.raises(InputError, match=says):
        read_annotation(tmp_path / "a.xml")


def test_a_data_set(make_voc):
    root = make_voc({"train": {"b": [("dog", 1, 1, 20, 20)], "a": [], "c": [("cat", 5, 5, 9, 9, 1)]}})
    reader = VocDataset(root, "train")
    assert reader.image_ids == ["b", "a", "c"]
    assert reader.classes == ("cat", "dog")
    assert [reader.ground_truth(i).labels.tolist() for i in range(3)] == [[2], [], [1]]
    assert reader.ground_truth(1).boxes.shape == (0, 4)
    assert reader.image(0).shape == (40, 60, 3)
    assert reader.name == "set-train"
    other = reader.with_classes(["dog", "bird", "cat"])
    assert [other.ground_truth(i).labels.tolist() for i in range(3)] == [[1], [], [3]]
    assert reader.ground_truth(0).labels.tolist() == [2]


def test_a_split_file_may_hold_a_second_column(make_voc):
    root = make_voc({"train": {"a": [("cat", 1, 1, 2, 2)]}})
    (root / "ImageSets/Main/cat_train.txt").write_text("a  1\n\n")
    assert VocDataset(root, "cat_train").image_ids == ["a"]


def test_a_split_file_from_anywhere(make_voc):
    root = make_voc({"train": {"IMG 1": [("cat", 1, 1, 2, 2)], "b.c": []}})
    (root / "ImageSets/Main/odd.txt").write_bytes(b"\xef\xbb\xbfIMG 1\r\nb.c\r\n")
    assert VocDataset(root, "odd").image_ids == ["IMG 1", "b.c"]
    assert VocDataset(root, "odd").image(1).shape == (40, 60, 3)
    (root / "ImageSets/Main/odd.txt").write_bytes(b"\xff\xfea")
    with pytest.raises(InputError, match=r"odd\.txt: not a text in UTF-8"):
        VocDataset(root, "odd")


@pytest.mark.parametrize("name", ["a/b", "..\\b", "x" * 101])
def test_a_class_that_is_no_file_name_is_refused(make_voc, name):
    with pytest.raises(InputError, match="cannot be a class"):
        VocDataset(make_voc({"train": {"a": [(name, 1, 1, 2, 2)]}}), "train")


def test_errors_of_a_data_set_name_what_is_wrong(make_voc, tmp_path):
    root = make_voc({"train": {"a": [("cat", 1, 1, 2, 2)], "b": []}})
    main = root / "ImageSets/Main"

    def fails(says: str, split: str = "train", classes=None, where=root) -> None:
        with pytest.raises(InputError, match=says):
            VocDataset(where, split, classes)

    fails("there is no folder .*nowhere", where=tmp_path / "nowhere")
    fails("not in VOC layout", where=root / "JPEGImages")
    fails("no such split; there is train", split="test")
    (main / "empty.txt").write_text("\n")
    fails("empty.txt: the split has no images", split="empty")
    (main / "twice.txt").write_text("a\nb\na\n")
    fails("1 images stand in it more than once: a", split="twice")
    (main / "more.txt").write_text("a\nx1\nx2\n")
    fails("2 of the 3 images of split 'more' have no XML file: x1, x2", split="more")
    (main / "none.txt").write_text("b\n")
    assert VocDataset(root, "none").classes == ()
    fails(r"a\.xml: object 1 is of the unknown class 'cat' \(did you mean 'cats'\?\)", classes=["cats", "dog"])
    fails("names a class twice", classes=["cat", "cat"])


def test_images_are_found_by_their_stem(make_voc):
    root = make_voc({"train": {"a": [("cat", 1, 1, 2, 2)]}})
    (root / "JPEGImages/a.jpg").rename(root / "JPEGImages/a.JPEG")
    assert VocDataset(root, "train").image_path(0).name == "a.JPEG"
    Image.new("RGB", (60, 40)).save(root / "JPEGImages/a.png")
    with pytest.raises(InputError, match="image 'a' .* more than one"):
        VocDataset(root, "train").image_path(0)
    for path in (root / "JPEGImages").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="image 'a' of split 'train' needs one file, there is none"):
        VocDataset(root, "train").image_path(0)


def test_an_image_of_another_size_than_annotated_is_an_error(make_voc):
    root = make_voc({"train": {"a": [("cat", 1, 1, 2, 2)]}})
    Image.new("RGB", (40, 60)).save(root / "JPEGImages/a.jpg")
    with pytest.raises(InputError, match=r"a\.xml: its <size> is 60x40, but .*a\.jpg is 40x60"):
        VocDataset(root, "train").image(0)


def test_real_annotations(shared):
    reader = VocDataset(shared / "data/bccd", "trainval")
    assert (len(reader), reader.classes) == (292, ("Platelets", "RBC", "WBC"))
    assert reader.image(0).shape == (480, 640, 3)
