import json
from pathlib import Path

import pytest
from PIL import Image

from detector.data.dataset import DetectionDataset, Record
from detector.data.formats.coco import read_coco
from detector.data.formats.folder import read_folder
from detector.data.formats.voc import read_voc
from scripts import convert_data
from scripts.convert_data import main
from tests.helpers import layouts
from tests.helpers.layouts import SCENES, put_image, put_text, xml


def objects_of(dataset: DetectionDataset) -> dict[str, list[tuple]]:
    """The objects of each image file, to a hundredth of a pixel."""
    return {
        Path(record.image).stem: [
            (name, *box) for name, box in zip(record.names, record.boxes.round(2).tolist(), strict=True)
        ]
        for record in dataset.records
    }


def read(out: Path, layout: str, split: str) -> DetectionDataset:
    if layout == "voc":
        return read_voc(out, split)
    return read_coco(out, f"annotations/{split}.json", "images") if layout == "coco" else read_folder(out, split)


@pytest.mark.parametrize("layout", ["voc", "coco", "yolo"])
@pytest.mark.parametrize("make", [layouts.roboflow_coco, layouts.roboflow_yolo, layouts.raccoon])
def test_every_image_and_object_arrives(make, layout, tmp_path):
    make(tmp_path / "set")
    before = sorted((path, path.read_bytes()) for path in (tmp_path / "set").rglob("*") if path.is_file())
    out = tmp_path / "out"
    assert main(["--data", str(tmp_path / "set"), "--to", layout, "--out", str(out)]) == 0
    splits = ["train", "val"] + (["test"] if make is not layouts.raccoon else [])
    arrived: dict = {}
    for split in splits:
        assert objects_of(read(out, layout, split)) == objects_of(read_folder(tmp_path / "set", split))
        arrived |= objects_of(read(out, layout, split))
    assert arrived == SCENES
    assert sorted((path, path.read_bytes()) for path in (tmp_path / "set").rglob("*") if path.is_file()) == before


def test_fractions_difficult_objects_and_crowds(make_coco, make_voc, tmp_path, capsys):
    coco = make_coco({"train": {"a": [("cat", 1.25, 2, 10.5, 20), ("cat", 0, 0, 60, 40, True)]}, "val": {"b": []}})
    arguments = ["--data", str(coco), "--annotations", "train.json", "val.json", "--images", "images", "images"]
    assert main([*arguments, "--to", "voc", "--out", str(tmp_path / "voc")]) == 1
    assert objects_of(read_voc(tmp_path / "voc", "train")) == {"a": [("cat", 1.25, 2, 11.75, 22)]}
    assert capsys.readouterr().err == "train: 1 crowds are left out, which VOC layout does not have\n"
    assert main([*arguments, "--to", "coco", "--out", str(tmp_path / "coco2")]) == 0
    assert read_coco(tmp_path / "coco2", "annotations/train.json", "images").records[0].crowd.tolist() == [False, True]
    voc = make_voc({"train": {"a": [("cat", 1, 1, 20, 20, 1)]}})
    assert main(["--data", str(voc), "--splits", "train", "--to", "yolo", "--out", str(tmp_path / "yolo")]) == 1
    assert "train: 1 objects are no longer marked difficult" in capsys.readouterr().err
    assert main(["--data", str(voc), "--splits", "train", "--to", "voc", "--out", str(tmp_path / "voc2")]) == 0
    assert read_voc(tmp_path / "voc2", "train").records[0].difficult.tolist() == [True]


def test_what_cannot_be_used_is_listed(tmp_path, capsys):
    layouts.labelimg_xml(tmp_path / "set")
    (tmp_path / "set/img 0.jpg").write_bytes(b"no image")
    put_text(tmp_path / "set/img 1.xml", xml("img 1", [("cat", 90, 1, 99, 9), ("cat", 50, 1, 70, 9)]))
    out = tmp_path / "out"
    assert main(["--data", str(tmp_path / "set"), "--splits", "all", "--to", "coco", "--out", str(out)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[:2] for line in lines[-2:]] == [["all", " corrupt"], ["all", " skipped"]]
    content = json.loads((out / "annotations/all.json").read_text())
    assert len(content["images"]) == 9
    assert content["annotations"][0]["bbox"] == [50, 1, 14, 8]


def test_wrong_input_writes_nothing(tmp_path, capsys):
    layouts.labelimg_xml(tmp_path / "set")
    put_text(tmp_path / "full/mine", "x")
    data = ["--data", str(tmp_path / "set"), "--to", "voc", "--out"]
    for arguments, says in (
        ([*data, str(tmp_path / "full")], "not an empty folder"),
        ([*data, str(tmp_path / "set/new")], "whose images are searched"),
        ([*data, str(tmp_path / "new"), "--splits", "train", "all"], "is in train and in all"),
        ([*data, str(tmp_path / "new"), "--images", "x"], "--images belongs to --annotations"),
        ([*data, str(tmp_path / "new"), "--annotations", "a/c.json", "b/c.json"], "a/c.json, b/c.json give splits of"),
    ):
        assert main(arguments) == 2
        assert says in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "set"]


@pytest.mark.parametrize(
    ("image_ids", "says"),
    [
        (["../../x"], "its id leads out of"),
        (["{tmp_path}/x"], "its id leads out of"),
        (["a", "b/../a"], "is the copy of another image"),
    ],
)
def test_ids_of_an_untrusted_dataset_overwrite_nothing(tmp_path, monkeypatch, capsys, image_ids, says):
    monkeypatch.setattr(DetectionDataset, "__post_init__", lambda _: None)  # which refuses these ids too
    put_image(tmp_path / "set/a.jpg")
    ids = [image_id.format(tmp_path=tmp_path) for image_id in image_ids]
    records = [Record(image_id, tmp_path / "set/a.jpg", tmp_path / "set/a.json") for image_id in ids]
    monkeypatch.setattr(convert_data, "read_splits", lambda _: {"train": DetectionDataset("t", ("cat",), records)})
    assert main(["--data", str(tmp_path / "set"), "--to", "voc", "--out", str(tmp_path / "parent/out")]) == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] in (["set"], ["set", "parent"], ["parent", "set"])
    assert not (tmp_path / "parent/x.jpg").exists()


def test_an_image_on_its_side_keeps_its_boxes(tmp_path):
    image = Image.new("RGB", (40, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "set").mkdir()
    image.save(tmp_path / "set/a.jpg", exif=exif)
    put_text(tmp_path / "set/a.xml", xml("a", [("cat", 3, 4, 50, 38)], size=(60, 40)))
    put_image(tmp_path / "set/b.jpg")
    put_text(tmp_path / "set/b.xml", xml("b", []))
    assert main(["--data", str(tmp_path / "set"), "--splits", "all", "--to", "yolo", "--out", str(tmp_path / "o")]) == 0
    assert objects_of(read_folder(tmp_path / "o", "all"))["a"] == [("cat", 3, 4, 50, 38)]
