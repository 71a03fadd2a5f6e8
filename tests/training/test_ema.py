import pytest
import torch
from torch import nn

from detector.training.optimizers import averaged_model


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
