"""RoI pooling on the CPU: numba kernels over channels-last maps, so that the loop over channels becomes SIMD.

Results are allocated by numpy: it asks Linux for huge pages, without which the page faults of a fresh 200 MB
result take several times as long as the pooling.
"""

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from detector.roi_pool import threads
from detector.roi_pool.reference import CELL_LIMIT, argmax_dtype, coordinate_dtype, raise_bad_roi

# numba has no 16-bit floats: their bits are pooled as int16, and bits above infinity's are NaN.
_INFINITY_BITS = {torch.bfloat16: np.int16(0x7F80), torch.float16: np.int16(0x7C00)}
# A task should take far longer than handing it to a thread, some 20 microseconds.
_VALUES_PER_TASK = 2**17
_MOST_PARTITIONS = 8


@njit(nogil=True, cache=True)
def _first_bad_roi(rois, batch_size):  # type: ignore[no-untyped-def]
    for r in range(len(rois)):
        if not (np.isfinite(rois[r]).all() and rois[r, 0] > -1 and rois[r, 0] < batch_size):
            return r
    return -1


@njit(nogil=True, cache=True)
def _round_half_away(value):  # type: ignore[no-untyped-def]
    magnitude = min(abs(value), CELL_LIMIT)
    whole = math.floor(magnitude)
    cell = int(whole) + int(magnitude - whole >= 0.5)
    return cell if value > 0 else -cell


@njit(nogil=True, cache=True)
def _bin_edges(rois, r, axis, spatial_scale, limit, first, past):  # type: ignore[no-untyped-def]
    """As `reference.bin_edges`, for one RoI and axis (1 for x, 2 for y), into `first` and `past`.

    Every operand is cast to the RoIs' type, since numba would compute float32 with integers in float64.
    """
    real = rois.dtype.type
    start = _round_half_away(rois[r, axis] * real(spatial_scale))
    end = _round_half_away(rois[r, axis + 2] * real(spatial_scale))
    size = real(max(end - start + 1, 1)) / real(len(first))
    for i in range(len(first)):
        first[i] = min(max(math.floor(real(i) * size) + start, 0), limit)
        past[i] = min(max(math.ceil(real(i + 1) * size) + start, 0), limit)


@njit(nogil=True, cache=True)
def _ordered(value, infinity_bits):  # type: ignore[no-untyped-def]
    """A float as it is; the bits of a 16-bit float as an int16 of the same order, NaN above all."""
    if infinity_bits is None:
        return value
    magnitude = np.int16(value & np.int16(0x7FFF))
    if magnitude > infinity_bits:
        return np.int16(0x7FFF)
    return magnitude if value >= 0 else np.int16(-magnitude)


@njit(nogil=True, cache=True)
def _pool_bin(image, top, bottom, left, right, infinity_bits, best, where):  # type: ignore[no-untyped-def]
    """Maximum over a window of (H,W,C) cells into `best` (C,), its cell index into `where` (C,) or None."""
    if top >= bottom or left >= right:
        best[:] = 0
        if where is not None:
            where[:] = np.iinfo(where.dtype).max
        return
    for c in range(len(best)):
        best[c] = _ordered(image[top, left, c], infinity_bits)
        if where is not None:
            where[c] = top * image.shape[1] + left
    for y in range(top, bottom):
        for x in range(left, right):
            cell = image[y, x]
            for c in range(len(best)):
                value = _ordered(cell[c], infinity_bits)
                higher = value > best[c] or value != value  # the last NaN stays
                best[c] = value if higher else best[c]
                if where is not None:
                    where[c] = where.dtype.type(y * image.shape[1] + x) if higher else where[c]
    if infinity_bits is not None:
        for c in range(len(best)):
            best[c] = best[c] if best[c] >= 0 else np.int16(-best[c] | np.int16(-0x8000))


@njit(nogil=True, cache=True)
def _pool(maps, rois, spatial_scale, infinity_bits, pooled, argmax, start, stop):  # type: ignore[no-untyped-def]
    """Pool RoIs start to stop of maps (B,H,W,C) into pooled (R,ph,pw,C) and argmax (the same, or None)."""
    _, height, width, _ = maps.shape
    _, pooled_height, pooled_width, _ = pooled.shape
    tops, bottoms = np.empty(pooled_height, np.int64), np.empty(pooled_height, np.int64)
    lefts, rights = np.empty(pooled_width, np.int64), np.empty(pooled_width, np.int64)
    for r in range(start, stop):
        image = maps[int(rois[r, 0])]
        _bin_edges(rois, r, 1, spatial_scale, width, lefts, rights)
        _bin_edges(rois, r, 2, spatial_scale, height, tops, bottoms)
        for i in range(pooled_height):
            for j in range(pooled_width):
                window = tops[i], bottoms[i], lefts[j], rights[j]
                if argmax is None:
                    _pool_bin(image, *window, infinity_bits, pooled[r, i, j], None)
                else:
                    _pool_bin(image, *window, infinity_bits, pooled[r, i, j], argmax[r, i, j])


@njit(nogil=True, cache=True)
def _scatter(grad, argmax, rows, half_values, sums):  # type: ignore[no-untyped-def]
    """Add gradients (R,ph,pw,C) of the given rows to the cells they came from, in sums (H*W, C).

    The bits of 16-bit floats are looked up in `half_values`, a table of all 65 536.
    """
    sums[:] = 0
    for r in rows:
        for i in range(grad.shape[1]):
            for j in range(grad.shape[2]):
                values, where = grad[r, i, j], argmax[r, i, j]
                for c in range(len(values)):
                    if where[c] != np.iinfo(argmax.dtype).max:
                        if half_values is None:
                            sums[where[c], c] += values[c]
                        else:
                            sums[where[c], c] += half_values[values[c]]


@njit(nogil=True, cache=True)
def _add_partitions(sums, partitions, start, stop):  # type: ignore[no-untyped-def]
    for p in range(len(partitions)):
        for n in range(start, stop):
            sums[n] += partitions[p, n]


def forward(
    features: Tensor, rois: Tensor, pooled_hw: tuple[int, int], spatial_scale: float, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    """Pool (B,C,H,W) features to (R,C,*pooled_hw), with the cell index of each maximum or an empty tensor."""
    batch_size, channels, height, width = features.shape
    corners = rois.detach().to(coordinate_dtype(features)).contiguous().numpy()
    bad = _first_bad_roi(corners, batch_size)
    if bad >= 0:
        raise_bad_roi(bad, corners[bad].tolist(), batch_size)
    infinity_bits = _INFINITY_BITS.get(features.dtype)
    maps = _channels_last_array(features)
    pooled = np.empty((len(rois), *pooled_hw, channels), maps.dtype)
    index = np.uint16 if argmax_dtype(height, width) == torch.uint16 else np.int32
    argmax = np.empty(pooled.shape, index) if with_argmax else None

    tasks = _ranges(len(rois), math.prod(pooled.shape[1:]))
    shared = (maps, corners, spatial_scale, infinity_bits, pooled, argmax)
    threads.run(_pool, [(*shared, start, stop) for start, stop in tasks])
    result = torch.from_numpy(pooled).view(features.dtype).permute(0, 3, 1, 2)
    if argmax is None:
        return result, torch.empty(0, dtype=argmax_dtype(height, width))
    return result, torch.from_numpy(argmax).permute(0, 3, 1, 2)


def backward(grad: Tensor, rois: Tensor, argmax: Tensor, batch_size: int, height: int, width: int) -> Tensor:
    """Add each pooled value's gradient (R,C,ph,pw) to the cell that it came from: (B,C,H,W).

    The RoIs of an image are cut into partitions, each with its own map of sums, which are added in order.
    Their number depends on shapes alone, so that the sums do not depend on the number of threads.
    """
    channels = grad.shape[1]
    half_values = None
    if grad.dtype in _INFINITY_BITS:
        half_values = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(grad.dtype).float().numpy()
    values, where = _channels_last_array(grad), argmax.permute(0, 2, 3, 1).contiguous().numpy()
    if half_values is not None:
        values = values.view(np.uint16)
    # As many as leave the adding up small beside the scattering.
    partitions = values.size // (8 * max(batch_size * height * width * channels, 1))
    partitions = min(max(partitions, 1), _MOST_PARTITIONS)
    sums_dtype = np.float64 if grad.dtype == torch.float64 else np.float32
    sums = np.empty((batch_size, height * width, channels), sums_dtype)
    others = np.empty((partitions - 1, *sums.shape), sums_dtype)

    images = rois[:, 0].long().numpy()
    tasks = []
    for image in range(batch_size):
        rows = np.array_split(np.flatnonzero(images == image), partitions)
        for part, target in zip(rows, [sums, *others], strict=True):
            tasks.append((values, where, part, half_values, target[image]))
    threads.run(_scatter, tasks)
    if partitions > 1:
        flat = sums.reshape(-1), others.reshape(partitions - 1, sums.size)
        threads.run(_add_partitions, [(*flat, start, stop) for start, stop in _ranges(sums.size, partitions)])
    result = torch.from_numpy(sums).view(batch_size, height, width, channels).to(grad.dtype)
    return result.permute(0, 3, 1, 2)


def _channels_last_array(tensor: Tensor) -> np.ndarray:
    """(N,C,H,W) as a (N,H,W,C) array, without a copy if it is channels_last; 16-bit floats as their bits."""
    tensor = tensor.detach().permute(0, 2, 3, 1).contiguous()
    return (tensor.view(torch.int16) if tensor.dtype in _INFINITY_BITS else tensor).numpy()


def _ranges(count: int, values_each: int) -> list[tuple[int, int]]:
    """Cut `count` items into ranges, a few for each thread since their work differs, none too small."""
    step = max(-(-count // (4 * torch.get_num_threads())), _VALUES_PER_TASK // max(values_each, 1), 1)
    return [(start, min(start + step, count)) for start in range(0, count, step)]
