import copy
import math
import os
import shutil
from dataclasses import replace

import pytest
import torch
from torch.amp import GradScaler

from detector.boxes import BoxCoder
from detector.builders.training import compile_for_training
from detector.errors import InputError
from detector.inference.prepare import prepare
from detector.models import build_model
from detector.runtime.device import Compute, set_deterministic
from detector.settings import Model, RoISampling
from detector.structures import RoiTargets
from detector.training.checkpoint import load_scaler
from detector.training.diagnostics import DivergenceDetector, NotFinite
from detector.training.engine import TrainingConfig, split_batch, train_step, training_steps
from detector.training.tracking import Means
from tests.helpers.batches import train_batch

COMPUTE = Compute(torch.device("cpu"), torch.float32)
CONFIG = TrainingConfig(RoISampling(), BoxCoder((0.1, 0.1, 0.2, 0.2)), seed=0, max_grad_norm=0.5)
IMAGES = torch.randint(0, 255, (4, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ROIS = torch.tensor([[0, 0, 0, 20, 20], [0, 5, 5, 40, 30], [2, 0, 0, 48, 32], [3, 9, 3, 30, 30.0]])  # none of image 1
TARGETS = RoiTargets.pack(ROIS, torch.tensor([1, 0, 2, 0]), torch.ones(4, 4))
BATCH = train_batch(IMAGES, TARGETS)


def test_a_batch_is_split_by_its_images():
    parts = list(split_batch(BATCH, 3))
    assert [len(images) for images, _ in parts] == [2, 2]  # no part is empty
    assert [part.rois[:, 0].tolist() for _, part in parts] == [[0, 0], [0, 1]]
    assert [part.labels.tolist() for _, part in parts] == [[1, 0], [2, 0]]
    [(images, whole)] = split_batch(BATCH, 1)
    assert torch.equal(images, IMAGES)
    assert torch.equal(whole.rois, ROIS)


@pytest.mark.parametrize("accumulate", [2])
def test_accumulated_gradients_are_those_of_the_whole_batch(accumulate):
    torch.manual_seed(0)
    start = build_model(Model(backbone="resnet18", norm="group", pool_size=2, hidden=8), num_classes=2)
    forwards = []

    def forward(*arguments):
        forwards.append(len(arguments[1]))
        return Compute.forward(COMPUTE, *arguments)

    def train(parts: int) -> tuple[dict, list[dict]]:
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        compute = copy.copy(COMPUTE)
        object.__setattr__(compute, "forward", forward)
        config = replace(CONFIG, accumulate=parts)
        values = [train_step(model, BATCH, optimizer, compute, config) for _ in range(3)]
        return model.state_dict(), values

    whole, whole_values = train(1)
    assert forwards == [4] * 3
    forwards.clear()
    parts, parts_values = train(accumulate)
    assert forwards == [4 // accumulate] * 3 * accumulate
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, atol=1e-5, rtol=1e-4)
    for whole_step, parts_step in zip(whole_values, parts_values, strict=True):
        for name, value in whole_step.items():
            assert float(parts_step[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6)


class TestFloat16:
    """On the CPU, with the scaler of the loss."""

    compute = Compute(torch.device("cpu"), torch.float16)

    def step(self, scale: float, overflow: bool = False, **more) -> tuple[dict, dict, dict, TrainingConfig]:
        """Values of a step, the weights before and after it, and its settings."""
        torch.manual_seed(0)
        model = build_model(Model(backbone="resnet18", norm="group", pool_size=2, hidden=8), num_classes=2)
        if overflow:
            model.head.fc7.weight.register_hook(lambda gradient: gradient / 0)
        before = copy.deepcopy(model.state_dict())
        config = replace(CONFIG, max_grad_norm=None, scaler=GradScaler("cpu", init_scale=scale), **more)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        values = train_step(model, BATCH, optimizer, self.compute, config)
        return values, before, model.state_dict(), config

    def test_a_step_is_that_of_float32_up_to_rounding(self):
        values, before, after, config = self.step(256.0, accumulate=2)
        torch.manual_seed(0)
        model = build_model(Model(backbone="resnet18", norm="group", pool_size=2, hidden=8), num_classes=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        plain = train_step(model, BATCH, optimizer, COMPUTE, replace(CONFIG, max_grad_norm=None))
        assert values["train/grad_norm"] == pytest.approx(plain["train/grad_norm"], rel=0.02)
        key = "cls_score.bias"
        torch.testing.assert_close(after[key], model.state_dict()[key], rtol=0.02, atol=1e-4)
        assert not torch.equal(after[key], before[key])
        assert (values["train/skipped"], config.scaler.get_scale()) == (0.0, 256.0)
        assert "train/skipped" not in plain

    def test_a_gradient_that_overflows_is_skipped_and_scaled_less(self):
        values, before, after, config = self.step(256.0, overflow=True)
        assert all(torch.equal(after[key], value) for key, value in before.items())
        assert (values["train/skipped"], config.scaler.get_scale()) == (1.0, 128.0)
        assert math.isnan(values["train/grad_norm"])
        assert math.isfinite(values["loss/train"])

    def test_one_that_overflows_without_scale_ends_the_run(self):
        with pytest.raises(NotFinite, match="gradient's norm (nan|inf)"):
            self.step(1.0, overflow=True)


def test_skipped_steps_have_no_norm_that_counts():
    means = Means()
    for norm in (2.0, math.nan, 4.0):
        means.add({"train/grad_norm": norm})
    assert means.take() == {"train/grad_norm": 3.0}
    detector = DivergenceDetector()
    assert [detector.add(norm) for norm in [1.0] * 20 + [math.nan] * 3 + [1.0]] == [None] * 24


def test_the_state_of_the_scaler_is_loaded_or_refused():
    saved = GradScaler("cpu", init_scale=512.0)
    saved.load_state_dict(saved.state_dict() | {"_growth_tracker": 7})
    scaler = GradScaler("cpu")
    load_scaler({"scaler": {}}, scaler)  # of a run in another precision
    load_scaler({}, scaler)
    assert scaler.get_scale() == 65536.0
    load_scaler({"scaler": saved.state_dict()}, scaler)
    assert scaler.state_dict() == saved.state_dict()
    for wrong in (3, {"scale": 0.0, "_growth_tracker": 0}, {"scale": math.nan, "_growth_tracker": 0}, {"scale": 2.0}):
        with pytest.raises(InputError, match="the state of the loss scaler in the checkpoint is invalid"):
            load_scaler({"scaler": wrong}, scaler)
    load_scaler({"scaler": 3}, GradScaler("cpu", enabled=False))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_steps_are_those_of_before():
    torch.manual_seed(0)
    plain = build_model(Model(backbone="alexnet", pool_size=2, hidden=8), num_classes=2)
    compiled = copy.deepcopy(plain)
    compile_for_training(compiled)
    assert compiled.backbone._compiled_call_impl is not None
    assert prepare(compiled, COMPUTE).backbone._compiled_call_impl is None
    batches = [BATCH, train_batch(torch.cat([IMAGES, IMAGES], dim=3), TARGETS)]  # another size
    steps = []
    for model in (plain, compiled):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        steps.append(
            [step.values for step in training_steps(model, batches, optimizer, lambda _: 1.0, CONFIG, COMPUTE)]
        )
    for one, other in zip(*steps, strict=True):
        for name in ("loss/train", "train/grad_norm"):
            assert other[name] == pytest.approx(one[name], rel=1e-4)
    torch.compiler.reset()


class TestDeterministic:
    @pytest.fixture(autouse=True)
    def _restored(self, monkeypatch):
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        yield
        set_deterministic(False)

    def test_it_applies_to_torch(self, monkeypatch):
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
        set_deterministic(False)
        assert not torch.are_deterministic_algorithms_enabled()
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        set_deterministic(True)
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
        with pytest.raises(InputError, match=r"CUBLAS_WORKSPACE_CONFIG=:0:0 must be :4096:8 or :16:8, or unset"):
            set_deterministic(True)

    def test_an_operation_without_such_a_form_is_named(self):
        model = build_model(Model(backbone="resnet18", norm="group", pool_size=2, hidden=8), num_classes=2)
        model.head.register_forward_pre_hook(lambda _, pooled: pooled[0].clone().put_(torch.tensor([0]), torch.ones(1)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        set_deterministic(True)
        with pytest.raises(InputError, match=r"no deterministic put_ on cpu: remove it, or change the setting"):
            next(training_steps(model, [BATCH], optimizer, lambda _: 1.0, CONFIG, COMPUTE))
        set_deterministic(False)
        assert next(training_steps(model, [BATCH], optimizer, lambda _: 1.0, CONFIG, COMPUTE)).iteration == 1
