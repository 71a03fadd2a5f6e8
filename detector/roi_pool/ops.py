"""The layer as two torch operators, `fast_rcnn::roi_pool` and its backward, so that autograd, torch.compile and
torch.export treat it as one unit. Devices without their own kernels use the reference implementation.

No autocast rule is registered, on purpose: the operators use each tensor in its own dtype, features in the precision
of the backbone (a maximum is exact in any) and RoIs in full precision. A rule would also cast the RoIs, and bfloat16
represents pixels above 256 only as even numbers.
"""

import importlib
from typing import Any

import torch
from torch import Tensor

from detector.roi_pool import reference

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
        return roi_pool_backward(grads[0], rois, argmax, ctx.batch_size, ctx.height, ctx.width), *[None] * 5


def _autograd(features: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    needs_grad = torch.is_grad_enabled() and features.requires_grad
    return (_RoIPool.apply if needs_grad else _below_autograd)(features, *others)


def _below_autograd(*inputs: Any) -> tuple[Tensor, Tensor]:
    with torch._C._AutoDispatchBelowAutograd():
        return roi_pool(*inputs)


_library.impl("roi_pool", _forward_reference, "CompositeExplicitAutograd")
_library.impl("roi_pool_backward", reference.backward, "CompositeExplicitAutograd")
_implement("CPU", "detector.roi_pool.cpu")
_implement("CUDA", "detector.roi_pool.cuda")
_implement("MPS", "detector.roi_pool.mps")
torch.library.register_fake("fast_rcnn::roi_pool", _forward_fake, lib=_library)
torch.library.register_fake("fast_rcnn::roi_pool_backward", _backward_fake, lib=_library)
# torch.library.register_autograd does the same, but its Python overhead makes a small call take a third longer.
_library.impl("roi_pool", _autograd, "Autograd")

roi_pool = torch.ops.fast_rcnn.roi_pool.default
roi_pool_backward = torch.ops.fast_rcnn.roi_pool_backward.default
