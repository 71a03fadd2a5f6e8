import json
import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
import train
from detector.builders import datasets
from detector.data.check import accept, check_data, require_all_valid
from detector.data.formats.folder import read_folder
from detector.data.formats.folder.new_split import near_copies, stratify
from detector.errors import InputError
from detector.proposals.store import ProposalStore
from scripts.check_data import main as check_data_main
from scripts.detect import main as detect
from scripts.proposals import main as proposals_main
from tests.conftest import compose_settings
from tests.helpers import layouts
from tests.helpers.layouts import SCENES, put_image, put_text, xml


def objects_of(dataset) -> dict[str, list[tuple]]:
    """The objects of each image, rounded to pixels."""
    return {
        record.image_id: [
            (name, *box) for name, box in zip(record.names, record.boxes.round().astype(int).tolist(), strict=True)
        ]
        for record in dataset.records
    }


@pytest.mark.parametrize("make", layouts.WITH_SPLITS, ids=lambda make: make.__name__)
def test_a_layout_with_splits(make, tmp_path):
    make(tmp_path)
    assert objects_of(read_folder(tmp_path, "all")) == SCENES
    for split, own in (("train", "train"), ("val", "valid"), ("test", "test")):
        dataset = read_folder(tmp_path, split)
        assert objects_of(dataset) == layouts.of_split(own)
        assert dataset.classes == ("cat", "dog")
        require_all_valid(check_data(dataset))


@pytest.mark.parametrize("make", layouts.WITHOUT_SPLITS, ids=lambda make: make.__name__)
def test_a_layout_without_splits(make, tmp_path):
    make(tmp_path)
    everything = read_folder(tmp_path, "all")
    assert objects_of(everything) == SCENES
    require_all_valid(check_data(everything))
    train_ids, val_ids = (read_folder(tmp_path, split).image_ids for split in ("train", "val"))
    assert (len(train_ids), len(val_ids)) == (8, 2)
    assert sorted(train_ids + val_ids) == sorted(SCENES)


@pytest.fixture
def fruit(tmp_path) -> Path:
    layouts.fruit(tmp_path / "fruit")
    return tmp_path / "fruit"


def run_settings(program: str, tmp_path: Path, *overrides: str):
    return compose_settings(program, f"proposals.folder={tmp_path / 'p'}", "workers=0", "device=cpu", *overrides)


TINY = (
    "data.short_side_px=48", "data.max_side_px=64", "proposals.mode=single", "model.hidden=16", "train.iterations=1",
    "model.backbone=alexnet",
    "train.images_per_batch=2", "roi.rois_per_image=8", "precision=float32",
)  # fmt: skip


@pytest.mark.slow
def test_two_commands_train_and_score_on_the_same_images(fruit, tmp_path):
    before = {path: path.read_bytes() for path in fruit.rglob("*") if path.is_file()}
    data = ("data=folder", f"data.root={fruit}", "data.fold=2/3", "data.max_bad_fraction=0.2")
    train.main(run_settings("train", tmp_path, *data, *TINY, f"run.dir={tmp_path / 'run'}"))
    split = json.loads((tmp_path / "run/split.json").read_text())
    assert "broken" not in split["train"] + split["val"]  # the truncated JPEG is skipped
    assert len(split["train"]) + len(split["val"]) == 7  # those of train/, as test/ is not touched by a fold
    assert len({"img 0", "img 0 (1)"} & {*split["val"]}) in (0, 2)
    checkpoint = f"checkpoint={tmp_path / 'run/checkpoints/last.pt'}"
    for given in ((), ("data=folder", f"data.root={fruit}")):
        out = tmp_path / f"out{len(given)}"
        evaluate.main(run_settings("evaluate", tmp_path, checkpoint, f"out={out}", *given))
        detected = {item["image_id"] for item in json.loads((out / "detections.json").read_text())}
        assert detected == {*split["val"]}
    found = tmp_path / "found"
    arguments = ["--checkpoint", checkpoint.partition("=")[2], "--data", fruit, "--split", "test", "--out", found]
    assert detect([str(item) for item in [*arguments, "--mode", "single"]]) == 0
    assert sorted(path.stem for path in (found / "pictures").iterdir()) == ["img 6", "img 7", "img 8", "img 9"]
    assert {path: path.read_bytes() for path in fruit.rglob("*") if path.is_file()} == before


def test_scripts_read_the_same_folder(fruit, tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level(logging.INFO)
    for options, status, says in (
        ([], 1, ["12 images with VOC XML", "fruit-all: 12 images found", "corrupt: ", "all 12 are used"]),
        (["--splits", "train", "test"], 1, ["fruit-train: 8 images found", "fruit-test: 4 images found"]),
        (["--format", "coco"], 2, []),
    ):
        monkeypatch.setattr(sys, "argv", ["check_data.py", "--data", str(fruit), *options])
        with pytest.raises(SystemExit) as end:
            check_data_main()
        printed = capsys.readouterr()
        said = printed.out + caplog.text
        assert (end.value.code, [line for line in says if line not in said]) == (status, [])
    assert "there is no COCO JSON (data.format=coco)" in printed.err
    out, data = tmp_path / "p.safetensors", ["--data", str(fruit), "--mode", "single", "--max-bad-fraction", "0.1"]
    with pytest.raises(SystemExit) as end:
        proposals_main(["generate", *data, "--out", str(out)])
    assert end.value.code == 0
    store = ProposalStore(out)
    assert [id for id in read_folder(fruit, "all").image_ids if id not in store] == ["broken"]


def test_sizes_of_zero_a_truncated_image_and_a_test_folder(fruit, caplog):
    caplog.set_level(logging.INFO)
    checked = accept(check_data(read_folder(fruit, "train")), 0.2)
    assert [kind for kind, _ in checked.bad] == ["corrupt"]
    assert len(checked.dataset) == 7
    assert read_folder(fruit, "val").image_ids == ["img 6", "img 7", "img 8", "img 9"]
    assert "12 images with VOC XML, objects: dog 9, cat 6; 1 have no object (background)" in caplog.text
    assert "splits by folder and file names: test 4, train 8, where test is used as val" in caplog.text


def test_settings_of_the_split(tmp_path, settings):
    layouts.labelimg_xml(tmp_path)

    def val(*overrides: str) -> list[str]:
        data = settings("train", "data=folder", f"data.root={tmp_path}", *overrides).data
        parts = [datasets.build_dataset(data, part).image_ids for part in ("train", "val")]
        assert sorted(parts[0] + parts[1]) == sorted(SCENES)
        return parts[1]

    assert val() == val()
    assert len(val("data.val_fraction=0.4")) == 4
    assert len({tuple(val(f"data.split_seed={seed}")) for seed in range(5)}) > 1
    folds = [val(f"data.fold={fold}/5") for fold in range(1, 6)]
    assert sorted(id for ids in folds for id in ids) == sorted(SCENES)
    with pytest.raises(InputError, match=r"data\.val_fraction=0\.5 and data\.fold=1/2: give one of them"):
        val("data.val_fraction=0.5", "data.fold=1/2")
    with pytest.raises(InputError, match=r"data\.fold=3/2: must be K/N with K from 1 to N"):
        val("data.fold=3/2")
    with pytest.raises(InputError, match=r"data\.fold=half: must be null or K/N, such as 1/5"):
        val("data.fold=half")


def test_a_split_that_is_asked_for_leaves_the_test_images(tmp_path):
    layouts.roboflow_yolo(tmp_path)
    ids = {split: read_folder(tmp_path, split, val_fraction=0.25).image_ids for split in ("train", "val", "test")}
    assert ids["test"] == ["img 8", "img 9"]
    assert len(ids["val"]) == 2
    assert sorted(ids["train"] + ids["val"]) == [*SCENES][:8]


def test_copies_and_near_copies_stay_together(tmp_path):
    layouts.labelimg_xml(tmp_path)
    for number in range(4):  # a copy that is smaller, darker and saved again
        small = layouts.picture(f"img {number}").resize((48, 36)).point(lambda value: int(0.8 * value))
        small.save(tmp_path / f"copy {number}.jpg", quality=60)
        put_text(tmp_path / f"copy {number}.xml", xml("copy", [], size=(0, 0)))
    shutil.copy(tmp_path / "img 9.jpg", tmp_path / "again.jpg")
    put_text(tmp_path / "again.xml", xml("again", []))
    for name in ("one_jpg.rf.0a.jpg", "one_jpg.rf.1b.jpg"):  # two augmented versions by Roboflow
        put_image(tmp_path / name)
        put_text((tmp_path / name).with_suffix(".xml"), xml(name, []))
    for fold in range(1, 5):
        ids = read_folder(tmp_path, "val", fold=f"{fold}/4").image_ids
        for pair in [*((f"img {number}", f"copy {number}") for number in range(4)), ("img 9", "again"),
                     ("one_jpg.rf.0a", "one_jpg.rf.1b")]:  # fmt: skip
            assert len({*pair} & {*ids}) in (0, 2), pair
    records = read_folder(tmp_path, "all").records
    assert len(near_copies(records, [None] * len(records))) == len(records) - 2  # by content and name alone


def test_each_part_has_its_share_of_every_class():
    generator = np.random.default_rng(0)
    labels = [{name for name, p in (("a", 0.7), ("b", 0.3), ("rare", 0.03)) if generator.random() < p} or {""}
              for _ in range(500)]  # fmt: skip
    groups = [[number] for number in range(500)]
    chosen = np.array(stratify(groups, labels, [0.8, 0.2], seed=1))
    for name in ("a", "b", "rare", ""):
        has = np.array([name in item for item in labels])
        assert abs((chosen[has] == 1).sum() - 0.2 * has.sum()) <= 1, name
    assert abs((chosen == 1).sum() - 100) <= 3


def test_what_cannot_be_scored_goes_to_train(tmp_path):
    layouts.labelimg_xml(tmp_path)
    (tmp_path / "img 0.jpg").write_bytes(b"no image")
    put_text(tmp_path / "img 1.xml", "<annotation>")
    put_text(tmp_path / "img 2.xml", xml("img 2", [("cat", 200, 2, 220, 9)]))
    put_text(tmp_path / "img 3.xml", xml("img 3", [("cat", 1, 2, 3, 9)], size=(640, 480)))
    put_text(tmp_path / "gone.xml", xml("gone", [("cat", 1, 2, 3, 9)]))
    for seed in range(5):
        assert not {"img 0", "img 1", "img 2", "img 3", "gone"} & {
            *read_folder(tmp_path, "val", split_seed=seed).image_ids
        }
    checked = check_data(read_folder(tmp_path, "train"))
    assert sorted(kind for kind, _ in checked.bad) == ["corrupt", "misannotated", "misannotated", "missing"]


def test_ids_are_stems_or_paths(tmp_path):
    put_image(tmp_path / "a/x.jpg"), put_text(tmp_path / "a/x.xml", xml("x", []))
    assert read_folder(tmp_path, "all").image_ids == ["x"]
    put_image(tmp_path / "b/x.jpg"), put_text(tmp_path / "b/x.xml", xml("x", []))
    assert read_folder(tmp_path, "all").image_ids == ["a/x", "b/x"]


def test_voc_layout_has_the_same_ids_and_lists(make_voc):
    root = make_voc({"trainval": {"b": [("cat", 1, 1, 20, 20)], "a": []}, "test": {"c": []}})
    assert read_folder(root, "train").image_ids == ["b", "a"]
    assert read_folder(root, "val").image_ids == ["c"]


def test_a_voc_folder_without_lists_names_the_way_out(tmp_path, settings):
    layouts.label_studio_voc(tmp_path)
    data = settings("train", "data=voc", f"data.root={tmp_path}").data
    with pytest.raises(InputError, match="has no folder ImageSets/Main. data=folder reads any folder"):
        datasets.build_dataset(data, "train")


def test_the_log_says_what_is_not_used(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    layouts.labelimg_yolo(tmp_path)
    put_image(tmp_path / "extra.jpg")
    put_text(tmp_path / "LICENSE.txt", "free")
    (tmp_path / ".hidden").mkdir()
    put_image(tmp_path / ".hidden/x.jpg")
    read_folder(tmp_path, "train")
    assert caplog.messages == [
        f"{tmp_path}: 10 images with YOLO text, objects: dog 7, cat 5; 1 have no object (background); 1 images without "
        "annotation are not used (extra.jpg); a split is made (data.split_seed=0): train 8, val 2"
    ]


def test_a_linked_folder_is_followed_once(tmp_path):
    layouts.labelimg_xml(tmp_path / "real")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/link").symlink_to(tmp_path / "real")
    (tmp_path / "real/loop").symlink_to(tmp_path / "real")
    assert len(read_folder(tmp_path / "data", "all")) == 10


def test_yolo_polygons_and_labelme_shapes(tmp_path):
    put_image(tmp_path / "yolo/a.jpg")
    put_text(tmp_path / "yolo/classes.txt", "cat\n")
    put_text(tmp_path / "yolo/a.txt", "0 0.25 0.5 0.5 0.25 0.75 0.75\n")
    assert objects_of(read_folder(tmp_path / "yolo", "all")) == {"a": [("cat", 16, 12, 48, 36)]}
    shapes = [
        {"label": "cat", "points": [[1, 2], [9, 3], [5, 30]]},
        {"label": "dog", "points": [[20, 20], [23, 24]], "shape_type": "circle"},
        {"label": "dog", "points": [[20, 20]], "shape_type": "point"},
        {"label": "dog", "points": [[20, 20]], "shape_type": ["point"]},
    ]
    put_image(tmp_path / "me/a.jpg")
    put_text(tmp_path / "me/a.json", json.dumps({"shapes": shapes}))
    dataset = read_folder(tmp_path / "me", "all")
    assert objects_of(dataset) == {"a": [("cat", 1, 2, 9, 30), ("dog", 15, 15, 25, 25)]}
    assert dataset.records[0].skipped == (
        f"{tmp_path}/me/a.json: shape 3 is a point, which has no bounding box",
        f"{tmp_path}/me/a.json: shape 4 is a ['point'], which has no bounding box",
    )


def coco_named_alike(root: Path) -> None:
    """Images of the same names in the folder of each split, which the COCO files name without folder."""
    for split in ("train", "valid", "test"):
        scenes = {f"{number:03}": objects for number, objects in enumerate(layouts.of_split(split).values())}
        for name, own in zip(scenes, layouts.of_split(split), strict=True):
            layouts.picture(own).save(put_image(root / f"images/{split}/{name}.jpg"))
        put_text(root / f"annotations/instances_{split}2017.json", layouts.coco(scenes))


def xml_in_subfolders(root: Path) -> None:
    """The same names in each folder, with the annotations in a folder below."""
    for number, (name, objects) in enumerate(SCENES.items()):
        put_image(root / f"day {number // 5}/{number % 5:03}.jpg")
        put_text(root / f"day {number // 5}/xml/{number % 5:03}.xml", xml(name, objects))


def xml_of_other_names(root: Path) -> None:
    """An XML file that only <filename> joins to its image; and one image as JPEG and PNG."""
    for number, (name, objects) in enumerate(SCENES.items()):
        put_image(root / f"images/{name}.jpg")
        put_text(root / f"annotations/{number or name}.xml", xml(name, objects))
    put_image(root / "images/img 0.png")


def converted_images(root: Path) -> None:
    for name in SCENES:
        put_image(root / f"photos/{name}.jpg").rename(root / f"photos/{name}.jfif")
    put_text(root / "all.json", layouts.coco(SCENES, "D:\\me\\{}.png"))


def yolo_pose(root: Path) -> None:
    """Three keypoints after each box, and a data.yaml that omits the split test/."""
    layouts.roboflow_yolo(root)
    for path in root.rglob("*.txt"):
        path.write_text("".join(f"{line} .1 .1 2 .9 .9 1 0 0 0\n" for line in path.read_text().splitlines()))
    head = "train: train/images\nval: valid/images\nkpt_shape: [3, 3]\n"
    put_text(root / "data.yaml", head + "names: {'0': cat, '1': dog}")


def open_images(root: Path) -> None:
    """Fractions of the image, and codes of the classes."""
    lines = ["ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded"]
    for name, objects in SCENES.items():
        put_image(root / f"images/{name}.jpg")
        for cls, x1, y1, x2, y2 in objects:
            corners = f"{x1 / 64},{x2 / 64},{y1 / 48},{y2 / 48}"
            lines.append(f"{name},xclick,/m/{cls},1,{corners},0")
    put_text(root / "annotations-bbox.csv", "\n".join(lines))
    put_text(root / "oidv7-class-descriptions-boxable.csv", "LabelName,DisplayName\n/m/cat,cat\n/m/dog,dog\n")


@pytest.mark.parametrize(
    "make", [coco_named_alike, xml_in_subfolders, xml_of_other_names, converted_images, yolo_pose, open_images],
    ids=lambda make: make.__name__,
)  # fmt: skip
def test_every_annotation_finds_its_image(make, tmp_path):
    make(tmp_path)
    dataset = read_folder(tmp_path, "all")
    require_all_valid(check_data(dataset))
    objects = [[row[1:] for row in rows] for rows in objects_of(dataset).values()]
    scenes = [[row[1:] for row in rows] for rows in SCENES.values() if rows or make is not open_images]
    assert sorted(objects) == sorted(scenes)
    assert dataset.classes == ("cat", "dog")
    if make in (coco_named_alike, yolo_pose):
        assert [len(read_folder(tmp_path, split)) for split in ("train", "val", "test")] == [6, 2, 2]


def test_without_a_usable_object_the_first_fault_is_named(tmp_path):
    layouts.labelimg_xml(tmp_path / "data")
    for path in (tmp_path / "data").glob("*.xml"):
        path.write_text(path.read_text().replace("</xmin>", ",5</xmin>"))
    says = r"no object in any annotation to learn from: .*img \d\.xml: object 1: <xmin> must be a number, it is '\d,5'"
    with pytest.raises(InputError, match=says):
        train.main(run_settings("train", tmp_path, "data=folder", f"data.root={tmp_path / 'data'}", *TINY))


def test_data_format_decides_between_contradictions(tmp_path):
    layouts.labelimg_xml(tmp_path)
    layouts.put_csv(tmp_path / "boxes.csv", {name: [("cow", 1, 2, 30, 40)] for name in SCENES}, layouts.TENSORFLOW)
    with pytest.raises(
        InputError, match=r"differ: img 0.jpg has .* Choose one with data.format=voc or data.format=csv"
    ):
        read_folder(tmp_path, "all")
    assert read_folder(tmp_path, "all", format="csv").classes == ("cow",)
    assert read_folder(tmp_path, "all", format="voc").classes == ("cat", "dog")


def grey(path: Path) -> None:
    Image.new("L", (64, 48), 128).save(path)


def test_flat_images_are_no_copies_of_each_other(tmp_path):
    for name in "abcdef":
        Image.new("RGB", (64, 48), (9 * ord(name) % 255, 100, 100)).save(tmp_path / f"{name}.png")
        put_text(tmp_path / f"{name}.xml", xml(name, [("cat", 1, 2, 30, 40)]))
    assert len(read_folder(tmp_path, "val").image_ids) == 1


def test_files_of_other_programs_are_no_annotations(tmp_path):
    layouts.labelimg_xml(tmp_path)
    put_text(tmp_path / "img 0.txt", "a cat on a sofa")
    put_text(tmp_path / "train.txt", "notes on the training\n")
    put_text(tmp_path / "settings.json", "{ // with a comment\n}")
    put_text(tmp_path / "environment.yaml", "name: x\n")
    put_text(tmp_path / "project.xml", "<project></project>")
    (tmp_path / "prices.csv").write_bytes(b"\xff;1\n")
    os.mkfifo(tmp_path / "img 1.txt")
    assert objects_of(read_folder(tmp_path, "all")) == SCENES


def test_a_yaml_that_expands_without_end_is_one_error(tmp_path):
    layouts.roboflow_yolo(tmp_path)
    lines = ["a: &a0 [x, x]", *(f"b{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)), "names: [*a59]"]
    put_text(tmp_path / "data.yaml", "\n".join([*lines, "path: *a59", "train: [*a59]"]))
    with pytest.raises(InputError, match=r"data\.yaml: 'names' is neither a list of names nor a map"):
        read_folder(tmp_path, "train")


def test_a_missing_image_without_suffix_has_an_id(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / name / "x.png")
    rows = [f"{name},1,1,5,5,cat\n" for name in ("a/x.png", "b/x.png", "none")]
    (tmp_path / "boxes.csv").write_text("filename,xmin,ymin,xmax,ymax,class\n" + "".join(rows))
    assert read_folder(tmp_path, "all").image_ids == ["a/x", "b/x", "none"]


def test_a_narrow_box_of_fractions_keeps_its_area(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    (tmp_path / "boxes.csv").write_text("filename,xmin,ymin,xmax,ymax,class\nx.png,0.1,0.1,0.1001,0.5,cat\n")
    [x1, _, x2, y2] = read_folder(tmp_path, "all").ground_truth(0).boxes[0]
    assert (x2 > x1, round(float(y2), 4)) == (True, 4.5)
