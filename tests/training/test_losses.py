import math

import pytest
import torch

from detector.training.losses import accuracy, multi_task_loss
from detector.training.targets import RoiTargets


def targets(labels: list[int], deltas: list[list[float]]) -> RoiTargets:
    return RoiTargets(
        torch.zeros(len(labels), 5), torch.tensor(labels, dtype=torch.int64), torch.tensor(deltas).reshape(-1, 4)
    )


def test_literal_losses():
    """Two RoIs, two classes: a uniform guess costs log 3 each; deltas off by 0.5 and by 3 cost 0.125 and 2.5."""
    deltas = torch.zeros(2, 2, 4)
    deltas[0, 1] = torch.tensor([0.5, 3.0, 0.0, 0.0])  # of class 2
    deltas[0, 0] = 77.0  # of another class: does not count
    deltas[1] = 77.0  # of a background RoI: does not count
    losses = multi_task_loss(torch.zeros(2, 3), deltas, targets([2, 0], [[0.0] * 4, [0.0] * 4]))
    assert losses["cls"].item() == pytest.approx(math.log(3))
    assert losses["box"].item() == pytest.approx((0.125 + 2.5) / 2)


@pytest.mark.parametrize("labels", [[], [0, 0]])
def test_without_foreground_the_box_loss_is_0_and_still_part_of_the_graph(labels):
    logits = torch.zeros(len(labels), 3, requires_grad=True)
    deltas = torch.ones(len(labels), 2, 4, requires_grad=True)
    losses = multi_task_loss(logits, deltas, targets(labels, [[0.0] * 4] * len(labels)))
    assert losses["box"].item() == 0
    losses["box"].backward()
    assert not deltas.grad.any()


def test_bfloat16_answers_are_scored_in_float32():
    losses = multi_task_loss(torch.zeros(1, 3).bfloat16(), torch.zeros(1, 2, 4).bfloat16(), targets([1], [[1.0] * 4]))
    assert {value.dtype for value in losses.values()} == {torch.float32}


def test_accuracy():
    logits = torch.tensor([[5.0, 0.0], [0.0, 5.0], [0.0, 5.0], [5.0, 0.0]])
    measured = accuracy(logits, targets([0, 0, 1, 0], [[0.0] * 4] * 4))
    assert measured["foreground_accuracy"].item() == 1
    assert measured["background_accuracy"].item() == pytest.approx(2 / 3)
    assert measured["foreground_fraction"].item() == 0.25
    assert accuracy(logits[:1], targets([0], [[0.0] * 4]))["foreground_accuracy"].isnan()
