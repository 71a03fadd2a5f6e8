import math
from functools import partial

import pytest
import torch
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from detector.boxes import box_iou
from detector.settings import Loss
from detector.training.losses import LossConfig, accuracy, iou_loss, multi_task_loss, roi_losses
from detector.training.targets import RoiTargets


def targets(labels: list[int], deltas: list[list[float]]) -> RoiTargets:
    return RoiTargets.pack(
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
def test_without_foreground_the_box_loss_is_0_in_the_graph(labels):
    logits = torch.zeros(len(labels), 3, requires_grad=True)
    deltas = torch.ones(len(labels), 2, 4, requires_grad=True)
    losses = multi_task_loss(logits, deltas, targets(labels, [[0.0] * 4] * len(labels)))
    assert losses["box"].item() == 0
    losses["box"].backward()
    assert not deltas.grad.any()


LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
OFF = torch.tensor([[[0.0] * 4] * 2, [[1.0, 0.5, 0.0, 0.0]] * 2, [[0.0, 0.0, 0.0, 2.0]] * 2])


def losses_of(loss: Loss, class_weights: tuple | None = None) -> dict[str, float]:
    """Of one background RoI and one RoI of each class, all boxes 10 pixels wide and high."""
    rois = torch.tensor([[0, 0, 0, 10.0, 10.0]] * 3)
    wanted = RoiTargets.pack(rois, torch.tensor([0, 1, 2]), torch.zeros(3, 4))
    losses = multi_task_loss(LOGITS, OFF, wanted, config=LossConfig(loss, class_weights=class_weights))
    return {name: value.item() for name, value in losses.items()}


def test_literal_values_of_each_loss():
    probabilities = [math.exp(2) / (math.exp(2) + 2), math.exp(3) / (math.exp(3) + 2), 1 / 3]
    entropies = [-math.log(p) for p in probabilities]
    assert losses_of(Loss())["cls"] == pytest.approx(sum(entropies) / 3)
    focal = sum((1 - p) ** 2 * e for p, e in zip(probabilities, entropies, strict=True)) / 3
    assert losses_of(Loss(cls="focal"))["cls"] == pytest.approx(focal)
    assert losses_of(Loss(cls="focal", focal_gamma=0.0))["cls"] == pytest.approx(sum(entropies) / 3)
    weighted = (0.5 * entropies[0] + entropies[1] + 4 * entropies[2]) / 3
    assert losses_of(Loss(), (0.5, 1.0, 4.0))["cls"] == pytest.approx(weighted)
    assert losses_of(Loss())["box"] == pytest.approx((0.5 + 0.125 + 1.5) / 3)
    assert losses_of(Loss(beta=0.5))["box"] == pytest.approx((0.75 + 0.25 + 1.75) / 3)
    assert losses_of(Loss(box="l1"))["box"] == pytest.approx((1.0 + 0.5 + 2.0) / 3)
    assert losses_of(Loss(box="l1", box_weight=0.5))["box"] == pytest.approx((1.0 + 0.5 + 2.0) / 6)
    assert losses_of(Loss(box_weight=0.0))["box"] == 0


def test_giou_is_of_the_decoded_boxes():
    """Deltas are in units of 0.1 of the box: a shift by (1, 0.5) pixels. And a height of exp(0.4) times 10."""
    shifted = 9 * 9.5 / (200 - 9 * 9.5) - (11 * 10.5 - (200 - 9 * 9.5)) / (11 * 10.5)
    taller = 1 / math.exp(0.4)
    assert losses_of(Loss(box="giou"))["box"] == pytest.approx((1 - shifted + 1 - taller) / 3, rel=1e-5)
    overlap, apart = 9 * 9.5 / (200 - 9 * 9.5), (1 + 0.25) / (11**2 + 10.5**2)  # centres, and the diagonal around both
    assert losses_of(Loss(box="diou"))["box"] == pytest.approx((1 - overlap + apart + 1 - taller) / 3, rel=1e-5)
    angle = 4 / math.pi**2 * (math.pi / 4 - math.atan(taller)) ** 2
    aspect = angle**2 / (1 - taller + angle)
    assert losses_of(Loss(box="ciou"))["box"] == pytest.approx(
        (1 - overlap + apart + 1 - taller + aspect) / 3, rel=1e-5
    )


@pytest.mark.parametrize(("loss", "paper"), [("smooth_l1", torch.nn.SmoothL1Loss), ("l1", torch.nn.L1Loss)])
def test_deviations_of_each_class_normalise_targets(loss, paper):
    """The network's outputs are output * std + mean; the paper's loss compares the output and (target - mean) / std."""
    mean, std = torch.randn(2, 4), torch.rand(2, 4) + 0.5
    outputs, wanted = torch.randn(3, 2, 4), torch.randn(3, 4)
    config = LossConfig(Loss(box=loss), delta_std=tuple(map(tuple, std.tolist())))
    labels = torch.tensor([2, 0, 1])
    _, box = roi_losses(LOGITS, outputs * std + mean, RoiTargets.pack(torch.zeros(3, 5), labels, wanted), config)
    first = paper(reduction="sum")(outputs[0, 1], (wanted[0] - mean[1]) / std[1])
    last = paper(reduction="sum")(outputs[2, 0], (wanted[2] - mean[0]) / std[0])
    assert box.tolist() == pytest.approx([first.item(), 0, last.item()], rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [("giou", generalized_box_iou_loss), ("diou", distance_box_iou_loss), ("ciou", complete_box_iou_loss)],
)
def test_iou_losses_and_their_gradients_are_those_of_torchvision(kind, theirs):
    corners = torch.rand(200, 2, 2, generator=torch.Generator().manual_seed(0)) * 50
    boxes, others = (torch.cat([xy, xy + 5 + xy.flip(1)], dim=1) for xy in corners.unbind(1))
    assert 0 < sum(bool((box_iou(a[None], b[None]) == 0).all()) for a, b in zip(boxes, others, strict=True)) < 200
    results = []
    for function in (partial(iou_loss, kind=kind), partial(theirs, reduction="none")):
        inputs = boxes.clone().requires_grad_()
        values = function(inputs, others)
        values.square().sum().backward()
        results.append((values.detach(), inputs.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_boxes_without_area_have_a_finite_loss_and_gradient(kind):
    boxes = torch.tensor([[3.0, 3, 3, 3], [0, 0, 5, 0], [0, 0, 4, 4]], requires_grad=True)
    loss = iou_loss(boxes, torch.tensor([[3.0, 3, 3, 3], [0, 0, 5, 0], [9, 9, 9, 9]]), kind)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert boxes.grad.isfinite().all()


def test_losses_of_rois_add_up_to_the_loss():
    rois = torch.tensor([[0, 0, 0, 10.0, 10.0]] * 3)
    wanted = RoiTargets.pack(rois, torch.tensor([0, 1, 2]), torch.zeros(3, 4))
    cls, box = roi_losses(LOGITS, OFF, wanted)
    assert (cls.shape, box.shape, box[0].item()) == ((3,), (3,), 0.0)
    assert cls.mean().item() == pytest.approx(losses_of(Loss())["cls"])


def test_bfloat16_answers_are_scored_in_float32():
    losses = multi_task_loss(torch.zeros(1, 3).bfloat16(), torch.zeros(1, 2, 4).bfloat16(), targets([1], [[1.0] * 4]))
    assert {value.dtype for value in losses.values()} == {torch.float32}


def test_accuracy():
    logits = torch.tensor([[5.0, 0.0], [0.0, 5.0], [0.0, 5.0], [5.0, 0.0]])
    measured = accuracy(logits, torch.tensor([0, 0, 1, 0]))
    assert measured["foreground_accuracy"].item() == 1
    assert measured["background_accuracy"].item() == pytest.approx(2 / 3)
    assert measured["foreground_fraction"].item() == 0.25
    assert accuracy(logits[:1], torch.tensor([0]))["foreground_accuracy"].isnan()
