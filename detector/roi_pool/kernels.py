"""RoI pooling on the CPU: what numba compiles. All of it in one file, since numba compiles anew what it has kept on
disk when the file has changed, but not when another one has that it takes functions from.

Maps are channels last, (H,W,C), and pooled a block of channels after the other: a copy of that block of a whole map
stays in the processor's cache while RoI after RoI reads it.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from detector.roi_pool.memory import ALIGNMENT
from detector.roi_pool.reference import CELL_LIMIT

# Bytes of a cell's block of channels in pooling: two cache lines, and few enough registers for its maxima.
BLOCK_BYTES = 128

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def _max_window(typing: Any, cells: Any, width: Any, window: Any, plain: Any, best: Any, where: Any) -> Any:
    """Maximum over a window of cells, channel by channel, into `best` (lanes,), its cell's index into `where`.

    A loop over channels that numba turns into vector instructions keeps the maxima in memory from cell to cell;
    written with LLVM's own vectors, of whatever width the processor has, they stay in registers.

    cells: (H * W, lanes) in C order, lanes * itemsize being BLOCK_BYTES: floats, or int16 as from `_ordered`, which
        come out as the 16-bit floats' bits.
    width: W. window: (top, bottom, left, right), not empty, all int64.
    plain: True for the quick way: no NaN is among the cells, and `best` and `where` begin at a multiple of ALIGNMENT,
        so that they are written past the caches, without being read first. Else None; the last NaN is the maximum.
    where: (lanes,) integers, or None.
    """
    bits = cells.dtype.bitwidth
    lanes = BLOCK_BYTES * 8 // bits
    is_float, is_plain = isinstance(cells.dtype, types.Float), not isinstance(plain, types.NoneType)
    with_where = not isinstance(where, types.NoneType)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: tuple) -> Any:
        values = ir.VectorType(context.get_data_type(cells.dtype), lanes)
        indices = ir.VectorType(ir.IntType(bits), lanes)  # as wide as a value, so that one mask serves both
        row_length = arguments[1]
        top, bottom, left, right = (builder.extract_value(arguments[2], n) for n in range(4))

        def pointer(array_type: Any, argument: ir.Value) -> ir.Value:
            return context.make_array(array_type)(context, builder, argument).data

        def load(cell: ir.Value) -> ir.Value:
            at = builder.gep(pointer(cells, arguments[0]), [builder.mul(cell, _INT64(lanes))])
            return builder.load(builder.bitcast(at, values.as_pointer()), align=bits // 8)

        def store(vector: ir.Value, array_type: Any, argument: ir.Value) -> None:
            to = builder.bitcast(pointer(array_type, argument), vector.type.as_pointer())
            if is_plain:
                written = builder.store(vector, to, align=min(ALIGNMENT, lanes * array_type.dtype.bitwidth // 8))
                written.set_metadata("nontemporal", builder.module.add_metadata([_INT32(1)]))
            else:
                builder.store(vector, to, align=array_type.dtype.bitwidth // 8)

        def index_of(cell: ir.Value) -> ir.Value:
            number = builder.trunc(cell, indices.element) if bits < 64 else cell
            first = builder.insert_element(ir.Constant(indices, ir.Undefined), number, _INT32(0))
            return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_INT32, lanes), None))

        start = builder.add(builder.mul(top, row_length), left)
        best_so_far = cgutils.alloca_once_value(builder, load(start))
        its_cell = cgutils.alloca_once_value(builder, index_of(start))
        rows, columns = ((start, stop, _INT64(1)) for start, stop in ((top, bottom), (left, right)))
        with cgutils.for_range_slice(builder, *rows) as (y, _), cgutils.for_range_slice(builder, *columns) as (x, _):
            cell = builder.add(builder.mul(y, row_length), x)
            value, before = load(cell), builder.load(best_so_far)
            if is_float:
                higher = builder.fcmp_ordered(">", value, before)
                if not is_plain:
                    higher = builder.or_(higher, builder.fcmp_unordered("uno", value, value))
            else:
                higher = builder.icmp_signed(">", value, before)
            builder.store(builder.select(higher, value, before), best_so_far)
            if with_where:
                builder.store(builder.select(higher, index_of(cell), builder.load(its_cell)), its_cell)

        maximum = builder.load(best_so_far)
        if not is_float:
            negative = builder.icmp_signed("<", maximum, ir.Constant(values, None))
            sign = ir.Constant(values, [-(1 << (bits - 1))] * lanes)
            maximum = builder.select(negative, builder.or_(builder.neg(maximum), sign), maximum)
        store(maximum, best, arguments[4])
        if with_where:
            found, wanted = builder.load(its_cell), ir.VectorType(ir.IntType(where.dtype.bitwidth), lanes)
            if where.dtype.bitwidth < bits:
                found = builder.trunc(found, wanted)
            elif where.dtype.bitwidth > bits:
                found = builder.zext(found, wanted)
            store(found, where, arguments[5])
        return context.get_dummy_value()

    return types.void(cells, width, window, plain, best, where), codegen


@intrinsic
def _prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Ask for the memory at `array[index]` of a one-dimensional array, which may lie outside of it."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: tuple) -> Any:
        data = context.make_array(array)(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [address.type, _INT32, _INT32, _INT32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        to_read, keep, data_not_code = _INT32(0), _INT32(3), _INT32(1)
        builder.call(function, [address, to_read, keep, data_not_code])
        return context.get_dummy_value()

    return types.void(array, index), codegen


@njit(nogil=True, cache=True)
def first_bad_roi(rois, batch_size):  # type: ignore[no-untyped-def]
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
def bin_windows(rois, spatial_scale, map_hw, pooled_hw):  # type: ignore[no-untyped-def]
    """Windows of each RoI's bins: rows from tops to bottoms (R,ph), columns from lefts to rights (R,pw)."""
    tops, bottoms = np.empty((len(rois), pooled_hw[0]), np.int64), np.empty((len(rois), pooled_hw[0]), np.int64)
    lefts, rights = np.empty((len(rois), pooled_hw[1]), np.int64), np.empty((len(rois), pooled_hw[1]), np.int64)
    for r in range(len(rois)):
        _bin_edges(rois, r, 1, spatial_scale, map_hw[1], lefts[r], rights[r])
        _bin_edges(rois, r, 2, spatial_scale, map_hw[0], tops[r], bottoms[r])
    return tops, bottoms, lefts, rights


@njit(nogil=True, cache=True)
def _copy_block(image, first, infinity_bits, cells):  # type: ignore[no-untyped-def]
    """Copy channels `first` on of a map (H,W,C) to cells (H*W,lanes), 16-bit floats in order."""
    channels = image.shape[2]
    flat = image.reshape(-1)
    for cell in range(len(cells)):
        start = cell * channels + first
        for c in range(0, cells.shape[1], ALIGNMENT // image.itemsize):
            _prefetch(flat, start + 8 * channels + c)  # type: ignore[call-arg]
        for c in range(cells.shape[1]):
            cells[cell, c] = _ordered(flat[start + c], infinity_bits)


@njit(nogil=True, cache=True)
def _has_nan(cells):  # type: ignore[no-untyped-def]
    """Is there a NaN among floats? Asked of their bits, since the greatest integer is found by vector instructions."""
    flat = cells.reshape(-1)
    if cells.itemsize == 4:
        return _greatest_magnitude(flat.view(np.int32)) > np.int32(0x7F800000)
    return _greatest_magnitude(flat.view(np.int64)) > np.int64(0x7FF0000000000000)


@njit(nogil=True, cache=True)
def _greatest_magnitude(bits):  # type: ignore[no-untyped-def]
    greatest = bits.dtype.type(0)
    for value in bits:
        greatest = max(greatest, value & bits.dtype.type(np.iinfo(bits.dtype).max))
    return greatest


@njit(nogil=True, cache=True)
def pool(maps, image, windows, infinity_bits, aligned, pooled, argmax, first, rows):  # type: ignore[no-untyped-def]
    """Pool a block of channels, from `first` on, of maps (B,H,W,C): the given rows of pooled (R,ph,pw,C) and argmax.

    windows: what `bin_windows` returns. aligned: the rows of pooled and argmax begin at multiples of ALIGNMENT.
    """
    _, height, width, _ = maps.shape
    cells = np.empty((height * width, BLOCK_BYTES // maps.itemsize), maps.dtype)
    _copy_block(maps[image], first, infinity_bits, cells)
    if aligned and not (infinity_bits is None and _has_nan(cells)):
        _pool_block(cells, width, windows, True, pooled, argmax, first, rows)
    else:
        _pool_block(cells, width, windows, None, pooled, argmax, first, rows)


@njit(nogil=True, cache=True)
def _pool_block(cells, width, windows, plain, pooled, argmax, first, rows):  # type: ignore[no-untyped-def]
    tops, bottoms, lefts, rights = windows
    past = first + cells.shape[1]
    for r in rows:
        for i in range(pooled.shape[1]):
            for j in range(pooled.shape[2]):
                window = tops[r, i], bottoms[r, i], lefts[r, j], rights[r, j]
                best = pooled[r, i, j, first:past]
                if window[0] >= window[1] or window[2] >= window[3]:
                    best[:] = 0
                    if argmax is not None:
                        argmax[r, i, j, first:past] = np.iinfo(argmax.dtype).max
                elif argmax is None:
                    _max_window(cells, width, window, plain, best, None)  # type: ignore[call-arg]
                else:
                    where = argmax[r, i, j, first:past]
                    _max_window(cells, width, window, plain, best, where)  # type: ignore[call-arg]


@njit(nogil=True, cache=True)
def scatter(grad, argmax, rows, bfloat16, result, image, first, past):  # type: ignore[no-untyped-def]
    """Add gradients (R,ph,pw,C) of the given rows to their cells in result (B,H*W,C), for channels first to past.

    bfloat16: True if grad holds the bits of bfloat16, as uint16, which are the upper half of a float32's; else None.
    """
    sums = np.zeros((result.shape[1], past - first), result.dtype)
    widened_bits = np.empty(past - first, np.uint32)
    widened = widened_bits.view(np.float32)
    channels = grad.shape[3]
    flat_grad, flat_argmax = grad.reshape(-1), argmax.reshape(-1)
    bins = grad.shape[1] * grad.shape[2]
    for r in rows:
        for b in range(bins):
            start = (r * bins + b) * channels
            # The processor foresees reading on, but not the leap to the next bin.
            for c in range(first, past, ALIGNMENT // argmax.itemsize):
                _prefetch(flat_argmax, start + 4 * channels + c)  # type: ignore[call-arg]
            for c in range(first, past, ALIGNMENT // grad.itemsize):
                _prefetch(flat_grad, start + 4 * channels + c)  # type: ignore[call-arg]
            values, where = flat_grad[start + first : start + past], flat_argmax[start + first : start + past]
            if where[0] == np.iinfo(argmax.dtype).max:  # an empty bin, in all channels
                continue
            if bfloat16 is None:
                for c in range(past - first):
                    sums[where[c], c] += values[c]
            else:
                for c in range(past - first):
                    widened_bits[c] = np.uint32(values[c]) << np.uint32(16)
                for c in range(past - first):
                    sums[where[c], c] += widened[c]
    for cell in range(len(sums)):  # assigning a slice would take numba seconds longer to compile
        for c in range(past - first):
            result[image, cell, first + c] = sums[cell, c]
