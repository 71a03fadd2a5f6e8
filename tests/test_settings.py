import json
import logging
import pickle

import albumentations
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from detector.allowlist import instantiate
from detector.builders import datasets
from detector.builders.network import build_detector_config
from detector.builders.training import build_optimizer, build_training_config
from detector.data.dataset import DetectionDataset
from detector.data.epoch_order import EpochOrder
from detector.data.formats.shapes import VERSION
from detector.data.image import ImageOptions
from detector.errors import InputError
from detector.models import build_model
from detector.proposals.formats.records import ImageProposals
from detector.proposals.store import stream_store
from detector.schema import AS_TRAINED, LAYOUT, fields, flatten, no_such_setting, parse, walk
from detector.settings import CommonSettings, Data, Metric, TrainSettings
from scripts.document_settings import PAGE, settings_page
from tests.conftest import REPOSITORY

ALLOWED = ("detector.", "torch.optim.", "albumentations.")
CHOICES = sorted(
    f"{path.parent.name}={path.stem}"
    for path in (REPOSITORY / "configs").glob("*/*.yaml")
    if path.parent.name != "data"
)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_config_makes_its_parts(settings, choice):
    needed = ["model.weights=w.pth", "data.root=x"] if choice.startswith("experiment=") else []  # some need both
    config = settings("train", choice, "model.hidden=8", *needed)  # VGG16's own layers take seconds to initialise
    model = build_model(config.model, num_classes=2)
    optimizer, schedule = build_optimizer(config, model)
    assert optimizer.param_groups[0]["lr"] > 0
    assert config.optimizer.target == f"torch.optim.{type(optimizer).__name__}"
    for key in {"momentum", "nesterov", "betas", "eps"} & config.optimizer.plain().keys():
        assert optimizer.param_groups[0][key] == getattr(config.optimizer, key)
    assert schedule(config.train.iterations // 2) > 0
    for item in config.augment.transforms:
        assert isinstance(instantiate(item, ALLOWED), albumentations.BasicTransform)
    assert build_training_config(config, ()).coder.std == config.roi.delta_std


def test_realtime_computes_a_small_part_of_the_default(settings):
    def flops(*overrides: str) -> int:
        config = settings("train", "data=voc", "data.root=x", *overrides)
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            height = config.data.short_side_px
            images = torch.zeros(1, 3, height, height * 4 // 3, dtype=torch.uint8)
            build_model(config.model, 20)(images, torch.zeros(config.data.val_max_proposals, 5))
        return counter.get_total_flops()

    assert flops("experiment=realtime") < 0.08 * flops()
    assert settings("train", "experiment=realtime").proposals.mode == "single"


@pytest.mark.parametrize("choice", ["voc", "voc07", "shapes"])
def test_every_data_set_is_read_from_its_root(settings, make_voc, choice):
    root = make_voc({split: {split: [("cat", 1, 1, 9, 9)]} for split in ("train", "trainval", "test")})
    (root / "version").write_text(VERSION)
    config = settings("train", f"data={choice}", f"data.root={root}", "data.classes=[cat]")
    dataset = datasets.build_dataset(config.data, "train")
    assert isinstance(dataset, DetectionDataset)
    assert dataset.image_ids == [config.data.train_split]
    assert datasets.build_dataset(config.data, "val").image_ids == ["test"]


def test_a_data_set_in_coco_layout_is_read_from_its_root(settings, make_coco):
    root = make_coco({"train": {"one": [("cat", 1, 1, 9, 9)]}, "val": {"two": [("cat", 1, 1, 9, 9, 1)]}})
    files = ["data.train_json=train.json", "data.val_json=val.json", "data.train_images=images"]
    config = settings("train", "data=coco", f"data.root={root}", *files, "data.val_images=images")
    assert datasets.build_dataset(config.data, "train").image(0).shape == (40, 60, 3)
    assert datasets.build_dataset(config.data, "val").ground_truth(0).crowd.tolist() == [True]


def test_data_sets_are_joined(settings, make_voc, make_coco):
    for year in ("2007", "2012"):
        splits = {split: {f"{year}_{split}": [("cat", 1, 1, 9, 9)]} for split in ("train", "trainval", "test")}
        make_voc(splits, f"kit/VOC{year}")
    root = make_coco({"both": {"0": [("cow", 1, 1, 9, 9)]}}).parent
    usual = settings("train", "data=voc0712", f"data.root={root}/kit").data
    assert datasets.build_dataset(usual, "train").image_ids == ["2007_trainval", "2012_trainval"]
    assert datasets.build_dataset(usual, "val").image_ids == ["2007_test"]
    assert len(datasets.build_dataset(usual, "val").with_classes(usual.classes).classes) == 20
    plus = settings("train", "data=voc0712plus", f"data.root={root}/kit").data
    assert datasets.build_dataset(plus, "train").image_ids == ["2007_trainval", "2007_test", "2012_trainval"]
    # of any layout; what a part does not say, it has in common with the others
    coco = "{reader: coco, root: coco, train_json: both.json, train_images: images}"
    parts = f"data.parts=[{{root: kit/VOC2012, train_split: train}}, {coco}, {{root: kit/VOC2007}}]"
    mixed = settings("train", "data=joined", f"data.root={root}", parts, "data.val_split=trainval").data
    dataset = datasets.build_dataset(mixed, "train")
    assert (dataset.image_ids, dataset.classes) == (["2012_train", "1", "2007_trainval"], ("cat", "cow"))
    assert dataset.image(1).shape == (40, 60, 3)
    assert datasets.build_dataset(mixed, "val").image_ids == ["2012_trainval", "2007_trainval"]
    mistyped = mixed.with_values(parts=[{"train_splt": "train"}])
    with pytest.raises(InputError, match="has train_splt; voc accepts reader, root, train_split, val"):
        datasets.build_dataset(mistyped, "train")
    unscored = usual.with_values(parts=[part | {"val_split": None} for part in usual.parts])
    with pytest.raises(InputError, match="no images to score are selected"):
        datasets.build_dataset(unscored, "val")
    with pytest.raises(InputError, match=r"no images to train on are selected: give data\.parts"):
        datasets.build_dataset(settings("train", "data=joined").data, "train")
    for reader in ("os.system", None):
        other = mixed.with_values(parts=[{"reader": reader}])
        with pytest.raises(InputError, match=rf"data\.parts: .*: reader={reader}: must be voc, coco, folder or shapes"):
            datasets.build_dataset(other, "train")


def test_settings_of_another_layout_are_refused(settings, make_voc):
    root = make_voc({"trainval": {"a": []}})
    config = settings("train", "data=voc", f"data.root={root}", "data.train_json=a.json")
    with pytest.raises(InputError, match=r"data\.train_json=a\.json: not a setting of data.reader=voc, which has"):
        datasets.build_dataset(config.data, "train")


def test_some_images_and_classes(settings, make_voc, caplog):
    caplog.set_level(logging.INFO)
    images = {"c": [("cat", 1, 1, 9, 9)], "a": [("dog", 1, 1, 9, 9)], "b": [("cat", 1, 1, 9, 9)]}
    root = make_voc({"trainval": images, "test": {"d": [("ant", 1, 1, 9, 9)]}})

    def readers(*overrides: str) -> tuple:
        data = settings("train", "data=voc", f"data.root={root}", *overrides).data
        train, val = datasets.build_dataset(data, "train"), datasets.build_dataset(data, "val")
        return train, val, datasets.resolve_classes(data, train, val)

    train, val, classes = readers("data.max_images=2", "data.exclude_classes=[dog,ant]")
    assert (train.image_ids, val.image_ids, classes) == (["c", "a"], ["d"], ("cat",))
    assert [len(train.with_classes(classes).ground_truth(index).boxes) for index in range(2)] == [1, 0]
    assert "the first 2 of the 3 images of set-trainval" in caplog.text
    assert readers("data.classes=[dog,cat,ant]", "data.exclude_classes=[cat]")[2] == ("dog", "ant")
    assert readers()[2] == ("ant", "cat", "dog")
    with pytest.raises(InputError, match=r"the data has no class 'dgo' \(did you mean 'dog'\?\); it has ant, cat, dog"):
        readers("data.exclude_classes=[dgo]")


def test_proposals_of_each_part(settings, make_voc, make_proposals, tmp_path):
    for name in ("one", "two"):
        make_voc({"train": {"a": [("cat", 1, 1, 9, 9)]}}, name)  # ids that are alike
    make_proposals(tmp_path / "one.safetensors", {"a": [[0, 0, 9, 9]]})
    make_proposals(tmp_path / "two.safetensors", {"a": [[1, 1, 5, 5]]})
    parts = "data.parts=[{root: one}, {root: two}]"
    files = [f"{tmp_path}/one.safetensors", f"{tmp_path}/two.safetensors"]

    def with_files(*names: str) -> TrainSettings:
        where = ["data=joined", f"data.root={tmp_path}", "data.train_split=train", f"proposals.folder={tmp_path}/kept"]
        return settings("train", *where, parts, f"data.train_proposals=[{','.join(names)}]")

    config = with_files(*files)
    dataset = datasets.build_dataset(config.data, "train")
    for some in (dataset, dataset.subset([1, 0])):
        samples = datasets.build_transformed_dataset(config, datasets.check(config.data, some, "train"), "train")
        found = {image_id: samples.proposals[image_id].tolist() for image_id in some.image_ids}
        assert found == {"1-one-train/a": [[0, 0, 9, 9]], "2-two-train/a": [[1, 1, 5, 5]]}
    checked = datasets.check(config.data, dataset, "train")
    samples = datasets.build_transformed_dataset(with_files(files[0], "null"), checked, "train")
    assert len(samples.proposals["2-two-train/a"]) > 0
    assert [path.name[:10] for path in (tmp_path / "kept").glob("*.safetensors")] == ["two-train-"]
    with pytest.raises(InputError, match=r"data\.train_proposals: 1 files for 2 datasets"):
        datasets.build_transformed_dataset(with_files(files[0]), checked, "train")


@pytest.mark.parametrize(
    ("override", "left"),
    [
        ("seed=0", [[0, 0, 9, 3], [5, 5, 20, 20], [1, 1, 8, 8]]),
        ("data.proposals_by_score=true", [[1, 1, 8, 8], [5, 5, 20, 20], [0, 0, 9, 3]]),
        ("data.min_proposal_px=4", [[5, 5, 20, 20], [1, 1, 8, 8]]),
        ("data.unique_proposals=false", [[0, 0, 9, 3], [5, 5, 20, 20], [0, 0, 9, 3], [1, 1, 8, 8]]),
        ("data.val_max_proposals=1", [[0, 0, 9, 3]]),
    ],
)
def test_settings_decide_which_proposals_are_used(settings, make_voc, tmp_path, override, left):
    root = make_voc({"trainval": {"a": []}, "test": {"a": [("cat", 1, 1, 9, 9)]}})
    boxes = np.array([[0, 0, 9, 3], [5, 5, 20, 20], [0, 0, 9, 3], [1, 1, 8, 8]], np.float32)
    stream_store(tmp_path / "p.safetensors", [ImageProposals("a", boxes, np.array([1, 2, 1, 3]), (40, 60))], {})
    config = settings(
        "train", "data=voc", f"data.root={root}", f"data.val_proposals={tmp_path}/p.safetensors", override
    )
    dataset = datasets.build_dataset(config.data, "val")
    samples = datasets.build_transformed_dataset(config, datasets.check(config.data, dataset, "val"), "val")
    assert samples.original(0).proposals.tolist() == left


def test_how_images_are_read_is_a_setting(settings, make_voc):
    root = make_voc({"train": {"a": [("cat", 1, 1, 9, 9)]}})
    where = ["data=voc", f"data.root={root}", "data.train_split=train"]
    config = settings("train", *where, "data.exif=ignore", "data.max_image_pixels=77")
    dataset = datasets.build_dataset(config.data, "train")
    assert dataset.image_options == ImageOptions(exif="ignore", max_pixels=77)


def test_order_and_scales_of_training_images_are_settings(settings, make_voc):
    images = {name: [("cat", 1, 1, 9, 9)] for name in "abcdefgh"} | {"rare": [("dog", 1, 1, 9, 9)]}
    root = make_voc({"trainval": images, "test": {"t": []}})
    where = ["data=voc", f"data.root={root}", "proposals.mode=single", f"proposals.folder={root}/p"]

    def order(*overrides: str) -> EpochOrder:
        config = settings("train", *where, *overrides)
        checked = datasets.check(config.data, datasets.build_dataset(config.data, "train"), "train")
        return datasets.build_epoch_order(config, checked)

    assert (order().size, order().repeats, order().is_portrait) == (9, None, None)
    assert order("data.repeat_rare=1.0").repeats.tolist() == pytest.approx([*[(9 / 8) ** 0.5] * 8, 3.0])
    assert order("data.group_by_aspect=true").is_portrait.tolist() == [False] * 9  # all are 60x40
    config = settings("train", *where, "data.short_side_px=[64,32,48]")
    checked = datasets.check(config.data, datasets.build_dataset(config.data, "val"), "val")
    assert datasets.build_transformed_dataset(config, checked, "train").resize.short_sides == (32, 48, 64)
    assert datasets.build_transformed_dataset(config, checked, "val").resize.short_sides == (48,)
    with pytest.raises(InputError, match="data.short_side_px=.*an integer from 1 to 20000, or a list of them"):
        settings("train", *where, "data.short_side_px=[]")
    with pytest.raises(InputError, match="data.repeat_rare=2: must be null or a number above 0, up to 1"):
        settings("train", *where, "data.repeat_rare=2")


def test_detection_decodes_and_selects_boxes_by_its_settings(settings):
    config = settings("train", "roi.delta_std=[1,2,3,4]", "detect.nms=soft", "detect.flip=true")
    detector = build_detector_config(config)
    assert detector.coder.std == (1, 2, 3, 4)
    assert detector.postprocess == config.detect


def test_weights_of_classes_are_by_name(settings):
    config = settings("train", "loss.class_weights={cat: 2, background: 0.5}")
    assert build_training_config(config, ("ant", "cat")).loss.class_weights == (0.5, 1.0, 2.0)
    assert build_training_config(settings("train"), ("ant", "cat")).loss.class_weights is None
    with pytest.raises(InputError, match="loss.class_weights: there is no class 'cat'; there are background, dog"):
        build_training_config(config, ("dog",))
    with pytest.raises(InputError, match="loss.class_weights=.*must be null or weights of classes, such as"):
        settings("train", "loss.class_weights={cat: -1}")


def test_build_passes_settings_on():
    flip = instantiate({"_target_": "albumentations.HorizontalFlip", "p": 0.25}, ALLOWED)
    assert isinstance(flip, albumentations.HorizontalFlip)
    assert flip.p == 0.25
    weight = torch.nn.Parameter(torch.zeros(1))
    assert instantiate({"_target_": "torch.optim.SGD", "lr": 0.1}, ALLOWED, params=[weight]).defaults["lr"] == 0.1


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
        "detector.proposals.generate.shutil.rmtree",
        "detector.proposals.generate.ThreadPoolExecutor",
        "detector.data.formats.voc.read_annotation",
        "detector.nowhere.Thing",
        "detector.",
        None,
    ],
)
def test_only_classes_of_the_allowed_packages_are_made(target):
    with pytest.raises(InputError, match="_target_"):
        instantiate({"_target_": target, "p": 1}, ALLOWED)


def test_a_text_in_place_of_a_flag_is_not_taken_for_true():
    weight = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(InputError, match="nesterov=no must be true or false"):
        instantiate({"_target_": "torch.optim.SGD", "nesterov": "no"}, ALLOWED, params=[weight])


def test_a_wrong_argument_is_an_input_error():
    weight = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(InputError, match=r"torch\.optim\.SGD does not take \{'learning': 1\}"):
        instantiate({"_target_": "torch.optim.SGD", "learning": 1}, ALLOWED, params=[weight])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.iterations=0", "train.iterations=0: must be an integer above 0"),
        ("train.iterations=many", "train.iterations=many: must be an integer above 0"),
        ("~model.backbone", "model.backbone is not given: must be alexnet, zf, vgg_cnn_m, vgg11, "),
        ("train=5", "train=5: must be a group of settings"),
        ("train.images_per_batch=2.5", "train.images_per_batch=2.5"),
        ("train.images_per_batch=2000000000", "train.images_per_batch=2000000000: must be an integer from 1 to 10000"),
        ("model.hidden=1000000", "model.hidden=1000000: must be an integer from 1 to 65536"),
        ("train.eval_every=true", "train.eval_every=True"),
        ("seed=-1", "seed=-1"),
        ("precision=float8", "precision=float8: must be auto, bfloat16, float16 or float32"),
        ("roi.foreground_fraction=1.5", "roi.foreground_fraction=1.5: must be a number from 0 to 1"),
        ("roi.background_iou_low=0.6", "needs background_iou_low < background_iou_high <= foreground_iou"),
        ("roi.delta_std=[1,2]", r"roi.delta_std=\[1, 2\]: must be four numbers"),
        ("metric.iou_thresholds=[]", r"metric.iou_thresholds=\[\]: must be a list"),
        ("metric.iou_thresholds=0.5", "metric.iou_thresholds=0.5: must be a list"),
        ("metric.iou_thresholds=[50]", r"metric.iou_thresholds=\[50\]"),
        ("metric.devkit=1", "metric.devkit=1: must be true or false"),
        ("metric.coco=yes_please", "metric.coco=yes_please: must be true or false"),
        ("metric.main=mAP", "metric.main=mAP: must be one of 11point@0.50, area@0.50, 11point@0.50:0.95"),
        ("metric.main=area@0.75", "metric.main=area@0.75: must be one of 11point@0.50"),
        ("metric.main=coco", "metric.main=coco: must be one of .*, or coco with metric.coco=true"),
        ("data.classes=cat", "data.classes=cat: must be null or a list"),
        ("model.backbone=resnet19", "model.backbone=resnet19"),
        ("proposals.mode=best", "proposals.mode=best"),
        ("metric.iou_thresholds=[0.5,0.501]", "must differ, and have two decimals at most"),
        ("schedule.steps=[30000] schedule=step", r"schedule.steps=\[30000\]: must be a list of fractions of the run"),
        ("schedule.warmup_iterations=-5", "schedule.warmup_iterations=-5"),
        ("device=null", "device=None"),
        ("data.max_images=0", "data.max_images=0: must be null or an integer above 0"),
        ("data.exclude_classes=cat", r"data.exclude_classes=cat: must be null or a list of names, such as \[cat,dog\]"),
        ("data.classes=[]", r"data.classes=\[\]: must be null or a list"),
        ("data=joined data.parts=[a]", r"data.parts=\['a'\]: must be null or a list of datasets"),
        ("data.val_proposals=3", "data.val_proposals=3: must be null, the name of a file"),
        ("run.dir=2024", "run.dir=2024"),
        ("optimizer.lr=-1", "optimizer.lr=-1"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay=-1"),
        ("optimizer.max_grad_norm=0", "optimizer.max_grad_norm=0: must be null or a number above 0"),
        ("optimizer.bias_lr_factor=0", "optimizer.bias_lr_factor=0: must be a number above 0"),
        ("train.ema=1", "train.ema=1: must be null or a number between 0 and 1"),
        ("optimizer.betas=[0.9]", r"optimizer.betas=\[0.9\]: must be two numbers from 0 to below 1"),
        ("optimizer.fused=3", "optimizer.fused=3: must be null or true or false"),
        ("optimizer=sgd optimizer.momentum=nan", "optimizer.momentum=nan: must be a number from 0 to below 1"),
        ("data.min_proposal_px=-1", "data.min_proposal_px=-1: must be a number of pixels"),
        ("data.unique_proposals=2", "data.unique_proposals=2: must be true or false"),
        ("data.proposals_by_score=x", "data.proposals_by_score=x: must be true or false"),
        ("data.exif=yes", "data.exif=yes: must be apply or ignore"),
        ("data.max_image_pixels=0", "data.max_image_pixels=0: must be an integer above 0"),
        ("data.max_bad_fraction=2", "data.max_bad_fraction=2: must be a number from 0 to 1"),
        (
            "data.short_side_px=1000000",
            "data.short_side_px=1000000: must be an integer from 1 to 20000, or a list of them",
        ),
        ("data.classes=[1]", r"data.classes=\[1\]: must be null or a list of names"),
        ("+model.hiden=3", r"model\.hiden: no such setting; did you mean model\.hidden\?"),
        ("optimizer.lr=inf", "optimizer.lr=inf: must be null or a number above 0"),
        ("model.frozen_stages=-1", "model.frozen_stages=-1: must be null or an integer"),
    ],
)
def test_invalid_values_are_named(settings, override, says):
    with pytest.raises(InputError, match=says):
        settings("train", *override.split())


@pytest.mark.parametrize(
    ("group", "key", "says"),
    [
        ("train", "iteration", r"train\.iteration: no such setting; did you mean train\.iterations\?"),
        ("train", "eval_evry", r"train\.eval_evry: no such setting; did you mean train\.eval_every\?"),
        ("run", "dri", r"run\.dri: no such setting; did you mean run\.dir\?"),
        ("proposals", "mod", r"proposals\.mod: .* did you mean proposals\.mode\?"),
        ("distributed", "timeout", r"distributed\.timeout: .* did you mean distributed\.timeout_s\?"),
        ("data", "val_splt", r"data\.val_splt: .* did you mean data\.val_split\?"),
        ("augment", "transfroms", r"augment\.transfroms: .* did you mean augment\.transforms\?"),
        (None, "prescision", r"prescision: .* did you mean precision\?"),
        (None, "iterations", r"iterations: .* did you mean train\.iterations\?"),
        (None, "zzz", r"^zzz: no such setting\. --help lists all$"),
    ],
)
def test_settings_that_training_does_not_have_are_named(settings, group, key, says):
    config = settings("train").plain()
    (config[group] if group else config)[key] = 5
    parse(CommonSettings, config, ignore_unknown=True)  # a checkpoint may be of another version, and is scored
    with pytest.raises(InputError, match=says):
        parse(TrainSettings, config)


@pytest.mark.parametrize("choice", ["voc", "voc07", "voc12", "voc0712", "voc0712plus", "coco", "joined", "shapes"])
def test_training_takes_all_settings_of_a_data_set(settings, choice):
    missing = {"coco": ["data.train_json=a", "data.val_json=b"], "joined": ["data.parts=[{root: a}]"]}.get(choice, [])
    data = settings("train", f"data={choice}", "data.root=x", *missing).data
    assert data.root == "x"
    datasets.require_taken(
        data, [item.key for item in walk(data) if LAYOUT in item.policies and item.value is not None]
    )


def test_every_setting_of_a_layout_is_taken_by_one(settings):
    taken = {
        key
        for reader in ("voc", "coco", "folder", "shapes")
        for part in ("train", "val")
        for key in datasets._reader_arguments(Data(reader=reader, root="x"), part)
    }
    assert taken == {name for name, field in Data.model_fields.items() if LAYOUT in field.metadata}


def test_a_renamed_setting_is_named_with_its_new_name():
    assert str(no_such_setting("metric.overlaps", ())) == (
        "metric.overlaps: no such setting; it is now metric.iou_thresholds"
    )
    assert "channels_last: no such setting; remove it" in str(no_such_setting("channels_last", ()))


def test_a_group_that_is_no_group_is_named(settings):
    with pytest.raises(InputError, match="run=here: must be a group of settings"):
        settings("train", "run=here")


def test_flatten():
    assert flatten(Metric(iou_thresholds=(0.5, 0.7), devkit=True)) == {
        "iou_thresholds": "(0.5, 0.7)", "main": "None", "devkit": True, "coco": False,
    }  # fmt: skip


def test_the_page_of_settings_is_that_of_the_schema():
    page = settings_page()
    assert PAGE.read_text() == page, "run python scripts/document_settings.py"
    for key, _ in fields(TrainSettings):
        assert f"`{key}`" in page


def test_settings_survive_being_written_and_read(settings):
    for program, *overrides in (["train", "optimizer=sgd"], ["train", "experiment=paper"], ["evaluate"]):
        typed = settings(program, *overrides)
        assert parse(type(typed), json.loads(json.dumps(typed.plain()))) == typed
        assert pickle.loads(pickle.dumps(typed)) == typed


def test_the_dataset_of_an_evaluation_keeps_settings_of_training(settings):
    for choice in ("voc", "shapes", "coco", "joined"):
        data = settings("evaluate", f"data={choice}", "data.root=x").data
        assert [
            key for key, field in Data.model_fields.items() if AS_TRAINED in field.metadata and getattr(data, key)
        ] == []


@pytest.mark.parametrize("key", ["train.ema", "optimizer.max_grad_norm", "data.exif", "detect", "roi.delta_std"])
def test_a_checkpoint_without_a_setting_has_its_default(settings, key):
    """A setting that is added later may not make earlier checkpoints unusable."""
    config = settings("train", "optimizer=sgd").plain()
    *groups, name = key.split(".")
    group = config
    for part in groups:
        group = group[part]
    group.pop(name)
    assert parse(TrainSettings, config) == settings("train", "optimizer=sgd")
