"""RoI pooling on CUDA devices: Triton kernels on channels-last maps, with neighbouring threads on neighbouring
channels, so that all accesses to maps, result and argmax are coalesced.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detector.roi_pool.reference import CELL_LIMIT, argmax_dtype, coordinate_dtype

_CELL_LIMIT = tl.constexpr(CELL_LIMIT)
# Bits of a fixed-point gradient: the largest one can be added 2**23 times before int64 overflows.
_FIXED_POINT_BITS = 40


@triton.jit
def _round_half_away(value):  # type: ignore[no-untyped-def]
    magnitude = tl.minimum(tl.abs(value), _CELL_LIMIT)
    whole = tl.floor(magnitude)
    cell = whole.to(tl.int32) + (magnitude - whole >= 0.5).to(tl.int32)
    return tl.where(value > 0, cell, -cell)


@triton.jit
def _or_zero(value):  # type: ignore[no-untyped-def]
    return tl.where(tl.abs(value) < float("inf"), value, 0.0)  # NaN is not below anything


@triton.jit
def _bin_edges(low, high, spatial_scale, i, bins: tl.constexpr, limit):  # type: ignore[no-untyped-def]
    """`reference.bin_edges` for bin i of one RoI along one axis, in the precision of `low`."""
    start = _round_half_away(low * spatial_scale)
    end = _round_half_away(high * spatial_scale)
    cells = tl.maximum(end - start + 1, 1).to(low.dtype)
    if low.dtype == tl.float32:  # in float32, / is not correctly rounded
        size = tl.div_rn(cells, tl.full((), bins, tl.float32))
    else:
        size = cells / bins
    first = tl.floor(i * size).to(tl.int32) + start
    past = tl.ceil((i + 1) * size).to(tl.int32) + start
    return tl.minimum(tl.maximum(first, 0), limit), tl.minimum(tl.maximum(past, 0), limit)


@triton.jit
def _pool(  # type: ignore[no-untyped-def]
    maps,  # (B, H, W, C)
    rois,  # (R, 5)
    scale,  # (1,), a tensor, since Triton passes a Python float as float32
    pooled,  # (R, ph, pw, C)
    argmax,  # the same, or unused
    batch_size,
    height,
    width,
    channels,
    pooled_height: tl.constexpr,
    pooled_width: tl.constexpr,
    with_argmax: tl.constexpr,
    empty: tl.constexpr,
    block: tl.constexpr,
):
    """One program pools `block` channels of one row of bins of one RoI."""
    row = tl.program_id(0).to(tl.int64)  # of R * ph
    roi = rois + row // pooled_height * 5
    image = tl.load(roi)
    x1, y1, x2, y2 = tl.load(roi + 1), tl.load(roi + 2), tl.load(roi + 3), tl.load(roi + 4)
    bad = (_or_zero(x1) != x1) | (_or_zero(y1) != y1) | (_or_zero(x2) != x2) | (_or_zero(y2) != y2)
    bad = bad | (image != image) | (image <= -1) | (image >= batch_size)
    x1, y1, x2, y2 = _or_zero(x1), _or_zero(y1), _or_zero(x2), _or_zero(y2)
    spatial_scale = tl.load(scale)
    top, bottom = _bin_edges(y1, y2, spatial_scale, tl.program_id(0) % pooled_height, pooled_height, height)

    real: tl.constexpr = rois.dtype.element_ty  # at least float32, which represents 16-bit floats exactly
    channel = tl.program_id(1) * block + tl.arange(0, block)
    inside = channel < channels
    image_cells = tl.where(bad, 0.0, image).to(tl.int64) * height * width
    for j in range(pooled_width):
        left, right = _bin_edges(x1, x2, spatial_scale, j, pooled_width, width)
        is_empty = bad | (bottom <= top) | (right <= left)
        where = tl.zeros((block,), tl.int32) + (top * width + left)
        readable = inside & (is_empty == 0)
        best = tl.load(maps + (image_cells + where) * channels + channel, mask=readable, other=0.0).to(real)
        for y in range(top, tl.where(is_empty, top, bottom)):
            for x in tl.range(left, right, loop_unroll_factor=4):  # so many loads in flight
                cell = y * width + x
                value = tl.load(maps + (image_cells + cell) * channels + channel, mask=inside).to(real)
                if with_argmax:
                    higher = (value > best) | (value != value) & (best == best)  # the first NaN stays
                    best = tl.where(higher, value, best)
                    where = tl.where(higher, cell, where)
                else:
                    best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
        best = tl.where(bad, float("nan"), best)
        target = (row * pooled_width + j) * channels + channel
        tl.store(pooled + target, best.to(maps.dtype.element_ty), mask=inside)
        if with_argmax:
            where = tl.where(is_empty, empty, where)
            tl.store(argmax + target, where.to(argmax.dtype.element_ty), mask=inside)


@triton.jit
def _scatter(  # type: ignore[no-untyped-def]
    grad,  # (R, ph, pw, C)
    argmax,  # the same
    rois,  # (R, 5)
    sums,  # (B, H, W, C), zeros
    per_unit,  # (): 1 / the unit of which gradients are integer multiples, if `fixed_point`
    cells,
    channels,
    pooled_height: tl.constexpr,
    pooled_width: tl.constexpr,
    fixed_point: tl.constexpr,
    empty: tl.constexpr,
    block: tl.constexpr,
):
    """One program adds the gradients of one row of bins of one RoI to the cells of their maxima."""
    row = tl.program_id(0).to(tl.int64)  # of R * ph
    channel = tl.program_id(1) * block + tl.arange(0, block)
    inside = channel < channels
    image = _or_zero(tl.load(rois + row // pooled_height * 5)).to(tl.int64)
    for j in range(pooled_width):
        source = (row * pooled_width + j) * channels + channel
        where = tl.load(argmax + source, mask=inside, other=empty).to(tl.int32)
        value = tl.load(grad + source, mask=inside, other=0.0)
        if fixed_point:
            units = _or_zero(value.to(tl.float64) * tl.load(per_unit))
            value = (units + tl.where(units < 0, -0.5, 0.5)).to(tl.int64)
        target = sums + (image * cells + where) * channels + channel
        tl.atomic_add(target, value.to(sums.dtype.element_ty), mask=where != empty, sem="relaxed")


def forward(
    features: Tensor, rois: Tensor, pooled_hw: tuple[int, int], spatial_scale: float, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    """Pool (B,C,H,W) features to (R,C,*pooled_hw), with the cell index of each maximum or an empty tensor.

    A RoI with a batch index out of range or a coordinate that is not finite is pooled to NaN and gets no gradient:
    raising an error would require a synchronization with the device.
    """
    batch_size, channels, height, width = features.shape
    maps = features.permute(0, 2, 3, 1).contiguous()
    corners = rois.to(coordinate_dtype(features)).contiguous()
    pooled = maps.new_empty((len(rois), *pooled_hw, channels))
    index = argmax_dtype(height, width)
    argmax = torch.empty(pooled.shape if with_argmax else (0,), dtype=index, device=maps.device)
    scale = torch.full((1,), spatial_scale, dtype=corners.dtype, device=corners.device)
    if pooled.numel():
        grid, blocks = _grid_and_blocks(pooled)
        tensors = maps, corners, scale, pooled, argmax
        sizes = batch_size, height, width, channels, *pooled_hw
        constants = with_argmax, torch.iinfo(index).max
        with torch.cuda.device_of(maps):
            # A fused multiply and subtract would round some coordinates to another cell.
            _pool[grid](*tensors, *sizes, *constants, **blocks, enable_fp_fusion=False)
    return pooled.permute(0, 3, 1, 2), argmax.permute(0, 3, 1, 2) if with_argmax else argmax


def backward(grad: Tensor, rois: Tensor, argmax: Tensor, batch_size: int, height: int, width: int) -> Tensor:
    """Add the gradient (R,C,ph,pw) of each pooled value to the cell of its maximum: (B,C,H,W).

    Floating-point atomics add in any order, so that the last bits differ between runs. With deterministic algorithms
    enabled in torch, gradients are added as integers instead, in units of about 2**-40 of the largest one, which is
    finer than float32 resolution.
    """
    values = grad.permute(0, 2, 3, 1).contiguous()
    where = argmax.permute(0, 2, 3, 1).contiguous()
    fixed_point = torch.are_deterministic_algorithms_enabled()
    unit = torch.ones((), dtype=torch.float64, device=grad.device)  # a power of two
    sums_dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    shape = (batch_size, height, width, grad.shape[1])
    sums = torch.zeros(shape, dtype=torch.int64 if fixed_point else sums_dtype, device=grad.device)
    if values.numel():
        if fixed_point:
            low, high = values.aminmax()
            largest = torch.maximum(-low, high).double()
            # The reciprocal of a smaller unit would be infinite.
            unit = torch.ldexp(unit, (largest.frexp().exponent - _FIXED_POINT_BITS).clamp(min=-1000))
            unit = torch.where(largest.isfinite(), unit, torch.nan)  # so that the sums are NaN
        grid, blocks = _grid_and_blocks(values)
        tensors = values, where, rois.to(torch.float32).contiguous(), sums, unit.reciprocal()
        sizes = height * width, values.shape[3], values.shape[1], values.shape[2]
        with torch.cuda.device_of(values):
            _scatter[grid](*tensors, *sizes, fixed_point, torch.iinfo(where.dtype).max, **blocks)
    if fixed_point:
        sums = sums * unit
    return sums.to(grad.dtype).permute(0, 3, 1, 2)


def _grid_and_blocks(values: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """One program per row of bins of (R,ph,pw,C) values and block of channels, of which a thread has 16 bytes."""
    channels = values.shape[3]
    block = min(triton.next_power_of_2(channels), 512)
    num_warps = max(block * values.element_size() // (16 * 32), 1)
    rows = values.shape[0] * values.shape[1]
    return (rows, triton.cdiv(channels, block)), {"block": block, "num_warps": num_warps}
