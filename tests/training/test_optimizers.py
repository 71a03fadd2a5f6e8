import pytest
import torch
from torch import nn

from detector.allowlist import instantiate
from detector.errors import InputError
from detector.models.backbones import build_backbone
from detector.settings import Sgd
from detector.training.optimizers import averaged_model, default_rate, parameter_groups
from detector.training.schedules import Cosine, Step


def network() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model[2].weight.requires_grad_(False)
    return model


def rates(**values: float) -> Sgd:
    return Sgd(_target_="torch.optim.SGD", lr=0.1, weight_decay=0.5, **values)


def test_biases_have_a_rate_of_their_own_and_do_not_decay():
    weights, biases = parameter_groups(network(), rates(bias_lr_factor=2.0))
    assert (weights["lr"], weights["weight_decay"], biases["lr"], biases["weight_decay"]) == (0.1, 0.5, 0.2, 0.0)
    assert [p.shape for p in weights["params"]] == [(3, 2), (3,)]
    assert [p.shape for p in biases["params"]] == [(3,), (3,), (1,)]
    optimizer = torch.optim.SGD([weights, biases], lr=9.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]


def test_the_decay_of_biases_and_norm_layers_is_a_setting():
    _, biases = parameter_groups(network(), rates(bias_decay_factor=1.0))
    assert biases["weight_decay"] == 0.5
    weights, biases, norms = parameter_groups(network(), rates(norm_decay_factor=0.1))
    assert [group["weight_decay"] for group in (weights, biases, norms)] == [0.5, 0.0, 0.05]
    assert [[p.shape for p in group["params"]] for group in (weights, norms)] == [[(3, 2)], [(3,)]]
    assert len(biases["params"]) == 3


def test_convolutions_of_a_feature_pyramid_are_not_norm_layers():
    backbone = build_backbone("resnet18_fpn", "batch")
    *_, norms = parameter_groups(backbone, rates(norm_decay_factor=0.1))
    layers = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [id(parameter) for parameter in norms["params"]] == [id(layer.weight) for layer in layers]


@pytest.mark.parametrize(
    ("optimizer", "images_per_batch", "pretrained", "rate"),
    [
        ("torch.optim.SGD", 2, True, 0.001),  # the paper's
        ("torch.optim.SGD", 4, False, 0.02),
        ("torch.optim.AdamW", 4, False, 0.0003),
        ("torch.optim.AdamW", 16, False, 0.0006),
        ("torch.optim.AdamW", 4, True, 0.0001),
    ],
)
def test_default_rates(optimizer, images_per_batch, pretrained, rate):
    assert default_rate(optimizer, images_per_batch, pretrained) == pytest.approx(rate)


def test_other_optimizers_need_a_rate():
    with pytest.raises(InputError, match=r"optimizer\.lr: torch\.optim\.Adagrad has no default rate"):
        default_rate("torch.optim.Adagrad", 4, False)


def test_the_paper_s_schedule():
    schedule = Step(40_000, steps=[0.75], gamma=0.1, warmup_iterations=0, warmup_factor=0.1)
    assert [schedule(i) for i in (0, 29_999, 30_000, 39_999)] == pytest.approx([1, 1, 0.1, 0.1])


@pytest.mark.parametrize("gamma", ["abc", None, -5, 0, float("nan"), float("inf")])
def test_an_invalid_drop_is_an_error_before_the_first_step(gamma):
    settings = {"_target_": "detector.training.schedules.Step", "steps": [], "gamma": gamma}
    with pytest.raises(InputError, match=f"gamma={gamma} must be a number above 0"):
        instantiate(settings, ("detector.",), iterations=10, warmup_iterations=0, warmup_factor=0.1)


def test_warm_up_is_linear():
    schedule = Step(100, steps=[0.5, 0.9], gamma=0.5, warmup_iterations=10, warmup_factor=0.2)
    assert [schedule(i) for i in (0, 5, 10, 50, 90)] == pytest.approx([0.2, 0.6, 1, 0.5, 0.25])


def test_cosine_ends_near_0():
    schedule = Cosine(100, warmup_iterations=10, warmup_factor=0.0)
    assert [schedule(i) for i in (0, 50, 100)] == pytest.approx([0, 0.5, 0], abs=1e-9)
    assert 0 < schedule(99) < 0.001


# --- the moving average of the weights


def test_the_average_of_literal_numbers():
    model = nn.Linear(1, 1, bias=False)
    averaged = averaged_model(model, decay=0.15)
    values = []
    for weight in (1.0, 2.0, 4.0):
        nn.init.constant_(model.weight, weight)
        averaged.update_parameters(model)
        values.append(averaged.module.weight.item())
    # the first is taken as it is; then the decay is the less of 0.15 and 2/11, 3/12
    assert values == pytest.approx([1.0, 0.15 * 1 + 0.85 * 2, 0.15 * 1.85 + 0.85 * 4])


def test_the_decay_grows_over_the_first_updates():
    model = nn.Linear(1, 1, bias=False)
    averaged = averaged_model(model, decay=0.99)
    for weight in (1.0, 0.0, 0.0):
        nn.init.constant_(model.weight, weight)
        averaged.update_parameters(model)
    assert averaged.module.weight.item() == pytest.approx(2 / 11 * 3 / 12)


def test_buffers_are_averaged_and_counters_copied():
    model = nn.BatchNorm1d(2)
    averaged = averaged_model(model, decay=0.5)
    averaged.update_parameters(model)
    model.running_mean.fill_(2.0)
    model.num_batches_tracked.fill_(7)
    averaged.update_parameters(model)
    assert averaged.module.running_mean.tolist() == pytest.approx([2 * (1 - 2 / 11)] * 2)
    assert averaged.module.num_batches_tracked.item() == 7


def test_frozen_weights_stay_bitwise_identical():
    model = nn.Linear(64, 64)
    before = model.weight.clone()
    averaged = averaged_model(model, decay=0.9)
    for _ in range(50):
        averaged.update_parameters(model)
    assert torch.equal(averaged.module.weight, before)
