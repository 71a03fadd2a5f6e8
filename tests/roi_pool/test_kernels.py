"""The vector operations of kernels.py, each compared with a few lines of numpy."""

import numpy as np
import pytest
import torch
from numba import njit

from detector.roi_pool import kernels
from detector.roi_pool.kernels import BLOCK_BYTES, SUMMED_CHANNELS
from detector.roi_pool.memory import ALIGNMENT

INFINITY = np.int16(0x7F80)  # the bits of infinity in bfloat16


@njit
def max_window(cells, width, window, plain, pooled, argmax):
    kernels._max_window(cells, width, window, plain, pooled, argmax, 0)


@njit
def copy_cells(values, first, channels, infinity_bits, cells):
    return kernels._copy_cells(values, first, channels, infinity_bits, cells)


@njit
def move_sums(sums, result, to):
    kernels._move_sums(sums, 0, result, to)


@njit
def add_gradients(grad, argmax, channels, bins, sums):
    kernels._add_gradients(grad, argmax, 0, channels, bins, sums)


def bits_of_bfloat16(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).bfloat16().view(torch.int16).numpy()


def aligned(count: int, dtype: type) -> np.ndarray:
    raw = np.zeros(count * np.dtype(dtype).itemsize + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count * np.dtype(dtype).itemsize].view(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("plain", [True, None])
def test_max_window(dtype, plain):
    lanes, width = BLOCK_BYTES // np.dtype(dtype).itemsize, 5
    cells = np.random.default_rng(0).normal(size=(4 * width, lanes)).astype(dtype)
    pooled, argmax = aligned(lanes, dtype), aligned(lanes, np.int32)
    max_window(cells, width, (1, 3, 2, 5), plain, pooled, argmax)
    inside = np.array([7, 8, 9, 12, 13, 14])  # rows 1 and 2, columns 2 to 4
    np.testing.assert_array_equal(pooled, cells[inside].max(axis=0))
    np.testing.assert_array_equal(argmax, inside[cells[inside].argmax(axis=0)])


def test_max_window_of_equal_values_and_nan():
    lanes = BLOCK_BYTES // 4
    cells = np.ones((6, lanes), np.float32)
    cells[3, 0] = cells[4, 0] = np.nan
    pooled, argmax = aligned(lanes, np.float32), aligned(lanes, np.int32)
    max_window(cells, 6, (0, 1, 1, 6), None, pooled, argmax)
    assert np.isnan(pooled[0])
    assert argmax[0] == 3  # the first NaN
    assert (pooled[1:] == 1).all()
    assert (argmax[1:] == 1).all()  # the first of equal values


def test_max_window_of_16_bit_floats():
    lanes = BLOCK_BYTES // 2
    values = np.random.default_rng(0).normal(size=(6, lanes)).astype(np.float32)
    values = torch.from_numpy(values).bfloat16().float().numpy()
    cells, pooled = np.zeros((6, lanes), np.int16), aligned(lanes, np.int16)
    copy_cells(bits_of_bfloat16(values).reshape(-1), 0, lanes, INFINITY, cells)
    max_window(cells, 6, (0, 1, 0, 6), None, pooled, None)
    np.testing.assert_array_equal(pooled, bits_of_bfloat16(values.max(axis=0)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_copy_cells(dtype):
    lanes, channels = BLOCK_BYTES // np.dtype(dtype).itemsize, BLOCK_BYTES // np.dtype(dtype).itemsize + 7
    values = np.random.default_rng(0).normal(size=(30, channels)).astype(dtype)
    cells = np.zeros((30, lanes), dtype)
    assert not copy_cells(values.reshape(-1), 7, channels, None, cells)
    np.testing.assert_array_equal(cells, values[:, 7:])
    values[29, channels - 1] = np.nan
    assert copy_cells(values.reshape(-1), 7, channels, None, cells)


def test_copy_cells_keeps_the_order_of_16_bit_floats():
    lanes = BLOCK_BYTES // 2
    values = np.array([-np.inf, -2.5, -1e-40, 0, 1e-40, 1, 2.5, np.inf, np.nan], np.float32)
    cells = np.zeros((len(values), lanes), np.int16)
    copy_cells(bits_of_bfloat16(values).repeat(lanes), 0, lanes, INFINITY, cells)
    assert (np.diff(cells[:, 0].astype(int)) > 0).all()
    assert (cells == cells[:, :1]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_move_sums(dtype):
    sums = np.arange(SUMMED_CHANNELS, dtype=dtype)
    result = aligned(4 * SUMMED_CHANNELS, dtype)
    move_sums(sums, result, 2 * SUMMED_CHANNELS)
    np.testing.assert_array_equal(result.reshape(4, -1)[2], np.arange(SUMMED_CHANNELS))
    assert not sums.any()
    assert not result.reshape(4, -1)[[0, 1, 3]].any()


def test_move_sums_rounds_to_bfloat16():
    values = np.random.default_rng(0).normal(size=SUMMED_CHANNELS).astype(np.float32)
    values[:2] = np.array([0x3F808000, 0x3F818000], np.uint32).view(np.float32)  # ties, to even
    result = aligned(SUMMED_CHANNELS, np.uint16)
    move_sums(values.copy(), result, 0)
    np.testing.assert_array_equal(result.view(np.int16), bits_of_bfloat16(values))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_add_gradients(dtype):
    generator, channels = np.random.default_rng(0), SUMMED_CHANNELS + 8
    grad = generator.normal(size=(9, channels)).astype(dtype)
    argmax = generator.integers(0, 6, (9, channels)).astype(np.int32)
    argmax[4] = np.iinfo(np.int32).max  # an empty bin
    sums, expected = np.zeros((6, SUMMED_CHANNELS), dtype), np.zeros((6, SUMMED_CHANNELS), dtype)
    add_gradients(grad.reshape(-1), argmax.reshape(-1), channels, 9, sums)
    for k in (0, 1, 2, 3, 5, 6, 7, 8):
        expected[argmax[k, :SUMMED_CHANNELS], np.arange(SUMMED_CHANNELS)] += grad[k, :SUMMED_CHANNELS]
    np.testing.assert_array_equal(sums, expected)
