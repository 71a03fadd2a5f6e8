"""RoI pooling on the CPU: the functions compiled by numba, in two halves.

The first half has four vector operations that numba cannot express (`_max_window`, `_copy_cells`, `_move_sums`,
`_add_gradients`) and an atomic counter, written in LLVM's intermediate representation; tests/roi_pool/test_kernels.py
compares each with a few lines of numpy. The second half has the loops that use them: start reading at `pool` and
`scatter`. Both are in one file, since numba recompiles functions cached on disk when their own file changes, but not
when a file that they import functions from changes.

Maps are channels last, (H,W,C), and pooled one block of channels at a time: a copy of that block of the whole map
stays in the processor cache while all RoIs read it.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from detector.roi_pool.memory import ALIGNMENT
from detector.roi_pool.reference import CELL_LIMIT
from detector.runtime.compiled import compiled

# Bytes of a block of channels of one cell in pooling: two cache lines, so that the maxima fit into registers.
BLOCK_BYTES = 128
# Channels whose gradients are summed together: a compile-time constant, so that the sums of a map stay in the cache.
SUMMED_CHANNELS = 64
# Prefetch distance: cells of a map that is copied, and bins whose gradients are summed. The hardware prefetcher detects
# sequential reads, but not the stride to the next cell or bin.
_CELLS_AHEAD, _BINS_AHEAD = 16, 8

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)


# --- vector operations, in LLVM's intermediate representation


@intrinsic
def _max_window(typing: Any, cells: Any, width: Any, window: Any, plain: Any, pooled: Any, argmax: Any, at: Any) -> Any:
    """Write the maximum over a window of cells, per channel, to `pooled` from element `at` on, and the index of its
    cell to `argmax` in the same place.

    A loop over channels vectorized by numba keeps the maxima in memory between cells; with LLVM vectors, which adapt to
    the vector width of the processor, they stay in registers.

    cells: (H * W, lanes) in C order, with lanes * itemsize equal to BLOCK_BYTES: floats, or int16 from `_copy_cells`,
        which are written as the bits of 16-bit floats.
    width: W. window: (top, bottom, left, right), not empty, all int64.
    plain: True for the fast path: the cells contain no NaN, and writes start at multiples of ALIGNMENT, so that they
        bypass the caches (non-temporal stores). Else None; the first NaN is the maximum.
    pooled, argmax: in C order, with any number of dimensions; argmax has integers, or is None.
    """
    bits = cells.dtype.bitwidth
    lanes = BLOCK_BYTES * 8 // bits
    is_float, is_plain = isinstance(cells.dtype, types.Float), not isinstance(plain, types.NoneType)
    with_argmax = not isinstance(argmax, types.NoneType)
    # As wide as a value, so that one mask serves both, unless more cells must be indexed.
    index_bits = max(bits, argmax.dtype.bitwidth) if with_argmax else bits

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: tuple) -> Any:
        values = ir.VectorType(context.get_data_type(cells.dtype), lanes)
        indices = ir.VectorType(ir.IntType(index_bits), lanes)
        row_length = arguments[1]
        top, bottom, left, right = (builder.extract_value(arguments[2], n) for n in range(4))

        def pointer(array_type: Any, argument: ir.Value) -> ir.Value:
            return context.make_array(array_type)(context, builder, argument).data

        def load(cell: ir.Value) -> ir.Value:
            at = builder.gep(pointer(cells, arguments[0]), [builder.mul(cell, _INT64(lanes))])
            return builder.load(builder.bitcast(at, values.as_pointer()), align=bits // 8)

        def store(vector: ir.Value, array_type: Any, argument: ir.Value) -> None:
            to = builder.gep(pointer(array_type, argument), [arguments[6]])
            to = builder.bitcast(to, vector.type.as_pointer())
            if is_plain:
                written = builder.store(vector, to, align=min(ALIGNMENT, lanes * array_type.dtype.bitwidth // 8))
                written.set_metadata("nontemporal", builder.module.add_metadata([_INT32(1)]))
            else:
                builder.store(vector, to, align=array_type.dtype.bitwidth // 8)

        def index_of(cell: ir.Value) -> ir.Value:
            number = builder.trunc(cell, indices.element) if index_bits < 64 else cell
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
                    is_nan = builder.fcmp_unordered("uno", value, value)
                    first_nan = builder.and_(is_nan, builder.fcmp_ordered("ord", before, before))
                    higher = builder.or_(higher, first_nan)
            else:
                higher = builder.icmp_signed(">", value, before)
            builder.store(builder.select(higher, value, before), best_so_far)
            if with_argmax:
                builder.store(builder.select(higher, index_of(cell), builder.load(its_cell)), its_cell)

        maximum = builder.load(best_so_far)
        if not is_float:
            negative = builder.icmp_signed("<", maximum, ir.Constant(values, None))
            sign = ir.Constant(values, [-(1 << (bits - 1))] * lanes)
            maximum = builder.select(negative, builder.or_(builder.neg(maximum), sign), maximum)
        store(maximum, pooled, arguments[4])
        if with_argmax:
            found = builder.load(its_cell)
            if argmax.dtype.bitwidth < index_bits:
                found = builder.trunc(found, ir.VectorType(ir.IntType(argmax.dtype.bitwidth), lanes))
            store(found, argmax, arguments[5])
        return context.get_dummy_value()

    return types.void(cells, width, window, plain, pooled, argmax, at), codegen


@intrinsic
def _copy_cells(typing: Any, values: Any, first: Any, channels: Any, infinity_bits: Any, cells: Any) -> Any:
    """Copy a block of channels, from `first` on, of a map, `values` (H*W*channels,), to cells (H*W,lanes).

    Returns whether there is a NaN among floats. infinity_bits: None if the map has floats. If it has the bits of 16-bit
    floats, the bits of infinity: the values become int16 in the order of the floats, with NaN above all others.
    """
    bits = cells.dtype.bitwidth
    lanes = BLOCK_BYTES * 8 // bits
    is_float = isinstance(cells.dtype, types.Float)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: tuple) -> Any:
        vector = ir.VectorType(context.get_data_type(cells.dtype), lanes)
        source = context.make_array(values)(context, builder, arguments[0]).data
        target = context.make_array(cells)(context, builder, arguments[4])
        is_nan = cgutils.alloca_once_value(builder, ir.Constant(ir.VectorType(ir.IntType(1), lanes), None))

        def constant(value: int) -> ir.Constant:
            return ir.Constant(vector, [value] * lanes)

        with cgutils.for_range(builder, builder.extract_value(target.shape, 0)) as loop:
            start = builder.add(builder.mul(loop.index, arguments[2]), arguments[1])
            for line in range(0, BLOCK_BYTES * 8 // bits, ALIGNMENT * 8 // bits):
                ahead = builder.add(builder.mul(arguments[2], _INT64(_CELLS_AHEAD)), _INT64(line))
                _prefetch_at(builder, builder.gep(source, [builder.add(start, ahead)]))
            value = builder.load(builder.bitcast(builder.gep(source, [start]), vector.as_pointer()), align=bits // 8)
            if is_float:
                unordered = builder.fcmp_unordered("uno", value, value)
                builder.store(builder.or_(builder.load(is_nan), unordered), is_nan)
            else:
                magnitude = builder.and_(value, constant((1 << (bits - 1)) - 1))
                negative = builder.icmp_signed("<", value, constant(0))
                infinity = builder.insert_element(ir.Constant(vector, ir.Undefined), arguments[3], _INT32(0))
                infinity = builder.shuffle_vector(infinity, infinity, ir.Constant(ir.VectorType(_INT32, lanes), None))
                value = builder.select(negative, builder.neg(magnitude), magnitude)
                above_all = builder.icmp_signed(">", magnitude, infinity)
                value = builder.select(above_all, constant((1 << (bits - 1)) - 1), value)
            to = builder.gep(target.data, [builder.mul(loop.index, _INT64(lanes))])
            builder.store(value, builder.bitcast(to, vector.as_pointer()), align=bits // 8)
        mask = ir.IntType(lanes)
        return builder.icmp_unsigned("!=", builder.bitcast(builder.load(is_nan), mask), mask(0))

    return types.boolean(values, first, channels, infinity_bits, cells), codegen


@intrinsic
def _move_sums(typing: Any, sums: Any, start: Any, result: Any, to: Any) -> Any:
    """Write SUMMED_CHANNELS values from sums[start] on to result[to] on with non-temporal stores, and reset these sums
    to 0.

    Both are one-dimensional, and `to` is at a multiple of ALIGNMENT. If result is uint16, it gets the bits of the
    float32 sums rounded to bfloat16, ties to even. A NaN in the sums has no bits set in the discarded half.
    """
    lanes = ALIGNMENT * 8 // result.dtype.bitwidth

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: tuple) -> Any:
        summed = ir.VectorType(context.get_data_type(sums.dtype), lanes)
        written = ir.VectorType(context.get_data_type(result.dtype), lanes)
        source = builder.gep(context.make_array(sums)(context, builder, arguments[0]).data, [arguments[1]])
        target = builder.gep(context.make_array(result)(context, builder, arguments[2]).data, [arguments[3]])
        for at in map(_INT64, range(0, SUMMED_CHANNELS, lanes)):
            address = builder.bitcast(builder.gep(source, [at]), summed.as_pointer())
            values = builder.load(address, align=sums.dtype.bitwidth // 8)
            builder.store(ir.Constant(summed, None), address, align=sums.dtype.bitwidth // 8)
            if not isinstance(result.dtype, types.Float):
                vector = ir.VectorType(_INT32, lanes)
                half, last, below_half = (ir.Constant(vector, [each] * lanes) for each in (16, 1, 0x7FFF))
                bits = builder.bitcast(values, vector)
                is_odd = builder.and_(builder.lshr(bits, half), last)
                values = builder.trunc(builder.lshr(builder.add(builder.add(bits, below_half), is_odd), half), written)
            store = builder.store(
                values, builder.bitcast(builder.gep(target, [at]), written.as_pointer()), align=ALIGNMENT
            )
            store.set_metadata("nontemporal", builder.module.add_metadata([_INT32(1)]))
        return context.get_dummy_value()

    return types.void(sums, start, result, to), codegen


@intrinsic
def _add_gradients(typing: Any, grad: Any, argmax: Any, start: Any, channels: Any, bins: Any, sums: Any) -> Any:
    """sums[argmax[k], c] += grad[k], k = start + bin * channels + c, for all bins of a RoI and c below SUMMED_CHANNELS.

    An empty bin, whose argmax is the largest integer in all channels, is skipped.

    grad, argmax: one-dimensional; grad and sums (H*W,SUMMED_CHANNELS) have the same dtype, or are bfloat16 bits and
        float32.
    """
    empty = (1 << (argmax.dtype.bitwidth - argmax.dtype.signed)) - 1

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: tuple) -> Any:
        arrays = zip((grad, argmax, sums), (arguments[0], arguments[1], arguments[5]), strict=True)
        grads, cells, summed = (context.make_array(kind)(context, builder, argument).data for kind, argument in arrays)

        def value(address: ir.Value) -> ir.Value:
            read = builder.load(address)
            if isinstance(grad.dtype, types.Float):
                return read
            return builder.bitcast(builder.shl(builder.zext(read, _INT32), _INT32(16)), ir.FloatType())

        with cgutils.for_range(builder, arguments[4]) as loop:
            at = builder.add(arguments[2], builder.mul(loop.index, arguments[3]))
            ahead = builder.add(at, builder.mul(arguments[3], _INT64(_BINS_AHEAD)))
            for array, pointer in (argmax, cells), (grad, grads):
                for line in range(0, SUMMED_CHANNELS, ALIGNMENT * 8 // array.dtype.bitwidth):
                    _prefetch_at(builder, builder.gep(pointer, [builder.add(ahead, _INT64(line))]))
            first = builder.load(builder.gep(cells, [at]))
            with builder.if_then(builder.icmp_unsigned("!=", first, ir.Constant(first.type, empty))):
                for channel in range(SUMMED_CHANNELS):
                    k = builder.add(at, _INT64(channel))
                    cell = builder.zext(builder.load(builder.gep(cells, [k])), _INT64)
                    row = builder.mul(cell, _INT64(SUMMED_CHANNELS))
                    to = builder.gep(summed, [builder.add(row, _INT64(channel))])
                    builder.store(builder.fadd(builder.load(to), value(builder.gep(grads, [k]))), to)
        return context.get_dummy_value()

    return types.void(grad, argmax, start, channels, bins, sums), codegen


def _prefetch_at(builder: ir.IRBuilder, address: ir.Value) -> None:
    address = builder.bitcast(address, ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [address.type, _INT32, _INT32, _INT32])
    function = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
    to_read, keep, data_not_code = _INT32(0), _INT32(3), _INT32(1)
    builder.call(function, [address, to_read, keep, data_not_code])


@intrinsic
def _take(typing: Any, taken: Any) -> Any:
    """Atomic taken[0] += 1; returns the previous value."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: tuple) -> ir.Value:
        data = context.make_array(taken)(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, _INT64(1), "monotonic")

    return types.int64(taken), codegen


# --- loops


@compiled
def _round_half_away(value):  # type: ignore[no-untyped-def]
    magnitude = min(abs(value), CELL_LIMIT)
    whole = math.floor(magnitude)
    cell = int(whole) + int(magnitude - whole >= 0.5)
    return cell if value > 0 else -cell


@compiled
def _bin_edges(rois, r, axis, spatial_scale, limit, first, past):  # type: ignore[no-untyped-def]
    """`reference.bin_edges` for one RoI and axis (1 for x, 2 for y), written to `first` and `past`.

    Every operand is cast to the dtype of the RoIs, since numba promotes float32 with integers to float64.
    """
    real = rois.dtype.type
    start = _round_half_away(rois[r, axis] * real(spatial_scale))
    end = _round_half_away(rois[r, axis + 2] * real(spatial_scale))
    size = real(max(end - start + 1, 1)) / real(len(first))
    for i in range(len(first)):
        first[i] = min(max(math.floor(real(i) * size) + start, 0), limit)
        past[i] = min(max(math.ceil(real(i + 1) * size) + start, 0), limit)


@compiled
def plan(rois, batch_size, spatial_scale, map_hw, pooled_hw):  # type: ignore[no-untyped-def]
    """Row of the first invalid RoI of (R,5) or -1, the windows of all bins, and the RoIs grouped by image.

    Windows: rows from tops to bottoms (R,ph), columns from lefts to rights (R,pw); none if a RoI is invalid.
    """
    bad = -1
    for r in range(len(rois)):
        if not (np.isfinite(rois[r]).all() and rois[r, 0] > -1 and rois[r, 0] < batch_size):
            bad = r
            rois = rois[:0]
            break
    tops, bottoms = np.empty((len(rois), pooled_hw[0]), np.int64), np.empty((len(rois), pooled_hw[0]), np.int64)
    lefts, rights = np.empty((len(rois), pooled_hw[1]), np.int64), np.empty((len(rois), pooled_hw[1]), np.int64)
    for r in range(len(rois)):
        _bin_edges(rois, r, 1, spatial_scale, map_hw[1], lefts[r], rights[r])
        _bin_edges(rois, r, 2, spatial_scale, map_hw[0], tops[r], bottoms[r])
    return bad, (tops, bottoms, lefts, rights), group_by_image(rois[:, 0], batch_size)


@compiled
def group_by_image(images, batch_size):  # type: ignore[no-untyped-def]
    """Rows of the RoIs sorted by image, (R,), and the start of each image in them, (B+1,).

    images: (R,), the image of each RoI. A RoI with a batch index out of range, possible if RoIs are changed before the
    backward pass, is skipped.
    """
    begins = np.zeros(batch_size + 1, np.int64)
    for image in images:
        if -1 < image < batch_size:
            begins[int(image) + 1] += 1
    begins = np.cumsum(begins)
    order, past = np.empty(len(images), np.int64), begins.copy()
    for r in range(len(images)):
        if -1 < images[r] < batch_size:
            image = int(images[r])
            order[past[image]] = r
            past[image] += 1
    return order, begins


@compiled
def pool(maps, by_image, parts, windows, infinity_bits, aligned, pooled, argmax, taken):  # type: ignore[no-untyped-def]
    """Pool maps (B,H,W,C) to pooled and argmax (R,ph,pw,C). A task is one part of the RoIs of an image and one block of
    channels.

    by_image, windows: from `plan`. parts: number of parts of the RoIs of each image. aligned: the rows of pooled and
    argmax start at multiples of ALIGNMENT. argmax: can be None. taken: see threads.py.
    """
    batch_size, height, width, channels = maps.shape
    order, begins = by_image
    lanes = BLOCK_BYTES // maps.itemsize
    blocks = (channels + lanes - 1) // lanes
    cells = np.empty((height * width, lanes), maps.dtype)
    while True:
        task = _take(taken)  # type: ignore[call-arg,var-annotated]
        if task >= batch_size * parts * blocks:
            return
        share, block = divmod(task, blocks)
        image, part = divmod(share, parts)
        rows = order[begins[image] : begins[image + 1]][part::parts]
        if len(rows) == 0:
            continue
        # If channels are not a multiple of a block, the last two blocks overlap and write the same values.
        first = min(block * lanes, channels - lanes)
        flat = maps[image].reshape(-1)
        has_nan = _copy_cells(flat, first, channels, infinity_bits, cells)
        if aligned and not has_nan:
            _pool_block(cells, width, windows, True, pooled, argmax, first, channels, rows)
        else:
            _pool_block(cells, width, windows, None, pooled, argmax, first, channels, rows)


@compiled
def _pool_block(cells, width, windows, plain, pooled, argmax, first, channels, rows):  # type: ignore[no-untyped-def]
    tops, bottoms, lefts, rights = windows
    lanes, bins_high, bins_wide = cells.shape[1], tops.shape[1], lefts.shape[1]
    for r in rows:
        at = r * bins_high * bins_wide * channels + first
        for i in range(bins_high):
            for j in range(bins_wide):
                window = tops[r, i], bottoms[r, i], lefts[r, j], rights[r, j]
                if window[0] < window[1] and window[2] < window[3]:
                    _max_window(cells, width, window, plain, pooled, argmax, at)  # type: ignore[call-arg]
                else:
                    pooled[r, i, j, first : first + lanes] = 0
                    if argmax is not None:
                        argmax[r, i, j, first : first + lanes] = np.iinfo(argmax.dtype).max
                at += channels


@compiled
def scatter(grad, argmax, by_image, real, result, taken):  # type: ignore[no-untyped-def]
    """Add gradients (R,ph,pw,C) to their cells in result (B,H*W,C). A task is SUMMED_CHANNELS channels of an image.

    C is at least SUMMED_CHANNELS, and the bytes of C channels are a multiple of ALIGNMENT. by_image, taken: as in
    `pool`. real: a number of the accumulation dtype: that of grad, or float32 if grad and result are uint16, the bits
    of bfloat16, which are the upper half of a float32.
    """
    batch_size, cells, channels = result.shape
    order, begins = by_image
    bins = grad.shape[1] * grad.shape[2]
    blocks = (channels + SUMMED_CHANNELS - 1) // SUMMED_CHANNELS
    sums = np.zeros((cells, SUMMED_CHANNELS), type(real))
    flat_grad, flat_argmax = grad.reshape(-1), argmax.reshape(-1)
    flat_sums, flat_result = sums.reshape(-1), result.reshape(-1)
    while True:
        task = _take(taken)  # type: ignore[call-arg,var-annotated]
        if task >= batch_size * blocks:
            return
        image, block = divmod(task, blocks)
        # If channels are not a multiple of a block, the last two blocks overlap and write the same sums.
        first = min(block * SUMMED_CHANNELS, channels - SUMMED_CHANNELS)
        for r in order[begins[image] : begins[image + 1]]:
            start = r * bins * channels + first
            _add_gradients(flat_grad, flat_argmax, start, channels, bins, sums)
        for cell in range(cells):
            to = (image * cells + cell) * channels + first
            _move_sums(flat_sums, cell * SUMMED_CHANNELS, flat_result, to)
