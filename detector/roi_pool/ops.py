"""The layer as two torch operators, `fast_rcnn::roi_pool` and its backward, so that autograd, torch.compile
and torch.export see it whole. Their bodies are the reference, which serves every device without own kernels.
"""

from typing import Any

import torch
from torch import Tensor

from detector.roi_pool import reference


@torch.library.custom_op("fast_rcnn::roi_pool", mutates_args=())
def roi_pool(
    features: Tensor,
    rois: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    with_argmax: bool,
) -> tuple[Tensor, Tensor]:
    """Pooled values (R,C,ph,pw) and, if `with_argmax`, the cell index of each (else an empty tensor)."""
    reference.check_rois(rois, len(features))
    pooled, argmax = reference.forward(features, rois, (pooled_height, pooled_width), spatial_scale)
    return pooled, argmax if with_argmax else argmax.new_empty(0)


@torch.library.custom_op("fast_rcnn::roi_pool_backward", mutates_args=())
def roi_pool_backward(
    grad: Tensor, rois: Tensor, argmax: Tensor, batch_size: int, height: int, width: int
) -> Tensor:
    """Gradient for the features (B,C,H,W) from that of the pooled values (R,C,ph,pw)."""
    return reference.backward(grad, rois, argmax, batch_size, height, width)


@roi_pool.register_fake
def _(
    features: Tensor,
    rois: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    with_argmax: bool,
) -> tuple[Tensor, Tensor]:
    _, channels, height, width = features.shape
    shape = (rois.shape[0], pooled_height, pooled_width, channels)
    index = reference.argmax_dtype(height, width)
    pooled = features.new_empty(shape).permute(0, 3, 1, 2)
    return pooled, torch.empty_like(pooled, dtype=index) if with_argmax else pooled.new_empty(0, dtype=index)


@roi_pool_backward.register_fake
def _(grad: Tensor, rois: Tensor, argmax: Tensor, batch_size: int, height: int, width: int) -> Tensor:
    return grad.new_empty((batch_size, height, width, grad.shape[1])).permute(0, 3, 1, 2)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, rois = inputs[:2]
    _, argmax = output
    ctx.mark_non_differentiable(argmax)
    ctx.save_for_backward(rois, argmax)
    ctx.batch_size, _, ctx.height, ctx.width = features.shape


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    rois, argmax = ctx.saved_tensors
    grad_features = roi_pool_backward(grad, rois, argmax, ctx.batch_size, ctx.height, ctx.width)
    return grad_features, None, None, None, None, None


roi_pool.register_autograd(_backward, setup_context=_save_for_backward)
