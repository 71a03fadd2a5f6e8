import copy
from dataclasses import replace

import pytest
import torch

from detector.boxes import BoxCoder
from detector.models import build_model
from detector.runtime.device import Compute
from detector.settings import Model, RoISampling
from detector.structures import RoiTargets
from detector.training.engine import TrainingConfig, split_batch, train_step

COMPUTE = Compute(torch.device("cpu"), torch.float32)
CONFIG = TrainingConfig(RoISampling(), BoxCoder((0.1, 0.1, 0.2, 0.2)), seed=0, max_grad_norm=0.5)
IMAGES = torch.randint(0, 255, (4, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ROIS = torch.tensor([[0, 0, 0, 20, 20], [0, 5, 5, 40, 30], [2, 0, 0, 48, 32], [3, 9, 3, 30, 30.0]])  # none of image 1
TARGETS = RoiTargets(ROIS, torch.tensor([1, 0, 2, 0]), torch.ones(4, 4))


def test_a_batch_is_split_by_its_images():
    parts = list(split_batch(IMAGES, TARGETS, 3))
    assert [len(images) for images, _ in parts] == [2, 2]  # no part is empty
    assert [part.rois[:, 0].tolist() for _, part in parts] == [[0, 0], [0, 1]]
    assert [part.labels.tolist() for _, part in parts] == [[1, 0], [2, 0]]
    [(images, whole)] = split_batch(IMAGES, TARGETS, 1)
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
        values = [train_step(model, IMAGES, TARGETS, optimizer, compute, config) for _ in range(3)]
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
