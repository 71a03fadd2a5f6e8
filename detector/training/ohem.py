"""Online hard example mining (Shrivastava et al. 2016): train on the RoIs that the network gets most wrong."""

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from detector.boxes import BoxCoder
from detector.runtime.device import Compute
from detector.settings import RoISampling
from detector.structures import Batch, RoiTargets
from detector.training.losses import LossConfig, roi_losses
from detector.training.targets import make_targets

NMS_IOU = 0.7  # of RoIs with nearly the same box, the loss counts once (section 4.2)


def all_targets(batch: Batch, sampling: RoISampling, coder: BoxCoder, seed: int) -> RoiTargets:
    """Every RoI of the batch that is foreground or background by the thresholds of `sampling`, with its targets."""
    everything = sampling.with_values(rois_per_image=100_000, foreground_fraction=1.0, balance_objects=False)
    return make_targets(batch, everything, coder, seed)


@torch.no_grad()
def hardest_targets(
    model: nn.Module, images: Tensor, targets: RoiTargets, rois_per_image: int, compute: Compute, loss: LossConfig
) -> RoiTargets:
    """Of these RoIs the `rois_per_image` of each image with the highest loss, in a forward pass without gradient."""
    model.train()
    targets = targets.to(compute.device)
    class_logits, deltas = compute.forward(model, images, targets.rois)
    each = sum(roi_losses(class_logits, deltas, targets, loss), torch.zeros(()))
    order = batched_nms(targets.rois[:, 1:].double(), each.double(), targets.rois[:, 0].long(), NMS_IOU)
    keep = torch.cat([order[targets.rois[order, 0] == image][:rois_per_image] for image in range(len(images))])
    return RoiTargets(targets.rois[keep], targets.labels[keep], targets.deltas[keep]).to(torch.device("cpu"))
