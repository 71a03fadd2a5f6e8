import errno
import json
import math
import threading
import time

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from detector.errors import InputError
from detector.evaluation.counts import ThresholdCounts
from detector.runtime.device import peak_memory_mib
from detector.training.tracking import Means, Tracker


@pytest.fixture
def folder(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.scalars(3, {"train/loss": 0.5, "train/odd": math.nan})
    tracker.metrics(
        4,
        {
            "loss": {"cls": 0.25, "box": 0.5},
            "voc": {
                "area@0.50": {"mAP": 0.5, "AP": {"my cat": 0.5, "unicorn": None}},
                "area@0.50:0.95": {"mAP": 0.25, "AP": {}},
            },
            "coco": {"AP": 0.125, "APs": None, "classes": {"my cat": 0.125}},
        },
    )
    tracker.image(4, "val/a", np.full((5, 6, 3), 9, dtype=np.uint8))
    tracker.text("config", "seed: 1\nrun: 2")
    tracker.hyperparameters({"seed": 1, "lr": 0.5}, {"hparam/mAP": 0.75})
    tracker.close()
    return tmp_path


def test_events_hold_scalars_images_text_and_hyperparameters_in_one_run(folder):
    assert len(list(folder.rglob("events.*"))) == 1  # add_hparams would make a second
    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()
    assert {"train/loss", "val/loss", "val/loss_cls", "val/mAP_area_0.50", "val_AP_area_0.50/my_cat"} <= set(
        tags["scalars"]
    )
    assert "train/odd" not in tags["scalars"]
    assert events.Scalars("val/loss")[0].value == 0.75
    assert events.Scalars("train/loss")[0].step == 3
    assert tags["images"] == ["val/a"]
    assert b"seed: 1" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    plugin = events.summary_metadata["_hparams_/session_start_info"].plugin_data
    assert plugin.plugin_name == "hparams"


def test_a_run_that_begins_anew_in_its_folder_shows_each_step_once(tmp_path):
    for value in (0.5, 0.25):  # killed before its first checkpoint, and once more
        tracker = Tracker(tmp_path)
        for step in (1, 2):
            tracker.scalars(step, {"train/loss": value})
        tracker.close()
        time.sleep(1.1)  # TensorBoard reads the files in the order of the seconds in their names
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [(1, 0.25), (2, 0.25)]


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, OSError), (errno.EACCES, InputError)])
def test_a_full_disk_at_the_start_is_one_and_no_wrong_folder(tmp_path, monkeypatch, number, kind):
    def fails(*_, **__):
        raise OSError(number, "no")

    before = threading.excepthook
    monkeypatch.setattr("detector.training.tracking.SummaryWriter", fails)
    with pytest.raises(kind):
        Tracker(tmp_path)
    assert threading.excepthook is before


def test_the_same_numbers_stand_in_metrics_jsonl(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"iteration": 3, "train/loss": 0.5, "train/odd": None}
    assert lines[1]["val/mAP_area_0.50"] == 0.5
    assert lines[1]["val/mAP_area_0.50-0.95"] == 0.25
    assert {tag: value for tag, value in lines[1].items() if "coco" in tag} == {"val_coco/AP": 0.125}
    assert "val_AP_area_0.50/unicorn" not in lines[1]


def test_means_leave_out_what_no_roi_gave_but_show_a_loss_that_is_nan():
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
    counts = ThresholdCounts(np.array([3, 2, 0]), np.array([1, 0, 0]), np.array([1, 2, 4]))
    tracker.pr_curve(7, "val/cat", counts)
    tracker.histogram(7, "roi/iou", np.array([0.0, 0.5]))
    tracker.histogram(7, "roi/none", np.zeros(0))
    tracker.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    hits, misses, _, not_found, precision, recall = make_ndarray(events.Tensors("val/cat")[0].tensor_proto)
    assert [row.tolist() for row in (hits, misses, not_found)] == [[3, 2, 0], [1, 0, 0], [1, 2, 4]]
    assert [row.tolist() for row in (precision, recall)] == [[0.75, 1, 1], [0.75, 0.5, 0]]
    assert events.Tags()["histograms"] == ["roi/iou"]
    [layout] = events.Tensors("custom_scalars__config__")
    assert b"roi/foreground_accuracy" in layout.tensor_proto.string_val[0]
