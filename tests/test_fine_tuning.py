"""From a detector trained here, through a file in torchvision's layout, to a detector of other classes."""

import json
import shutil
import sys

import pytest
import torch

import train
from scripts.export import main as export

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture
def exported(run, tmp_path, monkeypatch):
    """The backbone of the finished run as torchvision's ResNet-18."""
    path = tmp_path / "resnet18.pth"
    command = ["export.py", "torchvision", "--checkpoint", str(run / "checkpoints/last.pt"), "--out", str(path)]
    monkeypatch.setattr(sys, "argv", command)
    assert export() == 0
    return path


def test_fine_tuning_leaves_every_frozen_tensor_unchanged(exported, common, settings, small_shapes, tmp_path):
    root = shutil.copytree(small_shapes, tmp_path / "other")
    for path in (root / "Annotations").iterdir():
        path.write_text(path.read_text().replace(">ball<", ">apple<"))
    folder = tmp_path / "tuned"
    overrides = [*common, f"data.root={root}", f"model.weights={exported}", f"run.dir={folder}", "train.ema=0.9"]
    train.main(settings("train", *overrides, "train.iterations=6", "train.eval_every=6"))
    checkpoint = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    assert checkpoint["config"]["optimizer"]["lr"] == pytest.approx(0.00005 * 2**0.5)
    before = torch.load(exported, weights_only=True)
    names = {"stem.0": "conv1", "stem.1": "bn1"}

    def given(key: str) -> torch.Tensor:
        key = key.removeprefix("backbone.")
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        return before[key]

    is_norm = ("bn", "stem.1.", "downsample.1.")
    is_frozen = [
        key
        for key in checkpoint["model"]
        if key.startswith(("backbone.stem.", "backbone.layer1."))
        or (key.startswith("backbone.") and any(part in key for part in is_norm))
    ]
    assert len(is_frozen) == 5 + 20 + 20 + 20  # the stem, layer1, and the norms of layer2 and layer3
    for model in (checkpoint["model"], checkpoint["raw_model"]):
        assert all(torch.equal(model[key], given(key)) for key in is_frozen)
    key = "backbone.layer3.1.conv2.weight"
    assert not torch.equal(checkpoint["raw_model"][key], given(key))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["loss/train"] > 0 for line in lines if "loss/train" in line)


def test_an_export_overwrites_nothing(exported, capsys):
    assert export() == 2
    assert "already exists and is not overwritten" in capsys.readouterr().err


def test_torchvision_takes_the_exported_backbone(exported):
    from torchvision.models import resnet18

    missing, unexpected = resnet18().load_state_dict(torch.load(exported, weights_only=True), strict=False)
    assert unexpected == []
    assert {key.partition(".")[0] for key in missing} == {"layer4", "fc"}
