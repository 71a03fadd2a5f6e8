"""scripts/compress.py, and scripts/benchmark.py frames, on the checkpoint of an untrained network."""

import shutil

import numpy as np
import pytest

import detector
import train
from detector.errors import InputError
from scripts import benchmark, compress


def run(checkpoint, out, ranks, *more: str) -> int:
    options = ["--checkpoint", str(checkpoint), "--out", str(out), "--ranks", *map(str, ranks), "--device", "cpu"]
    return compress.main([*options, *more])


def test_the_written_network_is_one_like_any_other(checkpoint, small_shapes, tmp_path, capsys):
    image = small_shapes / "JPEGImages/test_0.jpg"
    options = {"score_threshold": 0.0, "nms_iou": 1.0, "max_detections": 10000}
    before = detector.load(checkpoint, "cpu").detect(image, **options)
    assert run(checkpoint, tmp_path / "whole", [32, 32], "--data", str(small_shapes), "--split", "test") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:3]]
    assert [row[0] for row in rows] == ["before", "after"]
    assert float(rows[0][3]) == pytest.approx(float(rows[1][3]), abs=0.01)
    whole = detector.load(tmp_path / "whole/model.safetensors", "cpu")
    np.testing.assert_allclose(whole.detect(image, **options).scores, before.scores, atol=1e-5)
    assert run(checkpoint, tmp_path / "small", [2, 3]) == 0
    small = detector.load(tmp_path / "small/model.safetensors", "cpu")
    assert small.settings.model.svd_ranks == (2, 3)
    assert [layer.weight.shape[0] for layer in small.network.model.head.fc7] == [3, 32]
    assert not np.allclose(small.detect(image, **options).scores[:9], before.scores[:9], atol=1e-3)
    parameters = [sum(p.numel() for p in each.network.model.head.parameters()) for each in (whole, small)]
    assert parameters[1] < parameters[0] / 8


def test_fitted_layers_are_closer_to_the_outputs(checkpoint, small_shapes, tmp_path):
    options = {"score_threshold": 0.0, "nms_iou": 1.0, "max_detections": 10000}
    for name, more in (("plain", ()), ("fitted", ("--fit",))):
        assert run(checkpoint, tmp_path / name, [4, 4], *more) == 0
    networks = {"before": checkpoint} | {name: tmp_path / name / "model.safetensors" for name in ("plain", "fitted")}
    scores = {
        name: np.sort(detector.load(path, "cpu").detect(small_shapes / "JPEGImages/test_0.jpg", **options).scores)
        for name, path in networks.items()
    }
    errors = {name: np.abs(scores[name] - scores["before"]).mean() for name in ("plain", "fitted")}
    assert errors["fitted"] < 0.5 * errors["plain"]


def test_wrong_input(checkpoint, tmp_path, capsys, settings):
    for ranks, says in {(0, 1): "--ranks 0 1: must be above 0", (33, 1): "fc6 has a rank of 32 at most"}.items():
        assert run(checkpoint, tmp_path / "out", ranks) == 2
        assert says in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert run(checkpoint, tmp_path / "out", [4, 4], "--split", "val") == 2
    assert "--split belongs to --data" in capsys.readouterr().err
    assert run(checkpoint, tmp_path / "small", [4, 4]) == 0
    assert run(tmp_path / "small/model.safetensors", tmp_path / "again", [2, 2]) == 2
    assert "the network is compressed already" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    shutil.copy(checkpoint, tmp_path / "other/best.pt")
    assert run(checkpoint, tmp_path / "other", [4, 4]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"model\.svd_ranks: is for networks that are compressed after training"):
        train.main(settings("train", "model.svd_ranks=[4,4]", f"run.dir={tmp_path}/training", "device=cpu"))
    assert not (tmp_path / "training").exists()


def test_frames_are_counted_and_scored_by_mode_and_proposals(checkpoint, small_shapes, capsys):
    options = ["--checkpoint", str(checkpoint), "--data", str(small_shapes), "--split", "test", "--device", "cpu"]
    assert benchmark.main(["frames", *options, "--modes", "single", "--proposals", "2", "60", "--rounds", "1"]) == 0
    few, many = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [few[:2], many[:2]] == [["single", "2"], ["single", "60"]]
    assert float(few[2]) > 0
    assert float(few[3]) < float(many[3]) <= 1  # recall
    assert 0 <= float(many[4]) <= 1
