"""The estimate of a step's memory."""

import logging

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from detector.models import build_model
from detector.runtime.device import Compute
from detector.settings import Model
from detector.training import diagnostics
from detector.training.diagnostics import COPIES, WORKSPACE_GIB, step_gib, warn_if_memory_is_short

CPU = Compute(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def model():
    return build_model(Model(backbone="resnet18", hidden=64, pool_size=3), num_classes=2)


def test_the_estimate_is_what_autograd_keeps_of_a_whole_step(model):
    """Two images of 150x220 pixels with 20 RoIs each, of which the estimate has seen neither size nor number."""
    kept = {}

    def count(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    rois = torch.tensor([[image, 0.0, 0.0, 90.0, 90.0] for image in (0, 1) for _ in range(20)])
    with saved_tensors_hooks(count, lambda tensor: tensor):
        outputs = CPU.forward(model.train(), torch.zeros(2, 3, 150, 220, dtype=torch.uint8), rois)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    activations = sum(size for pointer, size in kept.items() if pointer not in parameters)
    del outputs
    weights = COPIES * sum(parameter.nbytes for parameter in model.parameters())
    estimate = (step_gib(model, CPU, 2, (150, 220), 20) - WORKSPACE_GIB) * 2**30 - weights
    assert estimate == pytest.approx(activations, rel=0.15)


@pytest.mark.parametrize(("free", "level"), [(0.5, logging.WARNING), (64.0, logging.INFO)])
def test_a_step_that_needs_more_than_is_free_is_a_warning(model, monkeypatch, caplog, free, level):
    monkeypatch.setattr(diagnostics, "free_memory_gib", lambda device: free)
    caplog.set_level(logging.INFO)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    warn_if_memory_is_short(model, CPU, 16, (600, 1000), 64)
    (record,) = caplog.records
    assert record.levelno == level
    assert "16 images of at most 600x1000 with 64 RoIs each needs about" in record.message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
