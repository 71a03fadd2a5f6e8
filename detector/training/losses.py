"""The multi-task loss (Fast R-CNN, section 2.3, equations 1 to 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.structures import RoiTargets


def multi_task_loss(
    class_logits: Tensor, deltas: Tensor, targets: RoiTargets, count: float | None = None
) -> dict[str, Tensor]:
    """Losses `cls` and `box`, each a scalar divided by the number of RoIs, with equal weight (lambda = 1).

    `count` is that number if these RoIs are only a part of the batch.

    class_logits (R, K+1), deltas (R, K, 4). `cls` is the cross entropy over all RoIs. `box` is the smooth L1
    distance, summed over the four deltas, of the foreground RoIs in the deltas of their own class. Both are 0,
    and connected to the graph, if there is no RoI to learn from.
    """
    count = max(len(targets.labels) if count is None else count, 1)
    cls = F.cross_entropy(class_logits.float(), targets.labels, reduction="sum") / count
    foreground = torch.nonzero(targets.labels > 0).flatten()
    predicted = deltas[foreground, targets.labels[foreground] - 1].float()
    box = F.smooth_l1_loss(predicted, targets.deltas[foreground], reduction="sum", beta=1.0) / count
    return {"cls": cls, "box": box}


@torch.no_grad()
def accuracy(class_logits: Tensor, targets: RoiTargets) -> dict[str, Tensor]:
    """The accuracies `foreground_accuracy` and `background_accuracy`, and the `foreground_fraction` of the RoIs.

    An accuracy over no RoI is NaN.
    """
    correct = class_logits.argmax(dim=1) == targets.labels
    foreground = targets.labels > 0
    return {
        "foreground_accuracy": correct[foreground].float().mean(),
        "background_accuracy": correct[~foreground].float().mean(),
        "foreground_fraction": foreground.float().mean(),
    }
