import errno
import json
import math
import re
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from detector.evaluation.counts import ThresholdCounts
from detector.evaluation.recall import score_recall
from detector.inference.embedding import EmbeddedObjects
from detector.runtime.device import peak_memory_mib
from detector.training.tracking import Means, Tracker
from tests.conftest import ground_truth


@pytest.fixture
def folder(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.scalars(3, {"loss/train": 0.5, "train/odd": math.nan})
    tracker.metrics(
        4,
        {
            "loss": {"cls": 0.25, "box": 0.5},
            "voc": {
                "area@0.50": {"mAP": 0.5, "AP": {"my cat": 0.5, "unicorn": None}},
                "area@0.50:0.95": {"mAP": 0.25, "AP": {}},
            },
            "coco": {"AP": 0.125, "AP75": 0.0625, "APs": None, "classes": {"my cat": 0.125}},
        },
        score_recall(
            [ground_truth("a", (1, 0, 0, 10, 10), (1, 20, 20, 30, 30))],
            [np.array([[0, 0, 10, 10], [20, 20, 30, 26]], dtype=np.float32)],  # IoU 1 and 0.6
            ["my cat"],
        ),
    )
    tracker.image(4, "val/a", np.full((5, 6, 3), 9, dtype=np.uint8))
    tracker.text("config", "seed: 1\nrun: 2")
    tracker.hyperparameters({"seed": 1, "lr": 0.5}, ["mAP/area_0.50"])
    tracker.close()
    return tmp_path


def test_events_hold_scalars_images_text_and_hyperparameters(folder):
    assert len(list(folder.rglob("events.*"))) == 1  # add_hparams would make a second
    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()
    assert {"loss/train", "loss/val", "loss/val_cls", "mAP/area_0.50", "val_AP_area_0.50/my_cat"} <= set(
        tags["scalars"]
    )
    assert "train/odd" not in tags["scalars"]
    assert events.Scalars("loss/val")[0].value == 0.75
    assert events.Scalars("loss/train")[0].step == 3
    assert tags["images"] == ["val/a"]
    assert b"seed: 1" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    plugin = events.summary_metadata["_hparams_/session_start_info"].plugin_data
    assert plugin.plugin_name == "hparams"
    experiment = HParamsPluginData.FromString(
        events.summary_metadata["_hparams_/experiment"].plugin_data.content
    ).experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["mAP/area_0.50"]


def test_groups_of_tags_begin_with_loss_and_map(folder):
    scalars = EventAccumulator(str(folder)).Reload().Tags()["scalars"]
    assert sorted({tag.split("/")[0] for tag in scalars})[:2] == ["loss", "mAP"]


def test_recall_of_the_proposals_stands_beside_map(folder):
    events = EventAccumulator(str(folder)).Reload()
    assert events.Scalars("proposals/recall_0.50")[0].value == 1
    assert events.Scalars("proposals/recall_0.70")[0].value == 0.5
    assert events.Scalars("proposals/average_recall")[0].value == pytest.approx((10 + 3) / 20)
    [layout] = events.Tensors("custom_scalars__config__")
    categories = Layout.FromString(layout.tensor_proto.string_val[0]).category
    charts = {chart.title: list(chart.multiline.tag) for category in categories for chart in category.chart}
    [tags] = [tags for title, tags in charts.items() if title.startswith("mAP")]
    shown = {tag for tag in events.Tags()["scalars"] if any(re.match(pattern, tag) for pattern in tags)}
    assert shown == {"mAP/area_0.50", "mAP/area_0.50-0.95", "mAP/coco", "proposals/recall_0.50"}
    assert charts["accuracy of sampled RoIs"] == ["roi/foreground_accuracy", "roi/background_accuracy"]


def test_a_run_that_restarts_in_its_folder_shows_each_step_once(tmp_path):
    for value in (0.5, 0.25):  # killed before its first checkpoint, and once more
        tracker = Tracker(tmp_path)
        for step in (1, 2):
            tracker.scalars(step, {"loss/train": value})
        tracker.close()
        time.sleep(1.1)  # TensorBoard reads the files in the order of the seconds in their names
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("loss/train")
    assert [(event.step, event.value) for event in events] == [(1, 0.25), (2, 0.25)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_an_error_at_the_start_restores_the_hook_of_threads(tmp_path, monkeypatch, number):
    def fails(*_, **__):
        raise OSError(number, "no")

    before = threading.excepthook
    monkeypatch.setattr("detector.training.tracking.SummaryWriter", fails)
    with pytest.raises(OSError, match="no") as error:
        Tracker(tmp_path)
    assert error.value.errno == number
    assert threading.excepthook is before


def test_the_same_numbers_stand_in_metrics_jsonl(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"iteration": 3, "loss/train": 0.5, "train/odd": None}
    assert lines[1]["mAP/area_0.50"] == 0.5
    assert lines[1]["mAP/area_0.50-0.95"] == 0.25
    assert {tag: value for tag, value in lines[1].items() if "coco" in tag} == {
        "mAP/coco": 0.125,
        "val_coco/AP75": 0.0625,
    }
    assert "val_AP_area_0.50/unicorn" not in lines[1]


def test_means_skip_missing_values_but_show_a_loss_of_nan():
    means = Means()
    means.add({"a": torch.tensor(1.0), "roi/b": torch.tensor(math.nan), "c": math.nan})
    means.add({"a": 3.0, "roi/b": torch.tensor(5.0), "c": 1.0})
    values = means.take()
    assert (values["a"], values["roi/b"]) == (2.0, 5.0)
    assert math.isnan(values["c"])
    means.add({"a": 7.0})
    assert means.take() == {"a": 7.0}


@pytest.mark.slow
def test_peak_memory_is_that_of_this_process():
    before = peak_memory_mib(torch.device("cpu"))
    block = np.ones(int(before) * 2**20 // 8 + 2**24)
    assert peak_memory_mib(torch.device("cpu")) > before + 64
    assert block[0] == 1


def test_precision_recall_curves_histograms_and_layout(tmp_path):
    tracker = Tracker(tmp_path)
    counts = ThresholdCounts(np.array([3, 2, 0]), np.array([1, 0, 0]), 4)
    tracker.pr_curve(7, "val/cat", counts)
    tracker.histogram(7, "roi/iou", np.array([0.0, 0.5]))
    tracker.histogram(7, "roi/none", np.zeros(0))
    tracker.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    hits, misses, _, not_found, precision, recall = make_ndarray(events.Tensors("val/cat")[0].tensor_proto)
    assert [row.tolist() for row in (hits, misses, not_found)] == [[3, 2, 0], [1, 0, 0], [1, 2, 4]]
    assert [row.tolist() for row in (precision, recall)] == [[0.75, 1, 1], [0.75, 0.5, 0]]
    assert events.Tags()["histograms"] == ["roi/iou"]


def test_the_projector_has_class_image_and_crop_of_each_object(tmp_path):
    crops = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    crops[1] = (255, 0, 0)
    objects = EmbeddedObjects(np.eye(3, 2, dtype=np.float32), np.array([1, 2, 1]), ["a", "b\tc", "d"], crops)
    for iteration in (7, 7, 9):  # the second time as of a finished run that is resumed
        tracker = Tracker(tmp_path)
        tracker.embedding(iteration, objects, ["cat", "big  dog"])
        tracker.close()
    points = tmp_path / "00007/objects"
    assert (points / "tensors.tsv").read_text() == "1.0\t0.0\n0.0\t1.0\n0.0\t0.0\n"
    assert (points / "metadata.tsv").read_text() == "class\timage\ncat\ta\nbig dog\tb c\ncat\td\n"
    sprite = np.array(Image.open(points / "sprite.png"))
    assert sprite.shape[:2] == (8, 8)
    assert sprite[:4, 4:, :3].reshape(-1, 3).tolist() == [[255, 0, 0]] * 16
    config = (tmp_path / "projector_config.pbtxt").read_text()
    assert "00007" not in config  # the newest are shown
    assert config.count('tensor_path: "00009/objects/tensors.tsv"') == 1


def test_fewer_objects_than_the_projector_can_show_are_left_out(tmp_path):
    none = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    tracker = Tracker(tmp_path)
    tracker.embedding(7, EmbeddedObjects(np.zeros((2, 2), np.float32), np.array([1, 1]), ["a", "b"], none), ["cat"])
    tracker.close()
    assert not (tmp_path / "projector_config.pbtxt").exists()
