"""Annotations as people and tools write them: the cases 35 to 45 of FAULTS.md, and what becomes of bad ones."""

import importlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import detector
from detector.builders import datasets
from detector.data import check
from detector.data.check import (
    Checked,
    accept,
    cache_folder,
    check_data,
    require_all_valid,
    require_readable,
    warn_leakage,
)
from detector.data.formats.voc import read_annotation, read_voc
from detector.data.loader import TransformedDataset
from detector.data.transforms import Resize
from detector.errors import InputError
from detector.evaluation.matching import match
from detector.evaluation.voc_ap import score_voc
from detector.proposals.store import write_store
from scripts.check_data import main as check_data_main
from tests.conftest import REPOSITORY, write_xml

CAT = ("cat", 1, 1, 20, 20)


def checked_of(make_voc, *objects: tuple) -> Checked:
    """A dataset of one image (60x40) with these objects, looked at."""
    return check_data(read_voc(make_voc({"train": {"a": list(objects)}}), "train"))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("<name>cat</name>", "object 2 has no <bndbox>"),
        ("<name>cat</name><bndbox><xmin>1</xmin></bndbox>", "object 2: <ymin> must be a number, it is None"),
        ("<bndbox/>", "object 2 has no <name>"),
    ],
)
def test_case_35_an_incomplete_object_is_skipped_and_named(tmp_path, body, says):
    write_xml(tmp_path / "a.xml", [CAT, ("dog", 3, 3, 9, 9)])
    text = (tmp_path / "a.xml").read_text().replace("<object><name>dog", f"<object>{body}</object><object><name>dog")
    (tmp_path / "a.xml").write_text(text)
    annotation = read_annotation(tmp_path / "a.xml")
    assert (annotation.names, annotation.boxes.tolist()) == (("cat", "dog"), [[0, 0, 20, 20], [2, 2, 9, 9]])
    assert annotation.skipped == (f"{tmp_path}/a.xml: {says}",)


@pytest.mark.parametrize("text", ["wide", "(88, 100)", "nan", "inf", "1e400", ""])
def test_case_35_a_coordinate_must_be_a_number(make_voc, text):
    checked = checked_of(make_voc, CAT, ("cat", 1, 1, text, 9))
    assert checked.repairs[0][0] == "skipped"
    assert f"a.xml: object 2: <xmax> must be a number, it is {text!r}" in checked.repairs[0][1]
    assert "1 objects repaired (1 skipped)" in checked.summary()
    assert checked.dataset.ground_truth(0).boxes.tolist() == [[0, 0, 20, 20]]


def test_case_36_fractions_are_kept(tmp_path):
    write_xml(tmp_path / "a.xml", [("cat", "45.70000076293945", 1, 60, 40)])
    assert read_annotation(tmp_path / "a.xml").boxes[0].tolist() == pytest.approx([44.7, 0, 60, 40])


def test_case_37_swapped_corners_are_no_annotation(make_voc):
    [(kind, text)] = checked_of(make_voc, CAT, ("cat", 9, 1, 4, 9)).bad
    assert kind == "misannotated"
    assert "a.xml: object 2 has its corners swapped: xmin 9 ymin 1 xmax 4 ymax 9" in text


def test_case_37_a_box_without_a_pixel_is_left_out(make_voc):
    checked = checked_of(make_voc, ("cat", 8, 12, 8, 12), ("cat", 9, 5, 8, 9))
    assert checked.dataset.ground_truth(0).boxes.tolist() == [[7, 11, 8, 12]]  # one pixel is one
    assert "object 2 holds no pixel: xmin 9 ymin 5 xmax 8 ymax 9" in checked.repairs[0][1]


def test_case_38_boxes_that_reach_out_are_clipped_or_skipped(make_voc):
    checked = checked_of(make_voc, ("cat", 50, 30, 61, 40), ("cat", 50, 30, 75, 40), ("cat", 61, 1, 70, 9))
    assert not checked.bad
    assert [kind for kind, _ in checked.repairs] == ["cut by a pixel or less", "cut at the border", "skipped"]
    hardly, much, outside = [text for _, text in checked.repairs]
    assert "a.xml: box 2 x from 49 to 75, y from 29 to 40 in an image of 60x40: extends beyond it" in much
    assert "a.xml: box 3 x from 60 to 70, y from 0 to 9 in an image of 60x40: lies outside its image" in outside
    details = "\n".join(checked.details())
    assert (hardly in details, much in details, outside in details) == (False, True, True)
    samples = TransformedDataset(checked.dataset, {"a": np.zeros((0, 4), np.float32)}, Resize([40], 60))
    assert samples.original(0).gt_boxes.tolist() == [[49, 29, 60, 40], [49, 29, 60, 40]]


def test_case_39_zeros_are_kept_as_signed_numbers_and_noticed(make_voc):
    checked = checked_of(make_voc, ("cat", 0, 0, 20, 20), ("cat", 5, 5, 9, 9))
    assert checked.dataset.ground_truth(0).boxes.tolist() == [[-1, -1, 20, 20], [4, 4, 9, 9]]
    [note] = checked.notes
    assert note.startswith("1 objects have xmin or ymin 0, so these files seem to count pixels from 0; they are read")


def test_case_39_a_box_that_reaches_out_further_hides_nothing(make_voc):
    [note] = checked_of(make_voc, ("cat", 0, 5, 20, 20), ("cat", -7, 5, 9, 9)).notes
    assert note.startswith("1 objects have xmin or ymin 0")


def test_case_39_files_that_count_from_1_give_no_note(make_voc):
    assert checked_of(make_voc, CAT).notes == []


def test_case_40_unknown_classes_are_named_with_what_was_meant(make_voc):
    root = make_voc({"train": {"a": [CAT, ("Aero Plane", 1, 1, 2, 2)], "b": [("Aero Plane", 1, 1, 2, 2)]}})
    dataset = read_voc(root, "train")
    with pytest.raises(InputError, match="2 classes in the annotations are not among cats, aeroplane") as error:
        dataset.with_classes(["cats", "aeroplane"])
    assert f"{root}/Annotations/a.xml: unknown class 'Aero Plane' (did you mean 'aeroplane'?), 2 obj" in str(
        error.value
    )
    assert f"{root}/Annotations/a.xml: unknown class 'cat' (did you mean 'cats'?), 1 objects" in str(error.value)
    assert "data.exclude_classes=[Aero Plane,cat]" in str(error.value)


def test_case_40_names_that_differ_in_case_or_spaces_alone(make_voc, settings):
    objects = [(name, 1, 1, 9, 9) for name in ("cat", "dog", "Cat", "c at", "Dog")]
    root = make_voc({"train": {"a": objects[:3]}, "val": {"b": objects[3:]}})

    def classes(*overrides: str, more: tuple = ()) -> tuple[str, ...]:
        config = settings("train", "data=voc", f"data.root={root}", "data.train_split=train", "data.val_split=val",
                          *overrides)  # fmt: skip
        parts = [datasets.build_dataset(config.data, part) for part in ("train", "val")]
        chosen = datasets.resolve_classes(config.data, *parts, more=more)
        assert [dataset.with_classes(chosen).classes for dataset in parts] == [chosen] * 2  # each object has a label
        return chosen

    with pytest.raises(InputError) as error:
        classes()
    assert str(error.value) == (
        "set-train, set-val: class names that differ only in case or spaces: 'Cat' and 'c at' and 'cat', 'Dog' "
        "and 'dog'; write each class in one way there, exclude one of them with data.exclude_classes=[...], or, if "
        "they are meant to be separate classes, list all classes in data.classes=[...]"
    )
    # the ways out
    assert classes("data.exclude_classes=[Cat,c at,Dog]") == ("cat", "dog")
    assert classes("data.classes=[cat,dog,Cat,c at,Dog]") == ("cat", "dog", "Cat", "c at", "Dog")
    with pytest.raises(InputError, match=r"'Cat' \(did you mean 'cat'\?\)"):
        classes("data.classes=[cat,dog]")
    with pytest.raises(InputError, match="set-train, set-val and the files of detections: .*'DOG' and 'dog'"):
        classes("data.exclude_classes=[Cat,c at,Dog]", more=("DOG",))


def test_case_41_difficult_is_1_only_where_it_says_so(tmp_path):
    write_xml(
        tmp_path / "a.xml",
        [("cat", 1, 1, 2, 2, 1), ("cat", 1, 1, 2, 2, 0), ("cat", 1, 1, 2, 2), ("cat", 1, 1, 2, 2, "Unspecified")],
    )
    assert read_annotation(tmp_path / "a.xml").difficult.tolist() == [True, False, False, False]


def test_case_42_images_without_objects_are_background(make_voc):
    root = make_voc({"train": {"a": [], "b": [CAT], "c": []}})
    checked = check_data(read_voc(root, "train"))
    assert len(checked.dataset) == 3
    assert "3 images found, 0 missing, 2 empty, 0 corrupt" in checked.summary()
    assert checked.details() == []


def test_a_data_set_without_any_object_is_noticed(make_voc):
    checked = check_data(read_voc(make_voc({"train": {"a": [], "b": []}}), "train"))
    assert checked.details() == ["no image has an object: there is nothing to learn here, and nothing to find"]


def test_case_42_a_class_of_difficult_objects_has_no_score(make_voc):
    dataset = read_voc(make_voc({"train": {"a": [(*CAT, 1), ("dog", 1, 1, 9, 9)]}}), "train")
    metrics, _ = score_voc(match([dataset.ground_truth(0)], [], 2), dataset.classes)
    assert metrics["area@0.50"] == {"AP": {"cat": None, "dog": 0.0}, "mAP": 0.0}


def test_case_43_parts_of_an_object_are_no_objects(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    box = "<bndbox><xmin>3</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    text = f"<annotation><object><name>person</name>{part}{box}</object></annotation>"
    (tmp_path / "a.xml").write_text(text)
    annotation = read_annotation(tmp_path / "a.xml")
    assert (annotation.names, annotation.boxes.tolist()) == (("person",), [[2, 2, 9, 9]])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<annotation>\n<object>", "broken XML: no element found: line 2, column 8"),
        (b"", "broken XML: no element found: line 1"),
        (b"<html></html>", "its root is <html>, not <annotation>"),
        (b'<?xml version="1.0" encoding="no-such"?><annotation/>', "broken XML: unknown encoding"),
        (b"<annotation><filename>gr\xf6\xdfe</filename></annotation>", r"broken XML: .*invalid token.*: line 1"),
    ],
)
def test_case_44_a_broken_file_is_named_with_the_line(tmp_path, data, says):
    (tmp_path / "a.xml").write_bytes(data)
    with pytest.raises(InputError, match=rf"a\.xml: {says}"):
        read_annotation(tmp_path / "a.xml")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "iso-8859-1"])
def test_case_44_other_encodings_and_a_byte_order_mark_are_read(tmp_path, encoding):
    write_xml(tmp_path / "a.xml", [("größe", 1, 1, 9, 9)])
    text = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>' + (tmp_path / "a.xml").read_text()
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    assert read_annotation(tmp_path / "a.xml").names == ("größe",)


def test_case_44_ids_without_a_file_are_counted_and_named(make_voc):
    root = make_voc({"train": {"a": [CAT]}})
    (root / "ImageSets/Main/more.txt").write_text("a\nx1\nx2\nx3\nx4\nx5\nx6\n")
    with pytest.raises(
        InputError, match="6 of the 7 images of split 'more' have no XML file: x1, x2, x3, x4, x5 and 1"
    ):
        read_voc(root, "more")


def test_case_45_an_id_twice_is_an_error(make_voc):
    root = make_voc({"train": {"a": [CAT], "b": []}})
    (root / "ImageSets/Main/twice.txt").write_text("a\nb\na\n")
    with pytest.raises(InputError, match=r"image ids are listed more than once \(1\): a; remove"):
        read_voc(root, "twice")


def test_case_45_training_images_among_those_of_validation(make_voc, caplog):
    root = make_voc({"train": {"a": [CAT]}, "val": {"b": [], "c": []}})
    Image.effect_noise((60, 40), 50).save(root / "JPEGImages/b.jpg")
    train, val = (check_data(read_voc(root, split)) for split in ("train", "val"))
    assert warn_leakage(train, val) == ["c"]
    assert "1 of the 2 images of set-val are in set-train too, so scores will be optimistic: c" in caplog.text


@pytest.fixture
def one_in_four(make_voc):
    root = make_voc({"train": {id: [CAT] for id in "abcd"}})
    (root / "Annotations/b.xml").write_text("<annotation>")
    return root


def test_a_few_invalid_images_are_skipped_and_too_many_an_error(one_in_four, caplog):
    caplog.set_level("INFO")
    dataset = read_voc(one_in_four, "train", ["cat"])
    checked = accept(check_data(dataset), max_bad_fraction=0.25)
    assert checked.dataset.image_ids == ["a", "c", "d"]
    assert checked.image_hws == [(40, 60)] * 3
    assert "set-train: 4 images found, 0 missing, 0 empty, 0 corrupt, 1 misannotated, 0 objects repaired" in caplog.text
    assert "misannotated: " in caplog.text
    with pytest.raises(InputError, match=r"1 of 4 images .* data\.max_bad_fraction=0\.24 allows(.|\n)*b\.xml: broken"):
        accept(check_data(dataset), max_bad_fraction=0.24)
    assert [path.read_text() for path in one_in_four.rglob("b.xml")] == [
        "<annotation>"
    ]  # nothing of the user's changed


def test_a_score_needs_every_image_and_every_object(one_in_four):
    with pytest.raises(InputError, match=r"A score needs every image(.|\n)*b\.xml: broken XML"):
        require_all_valid(check_data(read_voc(one_in_four, "train")))
    with pytest.raises(InputError, match=r"b\.xml: broken XML"):
        require_readable(read_voc(one_in_four, "train"))
    write_xml(one_in_four / "Annotations/b.xml", [CAT, ("cat", 1, 1, "wide", 9)])
    for look in (lambda dataset: require_all_valid(check_data(dataset)), require_readable):
        with pytest.raises(InputError, match=r"b\.xml: object 2: <xmax> must be a number"):
            look(read_voc(one_in_four, "train"))
    write_xml(one_in_four / "Annotations/b.xml", [("cat", 50, 30, 75, 40)])  # a box is scored as it stands
    assert require_all_valid(check_data(read_voc(one_in_four, "train"))).dataset.image_ids == list("abcd")


def test_nothing_but_bad_images_is_an_error_at_any_limit(make_voc):
    root = make_voc({"train": {"a": [CAT]}})
    (root / "JPEGImages/a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="1 of 1 images"):
        accept(check_data(read_voc(root, "train")), max_bad_fraction=1.0)


def test_the_first_20_problems_are_written_out(make_voc):
    checked = checked_of(make_voc, *[("cat", 1, 1, 99, 9)] * 22)
    assert len(checked.details()) == 21
    assert checked.details()[-1] == "and 2 more"


def test_valid_images_are_decoded_once_and_known_by_content(make_voc, monkeypatch):
    root = make_voc({"train": {"a": [CAT], "b": []}}, name="kept")
    decoded = []
    monkeypatch.setattr(
        check, "read_image", lambda path, options: decoded.append(path.stem) or np.zeros((40, 60, 3), np.uint8)
    )

    def again() -> list[str]:
        decoded.clear()
        assert check_data(read_voc(root, "train")).image_hws == [(40, 60)] * 2
        return sorted(decoded)

    Image.effect_noise((60, 40), 50).save(root / "JPEGImages/b.jpg")
    assert (again(), again()) == (["a", "b"], [])
    path = root / "JPEGImages/b.jpg"
    data, times = bytearray(path.read_bytes()), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    data[-10] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=times)  # neither size nor time tell
    assert again() == ["b"]
    [cache] = cache_folder().glob("kept-train-*.json")
    for broken in (
        "",
        "junk",
        "[]",
        '{"made by": 1}',
        json.dumps({**json.loads(cache.read_text()), "sound": {"x": 3}}),
    ):
        cache.write_text(broken)
        assert again() == ["a", "b"]
        assert again() == []


def test_a_user_without_a_home_decodes_images_again(small_shapes, monkeypatch, caplog):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    importlib.reload(detector)
    assert check_data(read_voc(small_shapes, "train")).bad == []
    assert "images will be decoded again at the next start" in caplog.text


def test_the_processes_of_a_run_decode_an_image_once_together(make_voc, monkeypatch):
    root, decoded = make_voc({"train": {"a": [CAT]}}, name="together"), []

    def read(path, options):
        decoded.append(path.stem)
        time.sleep(0.3)  # time enough for the other to come
        return np.zeros((40, 60, 3), np.uint8)

    monkeypatch.setattr(check, "read_image", read)
    with ThreadPoolExecutor(2) as processes:
        both = list(processes.map(check_data, [read_voc(root, "train")] * 2))
    assert [checked.image_hws for checked in both] == [[(40, 60)]] * 2
    assert decoded == ["a"]
    assert not list(cache_folder().glob("*.lock"))


def test_a_cache_that_cannot_be_written_stops_nothing(make_voc, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert checked_of(make_voc, CAT).image_hws == [(40, 60)]
    assert "images will be decoded again at the next start" in caplog.text


def test_the_command_says_the_same(one_in_four, monkeypatch, capsys):
    command = [sys.executable, "scripts/check_data.py", "--data", str(one_in_four), "--splits", "train", "train"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    summary = "set-train: 4 images found, 0 missing, 0 empty, 0 corrupt, 1 misannotated, 0 objects repaired"
    assert summary in result.stdout
    assert f"misannotated: {one_in_four}/Annotations/b.xml: broken XML" in result.stdout
    assert "3 of the 3 images of set-train are in set-train too" in result.stdout
    write_xml(one_in_four / "Annotations/b.xml", [CAT])
    for split, status, says in (("train", 0, "4 images found"), ("none", 2, "no such split; there is train")):
        monkeypatch.setattr(sys, "argv", ["check_data.py", "--data", str(one_in_four), "--splits", split])
        with pytest.raises(SystemExit) as end:
            check_data_main()
        assert end.value.code == status
        assert says in "".join(capsys.readouterr())


def test_the_command_finds_names_that_are_most_likely_one_class(make_voc, monkeypatch, capsys):
    root = make_voc({"train": {"a": [CAT]}, "val": {"b": [("Cat", 1, 1, 20, 20)]}})
    for more, status in (([], 1), (["--classes", "cat", "Cat"], 0)):
        monkeypatch.setattr(sys, "argv", ["check_data.py", "--data", str(root), "--splits", "train", "val", *more])
        monkeypatch.setattr("scripts.check_data.warn_leakage", lambda *_: [])
        with pytest.raises(SystemExit) as end:
            check_data_main()
        assert (end.value.code, "'Cat' and 'cat'" in capsys.readouterr().out) == (status, status == 1)


def test_an_image_that_may_not_be_read_is_missing(make_voc, monkeypatch):
    root = make_voc({"train": {"a": [CAT]}})
    monkeypatch.setattr("detector.runtime.files.os.access", lambda path, _: path.suffix != ".jpg")
    text = f"{root}/JPEGImages/a.jpg: cannot be read: Permission denied"
    assert check_data(read_voc(root, "train")).bad == [("missing", text)]


@pytest.mark.parametrize("name", ["x" * 251, "folder/" + "x" * 251, "a\0b"])
def test_an_image_id_that_is_no_name_of_a_file(make_voc, name):
    root = make_voc({"train": {"a": [CAT]}})
    (root / "ImageSets/Main/train.txt").write_text(f"{name}\n")
    with pytest.raises(InputError, match=r"train\.txt: .* cannot be an image id"):
        read_voc(root, "train")


def test_check_data_reads_empty_boxes_of_coco_as_training_does(make_coco, tmp_path, monkeypatch, capsys):
    root = make_coco({"val": {"a": [("cat", 1, 1, 0, 20), ("cat", 1, 1, 9, 20)]}})
    store = tmp_path / "p.safetensors"
    write_store(store, ["1"], [np.ones((1, 4), np.float32)], [(40, 60)], {"exif": "ignore"})
    command = ["check_data.py", "--data", str(root), "--annotations", "val.json", "--images", "images"]
    for options, status, says in (
        ([], 2, "data.drop_empty_boxes=true"),
        (["--drop-empty-boxes"], 0, "1 images found"),
        (["--drop-empty-boxes", "--max-image-pixels", "100"], 1, "1 corrupt"),
        (["--drop-empty-boxes", "--max-image-pixels", "0"], 2, "error: --max-image-pixels: 0 must be 1 or more"),
        (["--drop-empty-boxes", "--proposals", str(store)], 1, "was made with --exif ignore, but data.exif is apply"),
        (["--drop-empty-boxes", "--proposals", str(store), "--exif", "ignore"], 0, "1 proposals of 1 images"),
    ):
        monkeypatch.setattr(sys, "argv", [*command, *options])
        with pytest.raises(SystemExit) as end:
            check_data_main()
        printed = "".join(capsys.readouterr())
        assert (end.value.code, says in printed) == (status, True), printed


def test_the_command_compares_proposals_with_the_images(make_voc, tmp_path, monkeypatch, capsys):
    root = make_voc({"train": {"a": [CAT]}, "val": {"b": []}})
    nan = np.array([[0, 0, 20, 20], [np.nan, 0, 1, 1], [70, 1, 80, 9]], np.float32)
    write_store(tmp_path / "p.safetensors", ["a"], [nan], [(40, 60)], {})
    for split, status, says in (
        (
            "train",
            0,
            "3 proposals of 1 images, 3 per image; skipped: 1 not numbers, 1 without area in their image; 0 im",
        ),
        ("val", 1, "no proposals for 1 of 1 images: b"),
    ):
        options = ["--data", str(root), "--splits", split, "--proposals", str(tmp_path / "p.safetensors")]
        monkeypatch.setattr(sys, "argv", ["check_data.py", *options])
        with pytest.raises(SystemExit) as end:
            check_data_main()
        assert end.value.code == status
        assert says in capsys.readouterr().out
