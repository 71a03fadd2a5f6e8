"""Folders as labelling programs export them and as people keep them: what is read, and one command that trains."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import pytest
import torch

import train
from detector.data.formats.folder import read_folder
from detector.training.trainer import Trainer
from tests.conftest import compose_settings
from tests.helpers import layouts
from tests.helpers.layouts import CLASSES, HEIGHT, SCENES, WIDTH, put_image, put_text, xml, yolo

WITH_SPLITS = {make.__name__: make for make in layouts.WITH_SPLITS}
WITHOUT_SPLITS = {make.__name__: make for make in [*layouts.WITHOUT_SPLITS, layouts.fruit]}
# Not trained on in the fast suite: another one of the same format is.
REPEATED = {
    "ultralytics", "csv_retinanet", "coco_files", "roboflow_darknet", "roboflow_csv", "roboflow_createml",
    "cvat_ultralytics",
}  # fmt: skip
TEXT = (".xml", ".txt", ".json", ".csv", ".yaml", ".names", ".labels")


@pytest.fixture
def one_thread():
    """Networks of this size are faster so, and much faster beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def objects_of(root: Path, split: str = "all") -> dict[str, list[tuple]]:
    """The objects of each image, rounded to pixels."""
    return {
        record.image_id: [
            (name, *box) for name, box in zip(record.names, record.boxes.round().astype(int).tolist(), strict=True)
        ]
        for record in read_folder(root, split).records
    }


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in REPEATED else ()) for name in WITH_SPLITS | WITHOUT_SPLITS],
)
def test_one_command_trains_on_a_layout(name, tmp_path, monkeypatch, one_thread):
    """Two steps and a detection of all images; what is drawn and saved is tested elsewhere."""
    root, run = tmp_path / "data", tmp_path / "run"
    (WITH_SPLITS | WITHOUT_SPLITS)[name](root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    detected = []
    monkeypatch.setattr(Trainer, "report", lambda self, tracker, iteration, found, losses: detected.extend(found))
    monkeypatch.setattr(Trainer, "log_rois", lambda *_: None)
    monkeypatch.setattr(Trainer, "save", lambda *_, **__: None)
    command = [
        "data=folder", f"data.root={root}", "train.iterations=2", "model.backbone=alexnet", "model.hidden=16",
        "data.short_side_px=48", "data.max_side_px=64", "proposals.mode=single", "train.images_per_batch=2",
        "roi.rois_per_image=8", "precision=float32", "device=cpu", "workers=0", "data.max_bad_fraction=0.2",
        f"proposals.folder={tmp_path / 'proposals'}", f"run.dir={run}", "train.log_every=1",
    ]  # fmt: skip
    train.main(compose_settings("train", *command))
    split = json.loads((run / "split.json").read_text())
    if name in WITH_SPLITS:
        assert split == {"train": [*layouts.of_split("train")], "val": [*layouts.of_split("valid")]}
    elif name == "fruit":  # with its second copy of an image, and without its truncated one
        assert split == {"train": ["img 0 (1)", *layouts.of_split("train")], "val": [*SCENES][6:]}
    else:
        assert (len(split["train"]), len(split["val"])) == (8, 2)
        assert sorted(split["train"] + split["val"]) == [*SCENES]
    assert [found.image_id for found in detected] == split["val"]
    losses = [json.loads(line)["loss/train"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Change the content of each text file."""

    def apply(root: Path) -> None:
        for path in [path for path in root.rglob("*") if path.suffix.lower() in TEXT]:
            path.write_bytes(change(path.read_bytes()))

    return apply


def rename(change: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        for path in [path for path in root.rglob("*") if path.is_file()]:
            path.rename(path.with_name(change(path.name)))

    return apply


def deeper(root: Path) -> None:
    inner = root / "export (1)" / "animals v2" / "final"
    inner.mkdir(parents=True)
    for path in [path for path in root.iterdir() if path.name != "export (1)"]:
        path.rename(inner / path.name)


def litter(root: Path) -> None:
    """What file managers and programs leave, a picture without annotation, and hidden files."""
    for name in ("Thumbs.db", "desktop.ini", "labels.cache", "._img 0.jpg", ".DS_Store", "README.dataset.txt"):
        put_text(root / name, "0")
    put_text(root / "__MACOSX/._img 0.xml", "\0\1")
    put_image(root / "not labelled yet.jpg")


UPPER = rename(lambda name: name[: name.rindex(".")] + name[name.rindex(".") :].upper())
MESS = {
    "deeper": deeper,
    "litter": litter,
    "upper": UPPER,
    "crlf": rewrite(lambda data: data.replace(b"\n", b"\r\n")),
    "bom": rewrite(lambda data: b"\xef\xbb\xbf" + data),
    "no-newline": rewrite(lambda data: data.rstrip(b"\n")),
    "utf16": rewrite(lambda data: data.decode().encode("utf-16")),
}
ONE_OF_EACH_FORMAT = (
    "labelimg_xml", "roboflow_yolo", "label_studio_yolo", "cvat_yolo", "roboflow_coco", "labelme_json",
    "label_studio_json", "labelimg_createml", "cvat_images", "csv_table",
)  # fmt: skip


@pytest.mark.parametrize("mess", MESS)
@pytest.mark.parametrize("name", ONE_OF_EACH_FORMAT)
def test_a_layout_in_other_bytes_and_names(name, mess, tmp_path):
    (WITH_SPLITS | WITHOUT_SPLITS)[name](tmp_path)
    if (name, mess) == ("cvat_images", "utf16"):  # its first line says utf-8
        put_text(tmp_path / "annotations.xml", (tmp_path / "annotations.xml").read_text().partition("\n")[2])
    MESS[mess](tmp_path)
    assert objects_of(tmp_path) == SCENES
    if name in WITH_SPLITS:
        assert objects_of(tmp_path, "train") == layouts.of_split("train")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_umlauts_composed_and_decomposed(form, tmp_path):
    """macOS stores decomposed names; annotations have what was typed."""
    name = "Bär auf Straße 1"
    put_image(tmp_path / f"fotos/{normalize(form, name)}.JPG")
    other = normalize("NFD" if form == "NFC" else "NFC", name)
    expected = {normalize(form, name): [("cat", 1, 2, 30, 40)]}
    for put in (
        lambda: put_text(tmp_path / f"labels/{other}.xml", xml(other, [("cat", 1, 2, 30, 40)])),
        lambda: layouts.put_csv(tmp_path / "labels/a.csv", {other: [("cat", 1, 2, 30, 40)]}, layouts.TENSORFLOW),
        lambda: put_text(tmp_path / "labels/a.json", layouts.coco({other: [("cat", 1, 2, 30, 40)]})),
    ):
        put()
        assert objects_of(tmp_path) == expected
        shutil.rmtree(tmp_path / "labels")


def test_case_decides_only_where_names_differ_in_it(tmp_path):
    put_image(tmp_path / "images/IMG_1.jpg")
    put_text(tmp_path / "labels/img_1.xml", xml("", [("cat", 1, 2, 30, 40)]))
    assert objects_of(tmp_path) == {"IMG_1": [("cat", 1, 2, 30, 40)]}
    put_image(tmp_path / "images/img_1.jpg")
    if len([*(tmp_path / "images").iterdir()]) == 2:  # not on a file system that ignores case
        assert objects_of(tmp_path) == {"img_1": [("cat", 1, 2, 30, 40)]}


def test_polygons_in_place_of_yolo_boxes(tmp_path):
    layouts.roboflow_yolo(tmp_path)
    for split in ("train", "valid", "test"):
        for name, objects in layouts.of_split(split).items():
            lines = [
                f"{CLASSES.index(cls)} {x1 / WIDTH} {y1 / HEIGHT} {x2 / WIDTH} {y1 / HEIGHT} {x2 / WIDTH} {y2 / HEIGHT}"
                for cls, x1, y1, x2, y2 in objects
            ]
            put_text(tmp_path / split / f"labels/{name}.txt", "\n".join(lines))
    assert objects_of(tmp_path) == SCENES


@pytest.mark.parametrize(
    "places", ["../{}/images", "./{}/images", "{}/images", "/content/animals-1/{}/images", "C:\\d\\{}"]
)
def test_the_paths_of_a_data_yaml_lead_elsewhere(places, tmp_path):
    layouts.roboflow_yolo(tmp_path)
    paths = {key: places.format(folder) for key, folder in (("train", "train"), ("val", "valid"), ("test", "test"))}
    lines = [*(f"{key}: {path}" for key, path in paths.items()), "", "nc: 2", "names: ['cat', 'dog']", "",
             "roboflow:", "  workspace: me", "  version: 1"]  # fmt: skip
    put_text(tmp_path / "data.yaml", "\n".join(lines))
    for split, own in (("train", "train"), ("val", "valid"), ("test", "test")):
        assert objects_of(tmp_path, split) == layouts.of_split(own)


def test_classes_as_numpy_writes_them(tmp_path):
    layouts.label_studio_yolo(tmp_path)
    for name, objects in SCENES.items():
        lines = [" ".join(f"{float(value):.18e}" for value in line.split()) for line in yolo(objects).splitlines()]
        put_text(tmp_path / f"labels/{name}.txt", "\n".join(lines))
    assert objects_of(tmp_path) == SCENES


def test_images_and_annotations_that_have_no_partner(tmp_path, caplog):
    caplog.set_level("INFO")
    layouts.raccoon(tmp_path)
    shutil.rmtree(tmp_path / "data")
    put_image(tmp_path / "images/unlabelled.jpg")
    put_text(tmp_path / "annotations/deleted.xml", xml("deleted", [("cat", 1, 2, 30, 40)]))
    assert [*objects_of(tmp_path)] == ["deleted", *SCENES]
    assert (
        "1 images without annotation are not used (images/unlabelled.jpg); 1 annotations have no image" in caplog.text
    )


def label_studio_shape(**value: object) -> dict:
    return {"id": "a", "original_width": 200, "original_height": 100, "value": value}


def test_shapes_of_label_studio(tmp_path):
    put_image(tmp_path / "a.jpg")
    results = [
        label_studio_shape(x=10, y=20, width=30, height=40, rotation=0),  # of two results for one box
        label_studio_shape(x=10, y=20, width=30, height=40, rotation=0, labels=["cat"]),
        label_studio_shape(points=[[5, 10], [50, 20], [20, 80]], polygonlabels=["dog"]),
        label_studio_shape(x=50, y=50, radiusX=10, radiusY=20, ellipselabels=["dog"]),
        label_studio_shape(x=10, y=20, width=30, height=40, rotation=30, rectanglelabels=["cat"]),
        label_studio_shape(format="rle", rle=[1, 2], brushlabels=["cat"]),
        {"type": "relation", "from_id": "a", "to_id": "b"},
    ]
    task = {"id": 7, "data": {"img": "s3://bucket/new/a.jpg"}, "annotations": [{"result": results}]}
    put_text(tmp_path / "p.json", json.dumps([task]))
    assert objects_of(tmp_path) == {"a": [("cat", 20, 20, 80, 60), ("dog", 10, 10, 100, 80), ("dog", 80, 30, 120, 70)]}
    (record,) = read_folder(tmp_path, "all").records
    assert [line.removeprefix(f"{tmp_path}/p.json: task 7: ") for line in record.skipped] == [
        "shape 5 is rotated, which has no bounding box", "shape 6 is brushlabels, which has no bounding box",
    ]  # fmt: skip
