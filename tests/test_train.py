"""train.py from end to end, on a few small scenes."""

import json
import logging
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import detector
import evaluate
import train
from detector.builders import training
from detector.data.dataset import DetectionDataset
from detector.data.formats.voc import read_voc
from detector.errors import InputError
from detector.proposals.generate import generate_proposals
from detector.proposals.store import write_store
from detector.runtime.device import set_deterministic
from detector.training.checkpoint import Checkpoints
from tests.conftest import REPOSITORY, compose_settings
from tests.helpers.processes import program

pytestmark = pytest.mark.usefixtures("without_pictures")


def test_a_run_leaves_what_is_promised(run):
    for name in (
        "checkpoints/last.pt",
        "checkpoints/best.pt",
        "config.yaml",
        "metrics.jsonl",
        "metrics.json",
        "report.html",
        "label_errors.csv",
        "train.log",
    ):
        assert (run / name).is_file(), name
    checkpoint = torch.load(run / "checkpoints/last.pt", weights_only=True)
    assert checkpoint["iteration"] == 4
    assert checkpoint["config"]["data"]["short_side_px"] == 96
    assert checkpoint["config"]["optimizer"]["lr"] == pytest.approx(0.00015 * 2**0.5)
    assert checkpoint["classes"] == ["ball", "crate", "kite", "star"]
    assert "shapes-train: 6 images found, 0 missing" in (run / "train.log").read_text()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [2, 2, 3, 4, 4]
    logged = {tag for line in lines for tag in line}
    assert logged >= {
        "loss/train", "loss/train_cls", "loss/train_box", "train/lr", "train/grad_norm", "roi/foreground_accuracy",
        "roi/background_accuracy", "roi/foreground_fraction", "time/step_s", "time/data_s", "time/images_per_s",
        "memory/peak_mib", "proposals/recall_0.50", "proposals/recall_0.70", "proposals/average_recall",
        "loss/val", "mAP/11point_0.50", "mAP/area_0.50", "val_AP_area_0.50/ball",
    }  # fmt: skip
    tags = EventAccumulator(str(run)).Reload().Tags()
    assert set(tags["images"]) == {"train/rois", "val/confusion", "val/test_0", "val/test_1", "val/test_2"}
    assert tags["histograms"] == ["roi/iou"]
    assert logged - {"iteration"} <= set(tags["scalars"])
    steps = [line for line in lines if "time/step_s" in line]
    assert [line["time/images_per_s"] * line["time/step_s"] for line in steps] == pytest.approx([2.0] * len(steps))
    ids = {row.split("\t")[1] for row in (run / "00004/objects/metadata.tsv").read_text().splitlines()[1:]}
    assert ids == {"test_0", "test_1", "test_2"}
    best = torch.load(run / "checkpoints/best.pt", weights_only=True)["iteration"]
    by_iteration = {line["iteration"]: line["mAP/11point_0.50"] for line in lines if "loss/val" in line}
    assert by_iteration[best] == max(by_iteration.values())


@pytest.mark.parametrize(("overrides", "best"), [([], 2), (["metric.main=coco", "metric.coco=true"], 4)])
def test_the_main_metric_decides_which_checkpoint_is_best(settings, common, tmp_path, monkeypatch, overrides, best):
    """By 11point the first evaluation, at iteration 2, is the better one, by COCO's AP the second."""
    values = iter([{None: 0.9, "coco": 0.1}, {None: 0.5, "coco": 0.2}])

    def scored(folder, dataset, scores, *_, page):
        main = scores.metric.main
        voc = {"area@0.50": {"mAP": 0.0, "AP": {}}}
        return {"main": {"metric": str(main), "value": next(values)[main]}, "loss": {}, "voc": voc}

    monkeypatch.setattr("detector.training.trainer.write_report", scored)
    train.main(settings("train", *common, *overrides, f"run.dir={tmp_path}/run"))
    assert torch.load(tmp_path / "run/checkpoints/best.pt", weights_only=True)["iteration"] == best


@pytest.mark.slow
def test_a_run_without_better_evaluations_ends_early(settings, common, tmp_path, monkeypatch, caplog):
    """The second evaluation is the best. With more patience the run resumes where it ended."""
    caplog.set_level(logging.INFO)
    values, pages = iter([0.5, 0.9, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0]), []

    def scored(*_, page):
        pages.append(page)
        voc = {"area@0.50": {"mAP": 0.0, "AP": {}}}
        return {"main": {"metric": "11point@0.50", "value": next(values)}, "loss": {}, "voc": voc}

    def fit(patience: int) -> tuple[int, int]:
        every = ["train.eval_every=1", "train.checkpoint_every=9", "train.iterations=9", f"train.patience={patience}"]
        train.main(settings("train", *common, *every, "resume=auto", f"run.dir={tmp_path}/run"))
        folder = tmp_path / "run/checkpoints"
        names = ("best.pt", "last.pt")
        return tuple(torch.load(folder / name, weights_only=True)["iteration"] for name in names)

    monkeypatch.setattr("detector.training.trainer.write_report", scored)
    assert fit(patience=2) == (2, 4)
    assert "no evaluation since iteration 2 is better (train.patience=2)" in caplog.text
    assert pages == [False, False, False, True]
    assert fit(patience=2) == (2, 4)
    assert len(pages) == 4  # nothing was left to do
    assert "already complete: 4 of 9 iterations" in caplog.text
    (tmp_path / "run/checkpoints/best.pt").unlink()  # patience then counts from the checkpoint
    assert fit(patience=3) == (5, 8)


def losses(settings, common, folder: Path, *overrides: str) -> list[float]:
    short = ["train.iterations=3", "train.log_every=1"]
    train.main(settings("train", *common, *short, f"run.dir={folder}", *overrides))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss/train"] for line in lines if "loss/train" in line]


@pytest.mark.slow
def test_the_seed_decides_the_run_and_not_the_workers(settings, common, tmp_path):
    first = losses(settings, common, tmp_path / "a", "model.dropout=0.5")
    assert first == losses(settings, common, tmp_path / "b", "model.dropout=0.5", "workers=2")
    assert first != losses(settings, common, tmp_path / "c", "model.dropout=0.5", "seed=1")
    states = [torch.load(tmp_path / n / "checkpoints/last.pt", weights_only=True)["model"] for n in "ab"]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    ["roi.foreground_fraction=0.5", "roi.delta_std=[1,1,1,1]", "augment=none", "data.use_difficult=false",
     "optimizer.lr=0.5", "schedule=step", "precision=bfloat16", "model.pool_size=3", "data.train_max_proposals=9",
     "roi.foreground_iou=0.7", "roi.background_iou_low=0.1", "roi.background_iou_high=0.3", "roi.rois_per_image=8",
     "roi.balance_objects=false", "roi.ohem=true", "loss.cls=focal", "loss.class_weights={ball: 3.0}", "loss.box=giou",
     "loss.box=diou", "loss.box=ciou", "loss.box=l1", "loss.beta=0.1", "loss.box_weight=3.0",
     "model.pooling=roi_align", "model.pooling=roi_align_v2", "model.norm=group",
     "model.delta_normalization=per_class", "data.short_side_px=[64,96,128]", "data.repeat_rare=1.0",
     "train.accumulate=2", "model.class_agnostic=true", "model.head=4conv1fc", "model.hidden_last=8",
     "model.backbone=resnet18_fpn",
     "optimizer.weight_decay=0.5", "optimizer=sgd", "optimizer.max_grad_norm=0.01", "optimizer.bias_lr_factor=9",
     "optimizer.norm_decay_factor=1000",
     "augment=photometric", "augment=scale", "augment=strong"],
)  # fmt: skip
def test_every_setting_of_training_has_its_effect(settings, common, tmp_path, override, usual_losses):
    assert losses(settings, common, tmp_path / "run", override) != usual_losses


def test_compiling_needs_a_compiler(settings, common, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="compile=true: needs a C.. compiler, and no-such-compiler is not found"):
        train.main(settings("train", *common, "compile=true", f"run.dir={tmp_path}/run"))


@pytest.mark.parametrize(("platform", "compiler"), [("linux", r"g\+\+"), ("darwin", r"clang\+\+"), ("win32", "cl")])
def test_the_compiler_of_the_platform_is_needed(monkeypatch, platform, compiler):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InputError, match=f"{compiler} is not found: install {compiler}, or set CXX"):
        training.require_compiler()


def test_memory_is_estimated_before_the_network_is_compiled(settings, common, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "warn_if_memory_is_short", lambda model, *_: seen.append(is_compiled(model)))
    monkeypatch.setenv("CXX", "true")  # found; nothing is compiled before a step
    run = training.build_training(settings("train", *common, "compile=true", f"run.dir={tmp_path}/run"), None)
    assert (seen, is_compiled(run.model)) == ([False], True)


def is_compiled(model: torch.nn.Module) -> bool:
    return all(part._compiled_call_impl is not None for part in (model.backbone, model.head))


@pytest.mark.slow
def test_a_deterministic_run_is_the_same_on_a_cpu(settings, common, tmp_path, usual_losses):
    try:
        assert losses(settings, common, tmp_path / "run", "deterministic=true") == usual_losses
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        set_deterministic(False)


@pytest.mark.parametrize("more", [[], ["model.class_agnostic=true", "train.ema=0.9"]])
def test_statistics_of_the_targets_are_part_of_the_network(settings, common, tmp_path, more):
    """They come from the training set, do not change in training, and scripts and interface use them."""
    overrides = [*common, "model.delta_normalization=per_class", *more, "train.iterations=2"]
    train.main(settings("train", *overrides, f"run.dir={tmp_path}/run"))
    path = tmp_path / "run/checkpoints/last.pt"
    content = torch.load(path, weights_only=True)
    mean, std = content["model"]["delta_mean"], content["model"]["delta_std"]
    assert mean.shape == std.shape == ((1, 4) if more else (4, 4))
    assert (std != 1).any()
    assert not mean[:, 0].any()
    if more:
        assert torch.equal(std, content["raw_model"]["delta_std"])
    components = training.build_training(settings("train", *overrides, f"run.dir={tmp_path}/other"), None)
    assert components.training.loss.delta_std == tuple(map(tuple, std.expand(4, -1).tolist()))
    score = evaluate.main(settings("evaluate", f"checkpoint={path}", f"out={tmp_path}/out"))
    assert score == json.loads((tmp_path / "run/metrics.json").read_text())["main"]["value"]
    detector_ = detector.load(path, device="cpu")
    network = detector_.network.model
    assert torch.equal(network.delta_std, std)
    result = detector_.detect(np.full((90, 120, 3), 100, np.uint8), score_threshold=0.0)
    network.delta_mean += 0.5
    assert not np.array_equal(
        result.boxes, detector_.detect(np.full((90, 120, 3), 100, np.uint8), score_threshold=0).boxes
    )


def test_averaged_weights_are_evaluated_and_the_last_ones_kept(run, settings, common, tmp_path):
    folders = (tmp_path / "averaged", run)
    train.main(settings("train", *common, "train.ema=0.9", f"run.dir={folders[0]}"))
    averaged, plain = (torch.load(folder / "checkpoints/last.pt", weights_only=True) for folder in folders)
    key = "head.fc7.weight"
    assert torch.equal(averaged["raw_model"][key], plain["model"][key])
    assert not torch.equal(averaged["model"][key], plain["model"][key])
    assert "raw_model" not in plain
    scores = [json.loads((folder / "metrics.json").read_text())["loss"] for folder in folders]
    assert scores[0] != scores[1]


@pytest.fixture(scope="module")
def usual_losses(common, tmp_path_factory):
    folder = tmp_path_factory.mktemp("usual") / "run"
    train.main(compose_settings("train", *common, "train.iterations=3", "train.log_every=1", f"run.dir={folder}"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss/train"] for line in lines if "loss/train" in line]


def spoil_xml(root: Path) -> None:
    (root / "Annotations/test_1.xml").write_text("<annotation><object>")


def spoil_class(root: Path) -> None:
    path = root / "Annotations/test_1.xml"
    path.write_text(re.sub(r"<name>\w+", "<name>bal", path.read_text(), count=1))


def spoil_box(root: Path) -> None:
    path = root / "Annotations/test_1.xml"
    text = re.sub(r"<xmin>\d+", "<xmin>9000", path.read_text(), count=1)
    path.write_text(re.sub(r"<xmax>\d+", "<xmax>9100", text, count=1))


def spoil_jpeg(root: Path) -> None:
    path = root / "JPEGImages/train_2.jpg"
    path.write_bytes(path.read_bytes()[:2000])


def no_images(root: Path) -> None:
    (root / "ImageSets/Main/train.txt").write_text("")


def no_xml(root: Path) -> None:
    (root / "Annotations/train_3.xml").unlink()


CASES = [
    (None, ["train.iterations=-3"], "train.iterations=-3: must be an integer above 0"),
    (None, [f"run.dir={REPOSITORY}/LICENSE/run"], "run.dir: .*/LICENSE/run cannot be written"),
    (None, [f"proposals.folder={REPOSITORY}/LICENSE/p"], "proposals.folder: .* cannot be written"),
    (None, ["data.classes=[]"], "data.classes="),
    (spoil_box, [], r"test_1\.xml: box 1 .* lies outside its image"),
    (None, ["loss.class_weights={bal: 2}"], "loss.class_weights: there is no class 'bal'; there are background, ball"),
    (None, ["train.accumulate=3"], "train.accumulate=3: each process has 2 images per step"),
    (None, ["model.head=res5", "model.backbone=resnet18_fpn"], "resnet18_fpn takes fc or 4conv1fc"),
    (None, ["data.root=/nowhere/at/all"], "there is no folder /nowhere/at/all"),
    (None, ["device=cuda:99"], "device: 'cuda:99' is not available"),
    (None, ["data.val_split=trainval"], "no such split; there is test, train"),
    (no_images, [], "the split has no images"),
    (no_xml, [], "1 of the 6 images of split 'train' have no XML file: train_3"),
    (spoil_xml, [], r"test_1\.xml: broken XML"),
    (spoil_class, ["data.classes=[ball,crate,kite,star]"], r"did you mean 'ball'\?"),
    (spoil_jpeg, [], r"train_2\.jpg: damaged image"),
    (None, ["data.train_proposals=/nowhere.safetensors"], "/nowhere.safetensors: no such file"),
]


@pytest.mark.parametrize(("spoil", "overrides", "says"), CASES, ids=[case[2][:30] for case in CASES])
def test_wrong_input_is_one_error_before_anything_is_written(
    small_shapes, settings, common, tmp_path, spoil, overrides, says
):
    root = tmp_path / "data"
    shutil.copytree(small_shapes, root)
    if spoil:
        spoil(root)
    with pytest.raises(InputError, match=says):
        train.main(settings("train", *common, f"data.root={root}", f"run.dir={tmp_path}/run", *overrides))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["train.iteration=3"], "error: train.iteration: no such setting; did you mean train.iterations?"),
        (["data=voc"], "data.root: must be given"),
    ],
)
def test_wrong_input_ends_the_program_with_2_and_no_traceback(overrides, says):
    result = program("train.py", *overrides, code=2)
    assert says in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_any_other_failure_ends_the_program_with_1(common, tmp_path):
    result = program("train.py", *common, "optimizer.lr=1e30", f"run.dir={tmp_path}/run", "train.log_every=4", code=1)
    assert "error: the loss is nan, the gradient's norm nan at iteration 2" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run/checkpoints").exists()  # no weights that are not numbers


def test_checkpoints_between_evaluations(settings, common, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Checkpoints, "save_last", lambda self, content, final: saved.append(content["iteration"]))
    train.main(settings("train", *common, f"run.dir={tmp_path}/run", "train.iterations=5"))
    assert saved == [3, 5]


def test_given_proposals_are_the_ones_that_are_used(small_shapes, settings, common, tmp_path):
    """Without a single box near an object, nothing can be found."""
    for split in ("train", "test"):
        dataset = read_voc(small_shapes, split)
        hws = [dataset.image(index).shape[:2] for index in range(len(dataset))]
        corners = [np.array([[0, 0, 4, 4], [4, 0, 8, 4]])] * len(dataset)
        write_store(tmp_path / f"{split}.safetensors", dataset.image_ids, corners, hws, {})
    files = [f"data.train_proposals={tmp_path}/train.safetensors", f"data.val_proposals={tmp_path}/test.safetensors"]
    train.main(settings("train", *common, *files, f"run.dir={tmp_path}/run"))
    detections = (tmp_path / "run/detections/comp4_det_test_ball.txt").read_text().splitlines()
    assert 0 < len(detections) <= 3 * 2
    assert all(float(line.split()[4]) < 20 for line in detections)


def test_proposals_of_other_images_are_refused(small_shapes, settings, common, tmp_path):
    generate_proposals(read_voc(small_shapes, "test"), tmp_path / "p.safetensors", "single", workers=1)
    with pytest.raises(InputError, match="no proposals for 6 of 6 images: train_0, train_1"):
        train.main(settings("train", *common, f"data.train_proposals={tmp_path}/p.safetensors"))


def test_a_run_folder_with_something_in_it_is_left_alone(settings, common, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        train.main(settings("train", *common, f"run.dir={tmp_path}"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_data_set_without_objects_to_find_is_scored_as_such(settings, common, small_shapes, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(small_shapes, root)
    for path in (root / "Annotations").glob("test_*.xml"):
        path.write_text("<annotation></annotation>")
    train.main(settings("train", *common, f"data.root={root}", f"run.dir={tmp_path}/run"))
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["voc"]["area@0.50"]["mAP"] is None
    assert (tmp_path / "run/checkpoints/best.pt").is_file()


def test_data_in_coco_layout_trains_and_is_scored(run, settings, common, small_shapes, tmp_path):
    """The same scenes give the same numbers, whatever the layout; a part of them is scored as what it is."""
    root = tmp_path / "coco"
    for split in ("train", "test"):
        write_as_coco(read_voc(small_shapes, split), root / f"{split}.json")
    where = [f"data.root={root}", "data.train_json=train.json", "data.val_json=test.json", "data.use_difficult=true"]
    images = [f"data.{part}_images={small_shapes}/JPEGImages" for part in ("train", "val")]
    same = [item for item in common if not item.startswith(("data=", "data.root=", "data.train_split="))]
    train.main(settings("train", "data=coco", *same, *where, *images, f"run.dir={tmp_path}/run"))
    coco, voc = (folder / "metrics.json" for folder in (tmp_path / "run", run))
    assert json.loads(coco.read_text())["loss"] == pytest.approx(json.loads(voc.read_text())["loss"], abs=1e-5)
    before, checkpoint = coco.read_text(), f"checkpoint={tmp_path}/run/checkpoints/last.pt"
    some = ["data.max_images=2", "data.exclude_classes=[ball]", "workers=0"]
    evaluate.main(settings("evaluate", checkpoint, *some))
    assert coco.read_text() == before
    metrics = json.loads((tmp_path / "run/evaluate-coco-test/metrics.json").read_text())
    assert (metrics["source"]["images"], metrics["voc"]["area@0.50"]["AP"]["ball"]) == (2, None)
    # ... and the same from the saved detections of all of it
    evaluate.main(settings("evaluate", checkpoint, "workers=0", f"out={tmp_path}/all"))
    entries = json.loads((tmp_path / "all/detections.json").read_text())
    assert {entry["image_id"] for entry in entries} == {0, 1, 2}
    assert {(entry["category_id"], entry["category_name"]) for entry in entries} <= {
        (7, "ball"), (14, "crate"), (21, "kite"), (28, "star")
    }  # fmt: skip
    for saved in ("detections", "detections.json"):
        source, out = f"detections={tmp_path}/all/{saved}", f"out={tmp_path}/again-{saved}"
        evaluate.main(settings("evaluate", source, out, "data=coco", *where[:1], *where[2:3], *images[1:], *some))
        again = json.loads((tmp_path / f"again-{saved}/metrics.json").read_text())
        assert again["source"]["images"] == 2
        assert "ball" not in again["voc"]["area@0.50"]["AP"]
        for name in ("crate", "kite", "star"):
            assert again["voc"]["area@0.50"]["AP"][name] == pytest.approx(metrics["voc"]["area@0.50"]["AP"][name])
    for override, says in (
        ("data.exclude_classes=[bal]", r"no class 'bal' \(did you mean 'ball'\?\)"),
        ("data.val_split=test", r"data\.val_split=test: not a setting of data.reader=coco, which has drop_empty_boxes"),
    ):
        with pytest.raises(InputError, match=says):
            evaluate.main(settings("evaluate", checkpoint, override))


def write_as_coco(dataset: DetectionDataset, path: Path) -> None:
    content: dict = {"images": [], "annotations": []}
    content["categories"] = [{"id": 7 * label, "name": name} for label, name in enumerate(dataset.classes, start=1)]
    for index, image_id in enumerate(dataset.image_ids):
        height, width = dataset.image(index).shape[:2]
        content["images"] += [{"id": index, "file_name": f"{image_id}.jpg", "height": height, "width": width}]
        truth = dataset.ground_truth(index)
        for (x1, y1, x2, y2), label in zip(truth.boxes.tolist(), truth.labels.tolist(), strict=True):
            box = {"id": len(content["annotations"]), "bbox": [x1, y1, x2 - x1, y2 - y1]}
            content["annotations"] += [box | {"image_id": index, "category_id": 7 * label, "iscrowd": 0}]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def test_a_bad_image_is_left_out_of_training_up_to_a_limit(settings, common, small_shapes, tmp_path, caplog):
    caplog.set_level("INFO")
    root = tmp_path / "data"
    shutil.copytree(small_shapes, root)
    spoil_jpeg(root)
    for kind in ("JPEGImages/{}.jpg", "Annotations/{}.xml"):
        shutil.copy(root / kind.format("test_0"), root / kind.format("train_0"))
    fine = "data.max_bad_fraction=0.2"
    train.main(settings("train", *common, f"data.root={root}", f"run.dir={tmp_path}/run", fine))
    assert "5 images to train on, 3 to validate" in caplog.text
    assert "1 of the 3 images of data-test are in data-train too, so scores will be optimistic: test_0" in caplog.text
    (root / "JPEGImages/test_1.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="A score needs every image"):
        train.main(settings("train", *common, f"data.root={root}", f"run.dir={tmp_path}/other", fine))


def test_images_without_objects_and_proposals_train(settings, common, small_shapes, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(small_shapes, root)
    for number in range(3):
        (root / f"Annotations/train_{number}.xml").write_text("<annotation></annotation>")
        Image.new("RGB", (300, 240)).save(root / f"JPEGImages/train_{number}.jpg")
    train.main(settings("train", *common, f"data.root={root}", f"run.dir={tmp_path}/run"))
    assert (tmp_path / "run/checkpoints/last.pt").is_file()


def test_a_collapse_is_named_once_and_at_the_end(settings, common, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr("detector.training.trainer.collapse_window", lambda iterations: 6)
    collapsing = ["optimizer=sgd", "optimizer.lr=0.3", "schedule.warmup_iterations=2"]
    few = ["train.iterations=24", "train.eval_every=24", "train.checkpoint_every=16", "train.log_every=2"]
    train.main(settings("train", *common, *collapsing, *few, f"run.dir={tmp_path}/run"))
    warnings = [record.message for record in caplog.records if "the network has collapsed" in record.message]
    assert len(warnings) == 2
    for message in warnings:
        for part in ("since iteration", "optimizer.lr (now 0.3)", "schedule.warmup_iterations (now 2)"):
            assert part in message
    assert re.match(r"iteration \d+: ", warnings[0])
    assert warnings[1].startswith("the network has collapsed: since iteration")  # the summary

    def flags() -> list[float]:
        lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
        return [line["train/collapsed"] for line in lines if "train/collapsed" in line]

    [text] = EventAccumulator(str(tmp_path / "run")).Reload().Tensors("collapse/text_summary")
    assert b"the network has collapsed: since iteration" in text.tensor_proto.string_val[0]
    whole = flags()
    assert (whole[0], whole[-1]) == (0, 1)
    caplog.clear()
    shutil.copy(tmp_path / "run/checkpoints/previous.pt", tmp_path / "run/checkpoints/last.pt")
    train.main(settings("train", *common, *collapsing, *few, f"run.dir={tmp_path}/run", "resume=auto"))
    assert flags() == whole
    assert sum("the network has collapsed" in record.message for record in caplog.records) == 1  # the summary
    caplog.clear()
    train.main(settings("train", *common, *few, f"run.dir={tmp_path}/healthy"))
    assert "collapsed" not in caplog.text


def test_divergence_is_named_with_what_helps(settings, common, tmp_path, monkeypatch, caplog):
    """The gradient of a step is scaled up by a thousand from iteration 22 on."""
    from detector.training import engine

    norms = iter([1.0] * 21 + [1000.0] * 9)
    total_norm = torch.nn.utils.get_total_norm
    monkeypatch.setattr(engine.torch.nn.utils, "get_total_norm", lambda grads: total_norm(grads) * 0 + next(norms))
    few = ["train.iterations=30", "train.eval_every=30", "train.checkpoint_every=30", "model.hidden=8"]
    few += ["data.short_side_px=48", "data.max_side_px=80"]
    train.main(settings("train", *common, *few, f"run.dir={tmp_path}/run", "optimizer.lr=0.001"))
    [message] = [record.message for record in caplog.records if "diverges" in record.message]
    assert message.startswith("iteration 24: training diverges: the norm of the gradient is 1e+03, where 1 is usual")
    assert "A lower optimizer.lr (now 0.001) or a longer schedule.warmup_iterations (now 50)" in message
