"""RoI pooling on the CPU: conversion of tensors, and division of the work into tasks for the kernels."""

import numpy as np
import torch
from torch import Tensor

from detector.roi_pool import kernels, memory, threads
from detector.roi_pool.reference import argmax_dtype, coordinate_dtype, raise_bad_roi

# numba has no 16-bit floats: their bits are pooled as int16; bits above those of infinity are NaN.
_INFINITY_BITS = {torch.bfloat16: np.int16(0x7F80), torch.float16: np.int16(0x7C00)}
# A multiple of this many channels fills whole cache lines, for every dtype.
_CHANNELS_OF_LINES = 32


def forward(
    features: Tensor, rois: Tensor, pooled_hw: tuple[int, int], spatial_scale: float, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    """Pool (B,C,H,W) features to (R,C,*pooled_hw), with the cell index of each maximum or an empty tensor."""
    channels, lanes = features.shape[1], kernels.BLOCK_BYTES // features.element_size()
    if channels >= lanes:
        return _forward(features, rois, pooled_hw, spatial_scale, with_argmax)
    # Fewer channels than a block: only in examples.
    padded = torch.nn.functional.pad(features, (0, 0, 0, 0, 0, lanes - channels))
    pooled, argmax = _forward(padded, rois, pooled_hw, spatial_scale, with_argmax)
    return _first_channels(pooled, channels), _first_channels(argmax, channels) if with_argmax else argmax


def _forward(
    features: Tensor, rois: Tensor, pooled_hw: tuple[int, int], spatial_scale: float, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    """The same for at least one block of channels."""
    batch_size, channels, height, width = features.shape
    lanes = kernels.BLOCK_BYTES // features.element_size()
    corners = rois.detach().to(coordinate_dtype(features)).contiguous().numpy()
    bad, windows, by_image = kernels.plan(corners, batch_size, spatial_scale, (height, width), pooled_hw)
    if bad >= 0:
        raise_bad_roi(bad, corners[bad].tolist(), batch_size)
    infinity_bits = _INFINITY_BITS.get(features.dtype)
    maps = _channels_last_array(features)
    pooled = memory.empty((len(rois), *pooled_hw, channels), maps.dtype)
    index = np.uint16 if argmax_dtype(height, width) == torch.uint16 else np.int32
    argmax = memory.empty(pooled.shape, np.dtype(index)) if with_argmax else None

    aligned = all(channels * np.dtype(each).itemsize % memory.ALIGNMENT == 0 for each in (maps.dtype, index))
    parts = -(-2 * torch.get_num_threads() * lanes // max(channels * batch_size, 1))
    threads.run(kernels.pool, maps, by_image, parts, windows, infinity_bits, aligned, pooled, argmax)
    result = torch.from_numpy(pooled).view(features.dtype).permute(0, 3, 1, 2)
    if argmax is None:
        return result, torch.empty(0, dtype=argmax_dtype(height, width))
    return result, torch.from_numpy(argmax).permute(0, 3, 1, 2)


def backward(grad: Tensor, rois: Tensor, argmax: Tensor, batch_size: int, height: int, width: int) -> Tensor:
    """Add the gradient (R,C,ph,pw) of each pooled value to the cell of its maximum: (B,C,H,W).

    One task sums over all RoIs of an image, in their order, for some channels: the sums do not depend on the threads.
    """
    channels = grad.shape[1]
    missing = max(kernels.SUMMED_CHANNELS - channels, -channels % _CHANNELS_OF_LINES)
    if missing:  # only in examples
        grad, argmax = (torch.nn.functional.pad(each, (0, 0, 0, 0, 0, missing)) for each in (grad, argmax))
        return _first_channels(backward(grad, rois, argmax, batch_size, height, width), channels)
    # Only float16 is copied.
    values = _channels_last_array(grad.float() if grad.dtype == torch.float16 else grad)
    real = values.dtype
    if grad.dtype == torch.bfloat16:
        values, real = values.view(np.uint16), np.dtype(np.float32)
    where = argmax.permute(0, 2, 3, 1).contiguous().numpy()
    sums = memory.empty((batch_size, height * width, channels), values.dtype)
    by_image = kernels.group_by_image(rois[:, 0].to(coordinate_dtype(grad)).long().contiguous().numpy(), batch_size)
    threads.run(kernels.scatter, values, where, by_image, real.type(0), sums)
    result = torch.from_numpy(sums).view(batch_size, height, width, channels)
    result = result.view(torch.bfloat16) if grad.dtype == torch.bfloat16 else result.to(grad.dtype)
    return result.permute(0, 3, 1, 2)


def _first_channels(pooled: Tensor, channels: int) -> Tensor:
    return pooled[:, :channels].contiguous(memory_format=torch.channels_last)


def _channels_last_array(tensor: Tensor) -> np.ndarray:
    """(N,C,H,W) as an (N,H,W,C) array, without a copy if it is channels_last; 16-bit floats as their bits."""
    tensor = tensor.detach().permute(0, 2, 3, 1).contiguous()
    return (tensor.view(torch.int16) if tensor.dtype in _INFINITY_BITS else tensor).numpy()
