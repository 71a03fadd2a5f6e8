"""The multi-task loss (Fast R-CNN, section 2.3, equations 1 to 3)."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from detector.boxes import BoxCoder
from detector.schema import default
from detector.settings import Loss, RoISampling
from detector.structures import RoiTargets


@dataclass(frozen=True)
class LossConfig:
    """Which losses, and what they need to know."""

    settings: Loss = field(default_factory=Loss)
    coder: BoxCoder = field(default_factory=lambda: BoxCoder(default(RoISampling, "delta_std")))  # giou decodes boxes
    class_weights: tuple[float, ...] | None = None  # of background and the K classes
    delta_std: tuple[tuple[float, ...], ...] | None = None  # K x 4: `FastRCNN.delta_std`


PAPER = LossConfig()


def multi_task_loss(
    class_logits: Tensor, deltas: Tensor, targets: RoiTargets, count: float | None = None, config: LossConfig = PAPER
) -> dict[str, Tensor]:
    """Losses `cls` and `box`, each a scalar divided by the number of RoIs; `box` has its weight (lambda) already.

    `count` is that number if these RoIs are only a part of the batch.

    class_logits (R, K+1), deltas (R, K, 4). Both losses are 0, and connected to the graph, if there is no RoI to learn
    from.
    """
    count = max(len(targets.labels) if count is None else count, 1)
    cls, box = roi_losses(class_logits, deltas, targets, config)
    return {"cls": cls.sum() / count, "box": box.sum() / count}


def roi_losses(
    class_logits: Tensor, deltas: Tensor, targets: RoiTargets, config: LossConfig = PAPER
) -> tuple[Tensor, Tensor]:
    """The classification loss (R,) of each RoI, and its box loss (R,): 0 for background.

    The box loss is the distance, summed over the four deltas, in the deltas of the RoI's own class, or 1 - GIoU of the
    decoded boxes (Rezatofighi et al. 2019).
    """
    settings, labels = config.settings, targets.labels
    cls = F.cross_entropy(class_logits.float(), labels, reduction="none")
    if settings.cls == "focal":  # Lin et al. 2017, equation 4, with a softmax
        rest = -torch.expm1(-cls)  # 1 - probability of the label; at 0 its root would have no gradient
        cls = rest.clamp(min=1e-6) ** settings.focal_gamma * cls
    if config.class_weights is not None:
        cls = cls * cls.new_tensor(config.class_weights)[labels]
    foreground = torch.nonzero(labels > 0).flatten()
    predicted, wanted = deltas[foreground, labels[foreground] - 1].float(), targets.deltas[foreground]
    if settings.box == "giou":
        rois = targets.rois[foreground, 1:]
        boxes, gt_boxes = (config.coder.decode(each[:, None], rois)[:, 0] for each in (predicted, wanted))
        distance = generalized_box_iou_loss(boxes, gt_boxes, reduction="none")
    elif config.delta_std is not None:
        # The mean of the class is in both, so that it makes no difference.
        scale = predicted.new_tensor(config.delta_std)[labels[foreground] - 1]
        distance = _distance(predicted / scale, wanted / scale, settings)
    else:
        distance = _distance(predicted, wanted, settings)
    return cls, torch.zeros_like(cls).index_put((foreground,), distance * settings.box_weight)


def _distance(predicted: Tensor, wanted: Tensor, settings: Loss) -> Tensor:
    """The distance (F,) of deltas (F, 4)."""
    if settings.box == "l1":
        return F.l1_loss(predicted, wanted, reduction="none").sum(dim=1)
    return F.smooth_l1_loss(predicted, wanted, reduction="none", beta=settings.beta).sum(dim=1)


@torch.no_grad()
def accuracy(class_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The accuracies `foreground_accuracy` and `background_accuracy`, and the `foreground_fraction` of the RoIs.

    An accuracy over no RoI is NaN.
    """
    correct = class_logits.argmax(dim=1) == labels
    foreground = labels > 0
    return {
        "foreground_accuracy": correct[foreground].float().mean(),
        "background_accuracy": correct[~foreground].float().mean(),
        "foreground_fraction": foreground.float().mean(),
    }
