"""RoI pooling as a torch layer: the public function and module, with argument checks, and the operators behind them.

`fast_rcnn::roi_pool` and its backward are operators of torch, so that autograd, torch.compile and torch.export treat
each as one unit. Devices without their own kernels use the reference implementation.

No autocast rule is registered, on purpose: the operators use each tensor in its own dtype, features in the precision
of the backbone (a maximum is exact in any) and RoIs in full precision. A rule would also cast the RoIs, and bfloat16
represents pixels above 256 only as even numbers.
"""

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detector.roi_pool import reference


def roi_pool(
    features: Tensor, rois: Tensor | Sequence[Tensor], output_size: int | tuple[int, int], spatial_scale: float = 1.0
) -> Tensor:
    """Max-pool each region of interest to a fixed size (Fast R-CNN, section 2.1).

    The corners of a RoI are multiplied by `spatial_scale` and rounded (halves away from zero) to cells. Both corner
    cells are included, so a RoI is x2 - x1 + 1 cells wide, and at least one. Bin i of n covers the cells from
    floor(i * size / n) to ceil((i + 1) * size / n), clipped to the map. A bin without cells (a RoI outside the map) is
    0 and gets no gradient; an inverted RoI is one cell wide. Of equal values the first in row-major order gets the
    gradient. In float32 and float64 the values are bitwise identical to `torchvision.ops.roi_pool`, except that
    features that are not finite are kept.

    Args:
        features: (B, C, H, W) feature maps in any memory format; float32, float64, bfloat16 or float16.
            channels_last maps are pooled without a copy.
        rois: (R, 5) rows of [batch index, x1, y1, x2, y2] in the frame of the network's input image (pixels),
            or one (P_i, 4) tensor of boxes for each of the B images. Any dtype; used as float32 (float64 for float64
            features), also under autocast. They get no gradient.
        output_size: (height, width) of the result, or one number for both.
        spatial_scale: scale from the frame of the RoIs to feature cells: 1 / stride of the backbone.

    Returns:
        (R, C, height, width) in the dtype of the features and in channels_last memory format, so that
        `pooled.permute(0, 2, 3, 1).flatten(1)` makes no copy. The argmax is computed only if a gradient is needed.

    Raises:
        ValueError: for an invalid shape, size or scale; except on CUDA also for a batch index out of range or a
            coordinate that is not finite, with row and values of the RoI. On CUDA, where reading them back would
            synchronize the stream, such a RoI is pooled to NaN.
    """
    pooled_height, pooled_width = (output_size, output_size) if isinstance(output_size, int) else output_size
    if features.dim() != 4 or not features.is_floating_point():
        raise ValueError(f"features must be floating point (B, C, H, W), got {features.dtype} {tuple(features.shape)}")
    if pooled_height < 1 or pooled_width < 1:
        raise ValueError(f"output_size must be at least 1, got {(pooled_height, pooled_width)}")
    if not (math.isfinite(spatial_scale) and spatial_scale > 0):
        raise ValueError(f"spatial_scale must be a finite number above 0, got {spatial_scale}")
    if not isinstance(rois, Tensor):
        rois = _stack_boxes(rois, features)
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(
            f"rois must be (R, 5) rows of [batch index, x1, y1, x2, y2] or a list with one (P, 4) tensor of "
            f"boxes per image, got a tensor of shape {tuple(rois.shape)}"
        )
    if rois.device != features.device:
        raise ValueError(f"rois are on {rois.device}, but features on {features.device}")
    with_argmax = torch.is_grad_enabled() and features.requires_grad
    pooled, _ = operator(features, rois, pooled_height, pooled_width, float(spatial_scale), with_argmax)
    return pooled


def distinct_rois(rois: Tensor, spatial_scale: float) -> tuple[Tensor, Tensor]:
    """RoIs (D, 5) with distinct corner cells, and for each of the RoIs (R, 5) the index (R,) of the one with its cells.

    RoIs with the same corner cells are pooled to the same values.
    """
    cells = reference.round_half_away(rois * rois.new_tensor([1.0, *[spatial_scale] * 4]))
    found, index = cells.unique(dim=0, return_inverse=True)
    first = index.new_full((len(found),), len(rois))
    first.scatter_reduce_(0, index, torch.arange(len(rois), device=rois.device), "amin")
    return rois[first], index


def _stack_boxes(boxes: Sequence[Tensor], features: Tensor) -> Tensor:
    """One (P_i, 4) tensor per image -> (sum of P_i, 5) with the batch index in the first column."""
    if len(boxes) != features.shape[0]:
        raise ValueError(f"rois is a list of {len(boxes)} tensors, but there are {features.shape[0]} images")
    for image, image_boxes in enumerate(boxes):
        if image_boxes.dim() != 2 or image_boxes.shape[1] != 4:
            raise ValueError(f"rois[{image}] must be (P, 4) boxes, got shape {tuple(image_boxes.shape)}")
    return torch.cat([nn.functional.pad(image_boxes, (1, 0), value=image) for image, image_boxes in enumerate(boxes)])


class RoIPool(nn.Module):
    """Module version of `roi_pool`, `RoIPool(7, 1 / 16)(features, rois)`; see there for shapes, frame and errors."""

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, features: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return roi_pool(features, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


# --- the operators

# torch.library.custom_op would be shorter, but its first call imports the compiler, which takes seconds.
_library = torch.library.Library("fast_rcnn", "FRAGMENT")
_library.define(
    "roi_pool(Tensor features, Tensor rois, SymInt pooled_height, SymInt pooled_width, float spatial_scale, "
    "bool with_argmax) -> (Tensor pooled, Tensor argmax)",
    tags=torch.Tag.pt2_compliant_tag,
)
_library.define(
    "roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, SymInt batch_size, SymInt height, "
    "SymInt width) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)


def _forward_reference(
    features: Tensor, rois: Tensor, pooled_height: int, pooled_width: int, scale: float, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    reference.check_rois(rois, len(features))
    pooled, argmax = reference.forward(features, rois, (pooled_height, pooled_width), scale)
    return pooled, argmax if with_argmax else argmax.new_empty(0)


def _implement(dispatch_key: str, module: str) -> None:
    """Register the kernels of a module; numba or Triton is imported at the first call that needs it."""

    def forward(
        features: Tensor, rois: Tensor, pooled_height: int, pooled_width: int, scale: float, with_argmax: bool
    ) -> tuple[Tensor, Tensor]:
        kernels = importlib.import_module(module)
        return kernels.forward(features, rois, (pooled_height, pooled_width), scale, with_argmax)

    def backward(grad: Tensor, rois: Tensor, argmax: Tensor, batch_size: int, height: int, width: int) -> Tensor:
        return importlib.import_module(module).backward(grad, rois, argmax, batch_size, height, width)

    _library.impl("roi_pool", forward, dispatch_key)
    _library.impl("roi_pool_backward", backward, dispatch_key)


def _forward_fake(
    features: Tensor, rois: Tensor, pooled_height: int, pooled_width: int, scale: float, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    _, channels, height, width = features.shape
    pooled = features.new_empty((rois.shape[0], pooled_height, pooled_width, channels)).permute(0, 3, 1, 2)
    index = reference.argmax_dtype(height, width)
    return pooled, torch.empty_like(pooled, dtype=index) if with_argmax else pooled.new_empty(0, dtype=index)


def _backward_fake(grad: Tensor, rois: Tensor, argmax: Tensor, batch_size: int, height: int, width: int) -> Tensor:
    return grad.new_empty((batch_size, height, width, grad.shape[1])).permute(0, 3, 1, 2)


class _RoIPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, rois: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
        pooled, argmax = _below_autograd(features, rois, *options)
        ctx.mark_non_differentiable(argmax)
        ctx.set_materialize_grads(False)  # else autograd allocates zeros of the size of argmax
        ctx.save_for_backward(rois, argmax)
        ctx.batch_size, _, ctx.height, ctx.width = features.shape
        return pooled, argmax

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if grads[0] is None:
            return (None,) * 6  # one per input
        rois, argmax = ctx.saved_tensors
        return backward_operator(grads[0], rois, argmax, ctx.batch_size, ctx.height, ctx.width), *[None] * 5


def _autograd(features: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    needs_grad = torch.is_grad_enabled() and features.requires_grad
    return (_RoIPool.apply if needs_grad else _below_autograd)(features, *others)


def _below_autograd(*inputs: Any) -> tuple[Tensor, Tensor]:
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*inputs)


_library.impl("roi_pool", _forward_reference, "CompositeExplicitAutograd")
_library.impl("roi_pool_backward", reference.backward, "CompositeExplicitAutograd")
_implement("CPU", "detector.roi_pool.cpu")
_implement("CUDA", "detector.roi_pool.cuda")
_implement("MPS", "detector.roi_pool.mps")
torch.library.register_fake("fast_rcnn::roi_pool", _forward_fake, lib=_library)
torch.library.register_fake("fast_rcnn::roi_pool_backward", _backward_fake, lib=_library)
# torch.library.register_autograd does the same, but its Python overhead makes a small call take a third longer.
_library.impl("roi_pool", _autograd, "Autograd")

operator = torch.ops.fast_rcnn.roi_pool.default
backward_operator = torch.ops.fast_rcnn.roi_pool_backward.default
