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
# Channels whose gradients are added up together: known when compiled, and the sums of a map's cells stay near.
SUMMED_CHANNELS = 64
# So far ahead memory is asked for: cells of a map that is copied, and bins whose gradients are added up. The processor
# foresees reading on, but not the leap to the next cell's or bin's part.
_CELLS_AHEAD, _BINS_AHEAD = 16, 8

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def _max_window(typing: Any, cells: Any, width: Any, window: Any, plain: Any, pooled: Any, argmax: Any, at: Any) -> Any:
    """Maximum over a window of cells, channel by channel, into `pooled` from its value `at` on; its cell's index into
    `argmax` there.

    A loop over channels that numba turns into vector instructions keeps the maxima in memory from cell to cell;
    written with LLVM's own vectors, of whatever width the processor has, they stay in registers.

    cells: (H * W, lanes) in C order, lanes * itemsize being BLOCK_BYTES: floats, or int16 as from `_copy_cells`, which
        come out as the 16-bit floats' bits.
    width: W. window: (top, bottom, left, right), not empty, all int64.
    plain: True for the quick way: no NaN is among the cells, and what is written begins at multiples of ALIGNMENT, so
        that it goes past the caches, without being read first. Else None; the first NaN is the maximum.
    pooled, argmax: in C order, of any dimensions; argmax of integers, or None.
    """
    bits = cells.dtype.bitwidth
    lanes = BLOCK_BYTES * 8 // bits
    is_float, is_plain = isinstance(cells.dtype, types.Float), not isinstance(plain, types.NoneType)
    with_argmax = not isinstance(argmax, types.NoneType)
    # As wide as a value, so that one mask serves both, unless it has to name more cells.
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
    """Copy channels `first` on of a map, `values` (H*W*channels,), to cells (H*W,lanes); is there a NaN among floats?

    infinity_bits: None if the map holds floats. If it holds the bits of 16-bit floats, those of infinity: they become
        int16 in the floats' order, NaN above all.
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
    """Write SUMMED_CHANNELS from sums[start] on to result[to] on, past the caches, without reading result first; set
    these sums to 0.

    Both are one-dimensional, and `to` lies at a multiple of ALIGNMENT. Where result is uint16, it gets the bits of
    float32 sums rounded to bfloat16, ties to even. A sum's NaN has no bits in the half that goes.
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

    An empty bin, whose argmax is the largest number in all channels, is left out.

    grad, argmax: of one dimension; grad and sums (H*W,SUMMED_CHANNELS) of one dtype, or bfloat16's bits and float32.
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
    """taken[0] += 1, whatever other threads do meanwhile; returns what it was."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: tuple) -> ir.Value:
        data = context.make_array(taken)(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, _INT64(1), "monotonic")

    return types.int64(taken), codegen


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
def plan(rois, batch_size, spatial_scale, map_hw, pooled_hw):  # type: ignore[no-untyped-def]
    """The row of the first bad one of RoIs (R,5) or -1, the windows of their bins, and which are each image's.

    Windows: rows from tops to bottoms (R,ph), columns from lefts to rights (R,pw); none if a RoI is bad.
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


@njit(nogil=True, cache=True)
def group_by_image(images, batch_size):  # type: ignore[no-untyped-def]
    """The RoIs' rows, those of the first image first, and where each image's begin, (R,) and (B+1,).

    images: each RoI's image, (R,). A RoI of no image of the batch, as after RoIs were changed before the backward pass,
    is left out.
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


@njit(nogil=True, cache=True)
def pool(maps, by_image, parts, windows, infinity_bits, aligned, pooled, argmax, taken):  # type: ignore[no-untyped-def]
    """Pool maps (B,H,W,C) to pooled and argmax (R,ph,pw,C), in tasks: an image, a part of its RoIs, some channels.

    by_image, windows: what `plan` returns. parts: of each image's RoIs. aligned: the rows of pooled and argmax begin at
    multiples of ALIGNMENT. argmax: or None. taken: see threads.py.
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
        # Where channels are no multiple of a block, the last two blocks share some, and write the same values.
        first = min(block * lanes, channels - lanes)
        flat = maps[image].reshape(-1)
        has_nan = _copy_cells(flat, first, channels, infinity_bits, cells)
        if aligned and not has_nan:
            _pool_block(cells, width, windows, True, pooled, argmax, first, channels, rows)
        else:
            _pool_block(cells, width, windows, None, pooled, argmax, first, channels, rows)


@njit(nogil=True, cache=True)
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


@njit(nogil=True, cache=True)
def scatter(grad, argmax, by_image, real, result, taken):  # type: ignore[no-untyped-def]
    """Add gradients (R,ph,pw,C) to their cells in result (B,H*W,C), in tasks: SUMMED_CHANNELS of an image.

    C is SUMMED_CHANNELS at least, and so many channels end at a multiple of ALIGNMENT. by_image, taken: as in `pool`.
    real: a number of the dtype to add up in: grad's own, or float32 where grad and result are uint16, which are the
    bits of bfloat16: the upper half of a float32's.
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
        # Where channels are no multiple of a block, the last two blocks share some, and write the same sums.
        first = min(block * SUMMED_CHANNELS, channels - SUMMED_CHANNELS)
        for r in order[begins[image] : begins[image + 1]]:
            start = r * bins * channels + first
            _add_gradients(flat_grad, flat_argmax, start, channels, bins, sums)
        for cell in range(cells):
            to = (image * cells + cell) * channels + first
            _move_sums(flat_sums, cell * SUMMED_CHANNELS, flat_result, to)
