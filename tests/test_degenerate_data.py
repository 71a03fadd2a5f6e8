"""Training on next to nothing ends without an error, and with a collapse warning only where nothing is learned."""

import itertools
import json

import pytest

import train
from tests.helpers.degenerate import KINDS, make_degenerate

FEW = [
    "data.short_side_px=64", "data.max_side_px=96", "model.hidden=16", "model.pool_size=3", "train.iterations=8",
    "train.images_per_batch=2", "train.eval_every=8", "train.checkpoint_every=8", "train.log_every=2",
    "roi.rois_per_image=16", "proposals.mode=single", "data.train_max_proposals=60", "data.val_max_proposals=60",
    "schedule.warmup_iterations=2", "workers=0", "device=cpu", "precision=float32",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_data_train_to_the_end(kind, settings, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("detector.training.trainer.collapse_window", lambda iterations: 4)
    root = make_degenerate(kind, tmp_path / "data", images=10)
    where = ["data=voc", f"data.root={root}", f"proposals.folder={tmp_path}/proposals", f"run.dir={tmp_path}/run"]
    train.main(settings("train", *where, *FEW))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss/train" in line]
    assert logged[-1]["iteration"] == 8
    assert all(line["roi/background_accuracy"] is not None for line in logged)
    for before, line in itertools.pairwise(logged):
        if line["train/collapsed"]:
            assert not any(item["roi/foreground_accuracy"] for item in (before, line))
    assert ("the network has collapsed" in caplog.text) == any(line["train/collapsed"] for line in logged)
