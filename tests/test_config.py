import albumentations
import pytest
import torch

from detector import compose
from detector.config import build, flatten, validate
from detector.data.image import ImageOptions
from detector.data.shapes import VERSION
from detector.data.voc import VocDataset
from detector.errors import InputError
from tests.conftest import REPOSITORY

CHOICES = sorted(
    f"{path.parent.name}={path.stem}"
    for path in (REPOSITORY / "configs").glob("*/*.yaml")
    if path.parent.name != "data"
)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_config_makes_its_parts(settings, choice):
    config = settings("train", choice)
    validate(config)
    config["model"]["hidden"] = 8  # VGG16's own layers take seconds to initialise
    model = compose.make_model(config, num_classes=2)
    optimizer, schedule = compose.make_optimizer(config, model)
    assert optimizer.param_groups[0]["lr"] > 0
    assert schedule(config["train"]["iterations"] // 2) > 0
    for item in config["augment"]["transforms"]:
        assert isinstance(build(item), albumentations.BasicTransform)
    assert compose.make_recipe(config).coder.std == tuple(config["roi"]["delta_std"])


@pytest.mark.parametrize("choice", ["voc", "voc07", "shapes"])
def test_every_data_set_is_read_from_its_root(settings, make_voc, choice):
    root = make_voc({split: {split: [("cat", 1, 1, 9, 9)]} for split in ("train", "trainval", "test")})
    (root / "version").write_text(VERSION)
    config = settings("train", f"data={choice}", f"data.root={root}", "data.classes=[cat]")
    validate(config)
    reader = compose.make_reader(config, "train")
    assert isinstance(reader, VocDataset)
    assert reader.image_ids == [config["data"]["train_split"]]
    assert compose.make_reader(config, "val").image_ids == ["test"]


def test_how_images_are_read_is_a_setting(settings, make_voc):
    root = make_voc({"train": {"a": [("cat", 1, 1, 9, 9)]}})
    where = ["data=voc", f"data.root={root}", "data.train_split=train"]
    reader = compose.make_reader(settings("train", *where, "data.exif=ignore", "data.max_image_pixels=77"), "train")
    assert reader.image_options == ImageOptions(exif="ignore", max_pixels=77)


def test_build_passes_settings_on():
    flip = build({"_target_": "albumentations.HorizontalFlip", "p": 0.25})
    assert isinstance(flip, albumentations.HorizontalFlip)
    assert flip.p == 0.25
    weight = torch.nn.Parameter(torch.zeros(1))
    assert build({"_target_": "torch.optim.SGD", "lr": 0.1}, params=[weight]).defaults["lr"] == 0.1


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.load",
        "torch.hub.load",
        "torch.optim.lr_scheduler.os.system",
        "albumentations.load",
        "detector.data.generate.shutil.rmtree",
        "detector.data.generate.ThreadPoolExecutor",
        "detector.data.voc.read_annotation",
        "detector.nowhere.Thing",
        "detector.",
        None,
    ],
)
def test_only_classes_of_the_allowed_packages_are_made(target):
    with pytest.raises(InputError, match="_target_"):
        build({"_target_": target, "p": 1})


def test_a_wrong_argument_is_an_input_error():
    with pytest.raises(InputError, match=r"torch\.optim\.SGD does not take \{'learning': 1\}"):
        build({"_target_": "torch.optim.SGD", "learning": 1}, params=[torch.nn.Parameter(torch.zeros(1))])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.iterations=0", "train.iterations=0: must be a whole number above 0"),
        ("train.iterations=many", "train.iterations=many: must be a whole number"),
        ("train.images_per_batch=2.5", "train.images_per_batch=2.5"),
        ("train.eval_every=true", "train.eval_every=True"),
        ("seed=-1", "seed=-1"),
        ("precision=float8", "precision=float8: must be auto or bfloat16 or float32"),
        ("roi.foreground_fraction=1.5", "roi.foreground_fraction=1.5: must be a number from 0 to 1"),
        ("roi.background_iou_low=0.6", "needs background_iou_low < background_iou_high <= foreground_iou"),
        ("roi.delta_std=[1,2]", r"roi.delta_std=\[1, 2\]: must be four numbers"),
        ("metric.overlaps=[]", r"metric.overlaps=\[\]: must be a list"),
        ("metric.overlaps=0.5", "metric.overlaps=0.5: must be a list"),
        ("metric.overlaps=[50]", r"metric.overlaps=\[50\]"),
        ("metric.devkit=1", "metric.devkit=1: must be true or false"),
        ("data.classes=cat", "data.classes=cat: must be null or a list"),
        ("model.backbone=resnet19", "model.backbone=resnet19"),
        ("proposals.mode=best", "proposals.mode=best"),
        ("metric.overlaps=[0.5,0.501]", "must differ, and have two decimals at most"),
        ("schedule.steps=[30000] schedule=step", r"schedule.steps=\[30000\]: must be a list of parts of the run"),
        ("schedule.warmup_iterations=-5", "schedule.warmup_iterations=-5"),
        ("device=null", "device=None"),
        ("run.dir=2024", "run.dir=2024"),
        ("optimizer.lr=-1", "optimizer.lr=-1"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay=-1"),
        ("data.exif=yes", "data.exif=yes: must be apply or ignore"),
        ("data.max_image_pixels=0", "data.max_image_pixels=0: must be a whole number above 0"),
        ("data.max_bad_fraction=2", "data.max_bad_fraction=2: must be a number from 0 to 1"),
        ("data.short_side_px=1000000", "data.short_side_px=1000000: must be a whole number from 1 to 20000"),
        ("data.classes=[1]", r"data.classes=\[1\]: must be null or a list of names"),
        ("+model.hiden=3", "model: there is no setting 'hiden'"),
        ("optimizer.lr=inf", "optimizer.lr=inf: must be null or a number above 0"),
        ("model.frozen_stages=-1", "model.frozen_stages=-1: must be null or a whole number"),
    ],
)
def test_senseless_values_are_named(settings, override, says):
    with pytest.raises(InputError, match=says):
        validate(settings("train", *override.split()))


def test_flatten():
    assert flatten({"a": {"b": 1, "c": [1, 2]}, "d": None, "e": True}) == {
        "a.b": 1, "a.c": "[1, 2]", "d": "None", "e": True,
    }  # fmt: skip
