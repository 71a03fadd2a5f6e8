"""Backbones of timm, without a download."""

import json
import sys

import pytest
import torch

import train
from detector.errors import InputError
from detector.models import build_model
from detector.models.weights import load_weights, to_torchvision
from detector.schema import parse
from detector.settings import Model, TrainSettings
from tests.conftest import TINY

timm = pytest.importorskip("timm", reason="the extra [timm] is not installed")
IMAGES = torch.randint(0, 255, (2, 3, 70, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ROIS = torch.tensor([[0, 0, 0, 60, 60], [1, 10, 20, 90, 60.0]])


@pytest.mark.parametrize(
    ("name", "stages"), [("test_convnext", 3), ("test_efficientnet", 4), ("test_resnet", 4), ("test_byobnet", 4)]
)
def test_shapes_and_a_gradient_for_every_parameter(name, stages):
    model = build_model(Model(backbone=f"timm/{name}", hidden=8, pool_size=2), num_classes=2)
    assert model.backbone.stride == 16
    assert len(model.backbone.stages) == stages
    of_stages = {id(parameter) for stage in model.backbone.stages for parameter in stage.parameters()}
    assert of_stages == {id(parameter) for parameter in model.backbone.parameters()}
    features = model.backbone(IMAGES.float())
    assert features.shape[:2] == (2, model.backbone.out_channels)
    class_logits, deltas = model(IMAGES, ROIS)
    (class_logits.square().sum() + (deltas - 1).square().sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_images_are_normalised_by_its_own_mean_and_deviation():
    for name in ("test_convnext", "resnetv2_50"):
        net = timm.create_model(name, features_only=True)
        model = build_model(Model(backbone=f"timm/{name}", hidden=8, pool_size=2), num_classes=2)
        assert model.mean.flatten().tolist() == pytest.approx([255 * value for value in net.pretrained_cfg["mean"]])
        assert model.std.flatten().tolist() == pytest.approx([255 * value for value in net.pretrained_cfg["std"]])
    assert model.mean[0] == 127.5  # so it is not the one of ImageNet


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_resnet"])
def test_weights_of_a_local_file_compute_what_timm_computes(tmp_path, name):
    torch.manual_seed(0)
    net = timm.create_model(name).eval()
    for key, value in net.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    model = build_model(Model(backbone=f"timm/{name}", weights="w", hidden=8, pool_size=2), num_classes=2)
    assert not load_weights(model, f"timm/{name}", str(tmp_path / "w.pth"), ["cat", "dog"])
    frozen = {key for key, value in model.backbone.named_parameters() if not value.requires_grad}
    assert frozen
    assert len(frozen) < len([*model.backbone.parameters()])
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = net.forward_intermediates(images, intermediates_only=True)
        features = model.eval().backbone(images)
    match = [each for each in expected if each.shape == features.shape]
    torch.testing.assert_close(features, match[-1], rtol=1e-4, atol=1e-4)
    other = build_model(Model(backbone="timm/test_byobnet", weights="w", hidden=8, pool_size=2), num_classes=2)
    with pytest.raises(InputError, match="does not fit timm/test_byobnet: it lacks"):
        load_weights(other, "timm/test_byobnet", str(tmp_path / "w.pth"), ["cat", "dog"])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_network", "timm has no such network"),
        ("vit_tiny_patch16_224", "does not take images of any size"),
        ("test_vit", "does not take images of any size"),
        ("test_mlp_mixer", "timm has no such network|does not offer its features|no features of stride 16"),
    ],
)
def test_networks_that_do_not_fit_are_named(name, says):
    with pytest.raises(InputError, match=f"model.backbone=timm/{name}: .*({says})"):
        build_model(Model(backbone=f"timm/{name}"), num_classes=2)


@pytest.mark.parametrize(
    "name", ["timm/hf-hub:a/b", "timm/local-dir:x", "hf-hub:a/b", "timm/a.tag", "timm/../a", "timm/"]
)
def test_names_that_fetch_from_elsewhere_are_refused(name):
    with pytest.raises(InputError, match="backbone=.*: must be alexnet, .* or timm/NAME"):
        parse(Model, {"backbone": name})


def test_without_the_extra_or_a_file_the_error_says_what_to_do(monkeypatch):
    model = build_model(Model(backbone="timm/test_convnext", hidden=8, pool_size=2), num_classes=2)
    with pytest.raises(InputError, match="torchvision has none for timm/test_convnext: give a file, or null"):
        load_weights(model, "timm/test_convnext", "imagenet", ["cat"])
    with pytest.raises(InputError, match="is no network of torchvision"):
        to_torchvision(model.state_dict(), "timm/test_convnext")
    with pytest.raises(InputError, match="model.norm=group: timm/test_resnet takes frozen or batch"):
        build_model(Model(backbone="timm/test_resnet", norm="group"), num_classes=2)
    with pytest.raises(InputError, match="model.norm=batch: timm/test_convnext has no norm layers"):
        build_model(Model(backbone="timm/test_convnext", norm="batch"), num_classes=2)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        InputError, match="model.backbone=timm/test_convnext: needs the package timm: uv pip install timm"
    ):
        build_model(Model(backbone="timm/test_convnext"), num_classes=2)


@pytest.mark.slow
def test_it_trains_20_iterations(settings, small_shapes, tmp_path):
    train.main(
        settings(
            "train", *TINY, f"data.root={small_shapes}", f"proposals.folder={tmp_path}/p", f"run.dir={tmp_path}/run",
            "model.backbone=timm/test_convnext", "train.iterations=20", "train.eval_every=20", "train.log_every=1",
        )
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss/train"] for line in lines if "loss/train" in line]
    assert len(losses) == 20
    assert all(0 < loss < 20 for loss in losses)
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    trained = checkpoint["model"]["backbone.net.stages_0.blocks.0.conv_dw.weight"]
    torch.manual_seed(0)
    start = build_model(parse(TrainSettings, checkpoint["config"]).model, num_classes=4).state_dict()
    assert not torch.equal(trained, start["backbone.net.stages_0.blocks.0.conv_dw.weight"])
