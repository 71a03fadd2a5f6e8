"""Online hard example mining (Shrivastava et al. 2016): train on the RoIs with the highest loss."""

from dataclasses import replace

import torch
from torch import nn
from torchvision.ops import batched_nms

from detector.boxes import BoxCoder
from detector.runtime.device import Compute
from detector.settings import RoISampling
from detector.structures import Batch, RoiTargets, TrainBatch
from detector.training.losses import LossConfig, roi_losses
from detector.training.targets import make_targets

NMS_IOU = 0.7  # RoIs with nearly the same box count once (section 4.2)


def all_targets(batch: Batch, sampling: RoISampling, coder: BoxCoder, seed: int) -> RoiTargets:
    """Every RoI of the batch that is foreground or background by the thresholds of `sampling`, with its targets."""
    everything = sampling.with_values(rois_per_image=100_000, foreground_fraction=1.0, balance_objects=False)
    return make_targets(batch, everything, coder, seed)


@torch.no_grad()
def with_hardest_rois(
    model: nn.Module, batch: TrainBatch, rois_per_image: int, compute: Compute, loss: LossConfig
) -> TrainBatch:
    """The batch with the `rois_per_image` RoIs of each image that have the highest loss, after a forward pass without
    gradient.

    This reads from the device how many RoIs non-maximum suppression keeps.
    """
    model.train()
    targets = batch.targets
    class_logits, deltas = compute.forward(model, batch.images, targets.rois)
    cls, box = roi_losses(class_logits, deltas, targets, loss)
    image = targets.rois[:, 0]
    precise = torch.float32 if compute.device.type == "mps" else torch.float64  # Apple GPUs have no float64
    order = batched_nms(targets.rois[:, 1:].to(precise), (cls + box).to(precise), image.long(), NMS_IOU)
    hardest = [order[image[order] == index][:rois_per_image] for index in range(len(batch.images))]
    packed = targets.packed[torch.cat(hardest)]
    return replace(batch, targets=RoiTargets(packed), roi_counts=[len(rows) for rows in hardest])
