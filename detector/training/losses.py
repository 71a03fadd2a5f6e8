"""The multi-task loss (Fast R-CNN, section 2.3, equations 1 to 3).

Which RoIs are foreground is known on the device only. Sums are therefore masked: selecting rows would read back their
number, which waits for the whole forward pass.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.boxes import BoxCoder, areas
from detector.schema import default
from detector.settings import Loss, RoISampling
from detector.structures import RoiTargets


@dataclass(frozen=True)
class LossConfig:
    """The losses, and the values they depend on."""

    settings: Loss = field(default_factory=Loss)
    coder: BoxCoder = field(default_factory=lambda: BoxCoder(default(RoISampling, "delta_std")))  # `iou_loss` decodes
    class_weights: tuple[float, ...] | None = None  # of background and the K classes
    delta_std: tuple[tuple[float, ...], ...] | None = None  # K x 4: `FastRCNN.delta_std`


PAPER = LossConfig()
EPS = 1e-7  # of boxes without area


def multi_task_loss(
    class_logits: Tensor, deltas: Tensor, targets: RoiTargets, count: float | None = None, config: LossConfig = PAPER
) -> dict[str, Tensor]:
    """Losses `cls` and `box`, each a scalar divided by the number of RoIs; `box` includes its weight (lambda).

    class_logits (R, K+1), deltas (R, K, 4). `count` replaces the number of RoIs if these are only a part of the batch.
    Without any RoI, both losses are 0 and connected to the graph.
    """
    count = max(len(targets.labels) if count is None else count, 1)
    cls, box = roi_losses(class_logits, deltas, targets, config)
    return {"cls": cls.sum() / count, "box": box.sum() / count}


def roi_losses(
    class_logits: Tensor, deltas: Tensor, targets: RoiTargets, config: LossConfig = PAPER
) -> tuple[Tensor, Tensor]:
    """The classification loss (R,) of each RoI, and its box loss (R,): 0 for background.

    The box loss is the distance between the predicted deltas of the RoI's class and their targets, summed over the four
    deltas, or `iou_loss` of the decoded boxes.
    """
    settings, labels = config.settings, targets.labels
    cls = F.cross_entropy(class_logits.float(), labels, reduction="none")
    if settings.cls == "focal":  # Lin et al. 2017, equation 4, with a softmax
        rest = -torch.expm1(-cls)  # 1 - probability of the label; at 0 its root would have no gradient
        cls = rest.clamp(min=1e-6) ** settings.focal_gamma * cls
    if config.class_weights is not None:
        cls = cls * torch.tensor(config.class_weights).to(cls.device, non_blocking=True)[labels]
    predicted, wanted = of_label(deltas, labels).float(), targets.deltas
    if settings.box in ("giou", "diou", "ciou"):
        rois = targets.rois[:, 1:]
        boxes, gt_boxes = (config.coder.decode(each[:, None], rois)[:, 0] for each in (predicted, wanted))
        distance = iou_loss(boxes, gt_boxes, settings.box)
    elif config.delta_std is not None:
        # The mean of the class is added to both, so it cancels out.
        scale = torch.tensor(config.delta_std).to(cls.device, non_blocking=True)[labels - 1]
        distance = _distance(predicted / scale, wanted / scale, settings)
    else:
        distance = _distance(predicted, wanted, settings)
    return cls, torch.where(labels > 0, distance * settings.box_weight, 0.0)


def of_label(deltas: Tensor, labels: Tensor) -> Tensor:
    """The deltas (R, 4) of each RoI's class, from deltas (R, K, 4); 0 for background."""
    classes = torch.arange(1, deltas.shape[1] + 1, device=deltas.device)
    return torch.where((labels[:, None] == classes)[:, :, None], deltas, 0.0).sum(dim=1)


def iou_loss(boxes: Tensor, gt_boxes: Tensor, kind: str) -> Tensor:
    """1 - GIoU, DIoU or CIoU (N,) of each pair of boxes (N, 4) and gt_boxes (N, 4): Rezatofighi et al. 2019, algorithm
    1; Zheng et al. 2020, equations 7 and 10.

    torchvision's losses are not used because they read back the number of overlapping pairs.
    """
    inner = (torch.minimum(boxes[:, 2:], gt_boxes[:, 2:]) - torch.maximum(boxes[:, :2], gt_boxes[:, :2])).relu()
    outer = torch.maximum(boxes[:, 2:], gt_boxes[:, 2:]) - torch.minimum(boxes[:, :2], gt_boxes[:, :2])
    intersection = inner[:, 0] * inner[:, 1]  # the gradient of prod() reads back whether a factor is 0
    union = areas(boxes) + areas(gt_boxes) - intersection
    loss = 1 - intersection / (union + EPS)
    if kind == "giou":
        hull = outer[:, 0] * outer[:, 1]
        return loss + (hull - union) / (hull + EPS)
    apart = (boxes[:, :2] + boxes[:, 2:] - gt_boxes[:, :2] - gt_boxes[:, 2:]) / 2  # of the centres
    loss = loss + apart.square().sum(dim=1) / (outer.square().sum(dim=1) + EPS)
    if kind == "diou":
        return loss
    angles = [torch.atan((x2 - x1) / (y2 - y1 + EPS)) for x1, y1, x2, y2 in (boxes.T, gt_boxes.T)]
    aspect = 4 / math.pi**2 * (angles[1] - angles[0]).square()
    weight = aspect / (1 - intersection / (union + EPS) + aspect + EPS)
    return loss + weight.detach() * aspect


def _distance(predicted: Tensor, wanted: Tensor, settings: Loss) -> Tensor:
    """The distance (F,) of deltas (F, 4)."""
    if settings.box == "l1":
        return F.l1_loss(predicted, wanted, reduction="none").sum(dim=1)
    return F.smooth_l1_loss(predicted, wanted, reduction="none", beta=settings.beta).sum(dim=1)


@torch.no_grad()
def accuracy(class_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The accuracies `foreground_accuracy` and `background_accuracy`, and the `foreground_fraction` of the RoIs.

    An accuracy over no RoIs is NaN.
    """
    correct = class_logits.argmax(dim=1) == labels
    foreground = labels > 0
    return {
        "foreground_accuracy": (correct & foreground).sum() / foreground.sum(),
        "background_accuracy": (correct & ~foreground).sum() / (~foreground).sum(),
        "foreground_fraction": foreground.float().mean(),
    }
