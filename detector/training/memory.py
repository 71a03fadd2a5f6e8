"""The memory that a training step needs, estimated before training."""

import logging
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from detector.runtime.device import Compute, free_memory_gib

logger = logging.getLogger(__name__)

COPIES = 4  # of the weights: the weights, their gradients, and the two running means of AdamW
WORKSPACE_GIB = 0.3  # of convolutions and the backward pass, as measured for ResNet-18 and VGG16 on a CPU
SIDE, ROIS = 96, 8  # of the small inputs that are measured


def warn_if_memory_is_short(
    model: nn.Module, compute: Compute, images: int, max_hw: tuple[int, int], rois_per_image: int
) -> None:
    """Log the memory that a step with `images` images of at most `max_hw` needs, as a warning if less is free."""
    needed, free = step_gib(model, compute, images, max_hw, rois_per_image), free_memory_gib(compute.device)
    size = f"{images} images of at most {max_hw[0]}x{max_hw[1]} with {rois_per_image} RoIs each"
    if needed > free:
        logger.warning(
            "a step of %s needs about %.1f GiB, and %.1f GiB are free: reduce train.images_per_batch, "
            "data.max_side_px or roi.rois_per_image, or split the batch with train.accumulate", size, needed, free,
        )  # fmt: skip
    else:
        logger.info("a step of %s needs about %.1f GiB; %.1f GiB are free", size, needed, free)


def step_gib(model: nn.Module, compute: Compute, images: int, max_hw: tuple[int, int], rois_per_image: int) -> float:
    """GiB that a step needs for weights, gradients, optimizer state and what autograd keeps.

    What autograd keeps grows linearly with pixels and RoIs, so three small inputs determine both rates. On a CPU the
    estimate is within 5 % of the growth of the process, for ResNet-18, ResNet-50 and VGG16 with AdamW.
    """
    saved = partial(_saved_bytes, model.eval(), compute)
    base = saved(SIDE, ROIS)
    per_pixel = (saved(2 * SIDE, ROIS) - base) / (3 * SIDE**2)
    per_roi = (saved(SIDE, 2 * ROIS) - base) / ROIS
    weights = sum(parameter.nbytes for parameter in model.parameters())
    activations = images * (per_pixel * max_hw[0] * max_hw[1] + per_roi * rois_per_image)
    return (COPIES * weights + activations) / 2**30 + WORKSPACE_GIB


def _saved_bytes(model: nn.Module, compute: Compute, side: int, rois: int) -> int:
    """Bytes of the tensors that autograd keeps of one image (side, side) with this number of RoIs."""
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    box = torch.tensor([[0.0, 0.0, 0.0, side - 1, side - 1]]).repeat(rois, 1)
    with saved_tensors_hooks(count, lambda tensor: tensor):
        outputs = compute.forward(model, torch.zeros(1, 3, side, side, dtype=torch.uint8), box)
    del outputs
    return sum(sizes.values())
