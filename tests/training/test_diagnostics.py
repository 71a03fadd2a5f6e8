import logging
import math

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from detector.models import build_model
from detector.runtime.device import Compute
from detector.settings import Model
from detector.training import diagnostics
from detector.training.diagnostics import (
    COPIES,
    WORKSPACE_GIB,
    CollapseDetector,
    DivergenceDetector,
    label_entropy,
    step_gib,
    warn_if_memory_is_short,
)

CPU = Compute(torch.device("cpu"), torch.float32)
ENTROPY = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))


def feed(detector: CollapseDetector, accuracies: list[float | None], loss_cls: float = 0.3) -> list[bool]:
    return [
        detector.add(
            10 * number,
            {"roi/foreground_accuracy": accuracy, "loss/train_cls": loss_cls, "roi/label_entropy": ENTROPY},
        )
        for number, accuracy in enumerate(accuracies, start=1)
    ]


def test_no_foreground_correct_for_a_window_is_a_collapse():
    detector = CollapseDetector(window=30, warmup=0)
    assert feed(detector, [0.5, 0, 0, 0, 0, 0.1, 0]) == [False, False, False, True, True, False, False]
    assert (detector.since, detector.first) == (None, 11)


def test_a_collapse_remembers_where_it_began():
    detector = CollapseDetector(window=30, warmup=0)
    feed(detector, [0.5, 0, 0, 0, 0, 0])
    assert (detector.since, detector.first) == (11, 11)


def test_warmup_does_not_count():
    detector = CollapseDetector(window=30, warmup=25)
    assert feed(detector, [0, 0, 0, 0, 0, 0]) == [False, False, False, False, False, True]
    assert detector.since == 31


@pytest.mark.parametrize(("loss_cls", "expected"), [(ENTROPY, True), (0.99 * ENTROPY, True), (0.9 * ENTROPY, False)])
def test_hardly_any_correct_at_a_constant_s_loss(loss_cls, expected):
    assert feed(CollapseDetector(window=30, warmup=0), [0.004] * 3, loss_cls)[-1] is expected


def test_a_loss_at_the_entropy_alone_is_no_collapse():
    assert feed(CollapseDetector(window=30, warmup=0), [0.2] * 3, ENTROPY)[-1] is False


@pytest.mark.parametrize("none", [math.nan, None])  # as in a step, and as in metrics.jsonl
def test_without_foreground_nothing_is_detected(none):
    assert feed(CollapseDetector(window=30, warmup=0), [none] * 5)[-1] is False
    assert feed(CollapseDetector(window=30, warmup=0), [none, 0, none])[-1] is True


def test_entropy_of_literal_label_counts():
    assert label_entropy(torch.tensor([480, 160])) == pytest.approx(ENTROPY)
    assert label_entropy(torch.tensor([7, 0])) == 0
    assert label_entropy(torch.tensor([0, 0])) == 0


def norms(*values: float) -> list[float | None]:
    detector = DivergenceDetector()
    return [detector.add(value) for value in values]


def test_a_gradient_grown_a_hundredfold_three_times_diverges():
    assert norms(*[2.0] * 20, 300, 400, 500, 600)[-4:] == [None, None, 2.0, None]


def test_one_large_gradient_is_no_divergence():
    assert norms(1000, *[2.0] * 20, 300, 2, 300, 300, 2) == [None] * 26
    assert norms(1.0, 500, 500, 500) == [None] * 4


# --- the estimate of a step's memory


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
