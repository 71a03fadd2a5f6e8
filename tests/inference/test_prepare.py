"""The network made ready for inference gives the same outputs."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from detector.inference.prepare import prepare
from detector.models import build_model
from detector.runtime.device import Compute
from detector.settings import Model

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)
IMAGES = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ROIS = torch.tensor([[0.0, 3.0, 5.0, 60.0, 50.0], [0.0, 40.0, 10.0, 95.0, 63.0]])


@pytest.mark.parametrize(
    ("backbone", "head", "weights", "norms"),
    [
        ("resnet18", "fc", None, 15),  # stem, and two in each of six blocks, and two shortcuts
        ("resnet50", "res5", "file.pth", 53),
        ("resnet18_fpn", "fc", "file.pth", 20),
        ("vgg11_bn", "fc", None, 8),
        ("vgg11", "fc", None, 0),
    ],
)
def test_outputs_are_equal_without_norm_layers(backbone, head, weights, norms):
    model = build_model(Model(backbone=backbone, head=head, weights=weights, hidden=16), num_classes=3).eval()
    assert _set_norms(model) == norms
    ready = _prepared_with_equal_outputs(model)
    assert not any(isinstance(module, NORMS) for module in ready.modules())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_byobnet"])
def test_outputs_of_networks_of_timm_are_equal(name):
    pytest.importorskip("timm", reason="the extra [timm] is not installed")
    model = build_model(Model(backbone=f"timm/{name}", hidden=16), num_classes=3).eval()
    assert _set_norms(model)
    _prepared_with_equal_outputs(model)


def _set_norms(model: nn.Module) -> int:
    """Random statistics for the norm layers, which are counted."""
    found = [module for module in model.modules() if hasattr(module, "running_var")]
    for norm in found:
        for value in (norm.weight.data, norm.running_var):
            value.uniform_(0.5, 1.5)
        for value in (norm.bias.data, norm.running_mean):
            value.uniform_(-0.5, 0.5)
    return len(found)


def _prepared_with_equal_outputs(model: nn.Module) -> nn.Module:
    """The prepared network, whose outputs are those of the model, which is unchanged."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compute = Compute(torch.device("cpu"), torch.float32)
    ready = prepare(model, compute)
    with torch.inference_mode():
        for ours, expected in zip(
            compute.forward(ready, IMAGES, ROIS), compute.forward(model, IMAGES, ROIS), strict=True
        ):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return ready


def test_weights_are_cast_once():
    compute = Compute(torch.device("cpu"), torch.bfloat16)
    model = build_model(Model(backbone="resnet18", hidden=16), num_classes=3).eval()
    ready = prepare(model, compute)
    assert {parameter.dtype for parameter in ready.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.inference_mode():
        scores = [compute.forward(each, IMAGES, ROIS)[0].float().softmax(dim=1) for each in (ready, model)]
    torch.testing.assert_close(*scores, rtol=0, atol=0.02)
