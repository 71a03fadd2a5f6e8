"""The overlays in configs/experiment: the numbers of the paper's recipe, what learns, and a few iterations of each."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

import train
from detector.builders.training import build_optimizer
from detector.models import build_model
from detector.structures import RoiTargets
from detector.training.losses import LossConfig, multi_task_loss
from detector.training.optimizers import default_rate
from scripts import convert_data
from tests.conftest import REPOSITORY, TINY

EXPERIMENTS = sorted(path.stem for path in (REPOSITORY / "configs/experiment").glob("*.yaml"))
OVERLAYS = [name for name in EXPERIMENTS if name.startswith("paper")]
# Prefixes of the parameters that do not learn.
CONV1 = ("backbone.features.0.", "backbone.features.2.")
CONV2 = (*CONV1, "backbone.features.5.", "backbone.features.7.")
FROZEN = {
    "paper_conv2": CONV1,
    "paper_fc6": ("backbone.",),
    "paper_m": ("backbone.features.0.",),
    "paper_s": ("backbone.features.0.",),
    "paper_stage_wise": ("backbone.", "head.", "cls_score."),
}


def composed(settings, overlay: str, *more: str):
    return settings("train", f"experiment={overlay}", "data.root=x", "model.weights=w.pth", *more)


def test_the_numbers_of_vgg16_on_voc07(settings):
    """Beside the differences that docs/paper.md lists."""
    config = settings("train", "experiment=paper")
    data, model, roi = config.data, config.model, config.roi
    assert (data.short_side_px, data.max_side_px, data.use_difficult, len(data.classes)) == (600, 1000, True, 20)
    assert (data.train_split, data.val_split, data.root) == ("trainval", "test", "data/VOCdevkit/VOC2007")
    assert (model.backbone, model.weights, model.head, model.pooling) == ("vgg16", "imagenet", "fc", "roi_pool")
    assert (model.hidden, model.dropout, model.class_agnostic) == (4096, 0.5, False)
    network = build_model(model.with_values(hidden=64), num_classes=20)
    assert (network.roi_pool.output_size, network.roi_pool.spatial_scale) == (7, 1 / 16)
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in network.named_parameters() if name.startswith(CONV2)}
    assert (network.cls_score.out_features, network.bbox_pred.out_features) == (21, 80)  # none for background
    assert network.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert network.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert not network.cls_score.bias.any()
    assert not network.bbox_pred.bias.any()

    train_, optimizer = config.train, config.optimizer
    assert (train_.iterations, train_.images_per_batch, train_.ema, train_.accumulate) == (40_000, 2, None, 1)
    assert (roi.rois_per_image, roi.foreground_fraction) == (64, 0.25)
    assert (roi.foreground_iou, roi.background_iou_low, roi.background_iou_high) == (0.5, 0.1, 0.5)
    assert (roi.balance_objects, roi.ohem, roi.delta_std) == (False, False, (0.1, 0.1, 0.2, 0.2))
    detect = config.detect
    assert (detect.score_threshold, detect.average_per_class, detect.max_detections) == (0.0, 40.0, 10_000)
    assert model.delta_normalization == "per_class"
    loss = config.loss
    assert (loss.cls, loss.class_weights, loss.box, loss.beta, loss.box_weight) == (
        "cross_entropy", None, "smooth_l1", 1.0, 1.0,
    )  # fmt: skip
    assert (optimizer.target, optimizer.momentum, optimizer.weight_decay) == ("torch.optim.SGD", 0.9, 0.0005)
    assert (optimizer.bias_lr_factor, optimizer.max_grad_norm, optimizer.nesterov) == (2.0, None, False)
    assert default_rate(optimizer.target, 2, pretrained=True) == pytest.approx(0.001)
    built, schedule = build_optimizer(config, network)
    weights, biases = built.param_groups
    assert [schedule(i) for i in (0, 29_999, 30_000, 39_999)] == pytest.approx([1, 1, 0.1, 0.1])
    assert (weights["lr"], biases["lr"]) == (pytest.approx(0.001), pytest.approx(0.002))
    assert (weights["weight_decay"], biases["weight_decay"]) == (0.0005, 0.0)
    assert config.augment.transforms == ({"_target_": "albumentations.HorizontalFlip", "p": 0.5},)
    assert (config.detect.nms, config.detect.nms_iou, config.detect.regress_boxes) == ("hard", 0.3, True)
    assert (data.unique_proposals, data.min_proposal_px, data.train_max_proposals) == (True, 0.0, 2000)


def test_the_differences_between_the_overlays(settings):
    config = {name: composed(settings, name) for name in OVERLAYS}
    assert {name for name in OVERLAYS if not config[name].data.use_difficult} == {"paper_without_difficult"}
    assert {name: item.train.iterations for name, item in config.items() if item.train.iterations != 40_000} == {
        "paper_coco": 240_000, "paper_voc0712": 60_000, "paper_voc0712plus": 100_000,
    }  # fmt: skip
    schedule = build_optimizer(config["paper_voc0712plus"], torch.nn.Linear(1, 1))[1]
    assert [schedule(i) for i in (39_999, 40_000, 80_000)] == pytest.approx([1, 0.1, 0.01])
    assert (config["paper_cls_only"].loss.box_weight, config["paper_cls_only"].detect.regress_boxes) == (0.0, False)
    scales = (480, 576, 688, 864, 1200)
    several = config["paper_multiscale"]
    assert (several.data.short_side_px, several.data.max_side_px, several.detect.pyramid_px) == (scales, 2000, scales)
    assert (config["paper_s"].model.pool_size, config["paper_m"].model.pool_size) == (6, 6)
    assert (config["paper_m"].model.hidden, config["paper_m"].model.hidden_last) == (4096, 1024)


@pytest.mark.parametrize("overlay", ["paper", "paper_cls_only", *FROZEN])  # the others build the same network
def test_frozen_layers_get_no_gradient_and_all_others_do(settings, overlay):
    config = composed(settings, overlay, "model.hidden=8", "model.hidden_last=null")
    model = build_model(config.model, num_classes=2)
    rois = torch.tensor([[0, 0, 0, 40, 40], [0, 10, 20, 60, 60.0]])
    logits, deltas = model(torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8), rois)
    targets = RoiTargets.pack(rois, torch.tensor([1, 0]), torch.ones(2, 4))
    losses = multi_task_loss(logits, deltas, targets, config=LossConfig(config.loss))
    (losses["cls"] + losses["box"]).backward()
    frozen = FROZEN.get(overlay, CONV2)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name
    assert (model.bbox_pred.weight.grad.abs().max() == 0) == (overlay == "paper_cls_only")


def commands_of_the_page() -> list[list[str]]:
    """Program and arguments of each complete command in docs/paper.md."""
    page = (REPOSITORY / "docs/paper.md").read_text()
    return [
        shlex.split(command)
        for command in re.findall(r"(?:`|^    )python ((?:train|evaluate)\.py [^`\n]+)", page, re.MULTILINE)
    ]


@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_every_command_of_the_page_composes(settings, program):
    commands = [rest for name, *rest in commands_of_the_page() if name == f"{program}.py"]
    assert len(commands) == {"train": 15, "evaluate": 5}[program]
    for arguments in commands:
        swept = [argument.split(",")[0] if "max_proposals=1000," in argument else argument for argument in arguments]
        settings(program, *[argument for argument in swept if argument != "-m"])


def test_the_page_names_every_overlay():
    words = {word for _, *arguments in commands_of_the_page() for word in arguments}
    table = (REPOSITORY / "docs/paper.md").read_text()
    assert [
        name for name in OVERLAYS if f"experiment={name}" not in words and f"`experiment={name}`" not in table
    ] == []


def with_names(source: Path, root: Path, prefix: str, splits: dict[str, list[str]]) -> None:
    """A copy of a dataset in VOC layout with these splits, which contain images of those of the source."""
    for folder, ending in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        (root / folder).mkdir(parents=True)
        for path in source.glob(f"{folder}/*.{ending}"):
            (root / folder / f"{prefix}{path.name}").symlink_to(path)
    (root / "ImageSets/Main").mkdir(parents=True)
    for split, ids in splits.items():
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{prefix}{name}\n" for name in ids))


@pytest.fixture(scope="module")
def released_data(small_shapes, tmp_path_factory) -> Path:
    """VOC2007, VOC2012 and COCO of the generated images, in the layouts and with the splits of the real ones."""
    root = tmp_path_factory.mktemp("released")
    train_ids, test_ids = [f"train_{number}" for number in range(6)], [f"test_{number}" for number in range(3)]
    with_names(small_shapes, root / "VOC2007", "", {"trainval": train_ids, "test": test_ids})
    with_names(small_shapes, root / "VOC2012", "2012_", {"trainval": train_ids, "val": train_ids[:2]})
    (root / "coco/annotations").mkdir(parents=True)
    for split, part in (("train", "train2014"), ("test", "val2014")):
        new = ["--splits", split, "--to", "coco", "--out", str(root / part)]
        convert_data.main(["--data", str(small_shapes), *new])
        (root / part / f"annotations/{split}.json").rename(root / f"coco/annotations/instances_{part}.json")
        (root / part / "images").rename(root / "coco" / part)
    return root


ROOTS = {"paper_coco": "coco", "paper_voc0712": "", "paper_voc0712plus": "", "paper_voc12": "VOC2012"}


@pytest.mark.slow
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_train_a_few_iterations(without_pictures, settings, released_data, tmp_path, overlay):
    small = [] if overlay in ("paper", "paper_s", "paper_m") else ["model=alexnet", "model.frozen_stages=1"]
    small += ["model.frozen_stages=3"] if overlay == "paper_fc6" else []  # AlexNet's
    tiny = [argument for argument in TINY if not argument.startswith(("data=", "data.train_split="))]
    # paper_multiscale keeps its five scales, divided by ten.
    sides = ["data.short_side_px=[48,58,69,86,120]", "detect.pyramid_px=[48,58,69,86,120]"]
    model = settings("train", f"experiment={overlay}", "model.weights=w.pth", "data.root=x", *small).model
    torch.manual_seed(0)
    network = build_model(model.with_values(hidden=32, hidden_last=None), num_classes=4)
    # A file of another program: the convolutions alone.
    state = network.backbone.state_dict()
    torch.save(state, tmp_path / "w.pth")
    folder = tmp_path / "run"
    train.main(
        settings(
            "train", f"experiment={overlay}", *small, *tiny, "data.classes=null",
            f"data.root={released_data / ROOTS.get(overlay, 'VOC2007')}", f"proposals.folder={released_data}/proposals",
            f"run.dir={folder}",
            f"model.weights={tmp_path}/w.pth", "model.hidden_last=null", "train.iterations=20", "train.eval_every=20",
            "train.log_every=1", *(sides if overlay == "paper_multiscale" else []),
        )
    )  # fmt: skip
    assert_20_losses(folder)
    trained = torch.load(folder / "checkpoints/last.pt", weights_only=True)["model"]
    frozen = {"paper": CONV2, "paper_fc6": ("backbone.",), "paper_stage_wise": ("backbone.",)}
    for key, value in state.items():
        if f"backbone.{key}".startswith(frozen.get(overlay, ("backbone.features.0.",))):
            assert torch.equal(trained[f"backbone.{key}"], value)


@pytest.mark.slow
@pytest.mark.parametrize("overlay", sorted({*EXPERIMENTS} - {*OVERLAYS}))
def test_overlays_for_any_dataset_train_a_few_iterations(settings, common, tmp_path, overlay):
    often = ["train.iterations=20", "train.eval_every=20", "train.log_every=1"]
    train.main(settings("train", f"experiment={overlay}", *common, *often, f"run.dir={tmp_path}/run"))
    assert_20_losses(tmp_path / "run")


def assert_20_losses(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss/train"] for line in lines if "loss/train" in line]
    assert len(losses) == 20
    assert all(0 < loss < 20 for loss in losses)
