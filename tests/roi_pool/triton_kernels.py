"""Tests of the Triton kernels, which test_cuda.py runs: on the CPU if TRITON_INTERPRET=1, else on a GPU."""

import os

import pytest
import torch

from detector.roi_pool import cuda, reference

DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"
NAN, INF = float("nan"), float("inf")
# Inside, tie of rounding, over every edge, off the map, inverted, without size.
ROIS = [
    [0, 10, 20, 150, 130],
    [1, 8, 24, 40, 72],
    [0, -90, -90, 900, 900],
    [1, 300, 300, 400, 400],
    [0, 100, 100, 20, 60],
    [1, 33, 33, 33, 33],
]


def compare(features, rois, pooled_hw, scale, seed=0):
    """Forward with and without argmax, and backward, against the reference."""
    generator = torch.Generator().manual_seed(seed)
    expected, expected_argmax = reference.forward(features, rois, pooled_hw, scale)
    pooled, argmax = cuda.forward(features.to(DEVICE), rois.to(DEVICE), pooled_hw, scale, True)
    same = {"rtol": 0, "atol": 0, "equal_nan": True}
    torch.testing.assert_close(pooled.cpu(), expected, **same)
    assert torch.equal(argmax.cpu(), expected_argmax)
    assert pooled.stride() == expected.stride()
    plain, none = cuda.forward(features.to(DEVICE), rois.to(DEVICE), pooled_hw, scale, False)
    torch.testing.assert_close(plain.cpu(), expected, **same)
    assert none.numel() == 0
    grad = torch.randn(expected.shape, generator=generator).to(features.dtype)
    sizes = features.shape[0], features.shape[2], features.shape[3]
    expected_grad = reference.backward(grad, rois, expected_argmax, *sizes)
    found = cuda.backward(grad.to(DEVICE), rois.to(DEVICE), argmax, *sizes)
    torch.testing.assert_close(found.cpu(), expected_grad)


def features(dtype=torch.float32, channels=5):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, 8, 10, generator=generator).round(decimals=1).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype(dtype):
    compare(features(dtype), torch.tensor(ROIS, dtype=torch.float32), (3, 2), 1 / 16)


def test_more_channels_than_a_block():
    compare(features(channels=520), torch.tensor(ROIS[:3], dtype=torch.float32), (2, 2), 1 / 16)


@pytest.mark.parametrize(("cells", "dtype"), [(57, torch.float32), (121, torch.float32), (29, torch.float64)])
def test_overshooting_bins(cells, dtype):
    row = torch.arange(130, dtype=dtype).view(1, 1, 1, 130)
    compare(row, torch.tensor([[0, 0, 0, cells - 1, 0]], dtype=dtype), (1, 7), 1.0)


def test_ties_of_rounding_and_far_coordinates():
    row = torch.arange(1.0, 13).view(1, 1, 1, 12)
    starts = [7.99, 8, 23.9, 24, 40, 72, -7.9, -8, 0.49999997 * 16, 1e30, -1e30]
    compare(row, torch.tensor([[0, x, 0, x, 0] for x in starts]), (1, 1), 1 / 16)
    compare(row, torch.tensor([[0, -1e30, 0, 1e30, 0]]), (1, 3), 1 / 16)
    # A scale that float32 cannot hold is rounded to it, and the product rounded again: no fused arithmetic.
    rois = torch.rand(40, 5, generator=torch.Generator().manual_seed(1)) * 110
    rois[:, [0, 2, 4]] = 0
    compare(row, rois, (1, 1), 0.1)


def test_features_that_are_not_finite():
    maps = torch.tensor([[1, NAN, NAN], [-INF, -INF, -INF], [INF, 4, -INF]]).view(3, 1, 1, 3)
    compare(maps, torch.tensor([[n, 0, 0, 2, 0] for n in range(3)], dtype=torch.float32), (1, 1), 1.0)


def test_index_of_four_bytes():
    row = torch.arange(70000.0).view(1, 1, 1, 70000)
    rois = torch.tensor([[0.0, 69000, 0, 69010, 0], [0, -5, 0, -4, 0]])
    compare(row, rois, (1, 2), 1.0)


def test_no_rois():
    compare(features(), torch.zeros(0, 5), (2, 2), 1.0)


@pytest.mark.parametrize(("column", "value"), [(0, -1), (0, 2), (0, NAN), (1, NAN), (2, INF), (4, -INF)])
def test_bad_roi_becomes_nan_and_passes_no_gradient(column, value):
    rois = torch.tensor(ROIS[:2], dtype=torch.float32, device=DEVICE)
    rois[0, column] = value
    maps = features().to(DEVICE)
    pooled, argmax = cuda.forward(maps, rois, (2, 2), 1 / 16, True)
    assert pooled[0].isnan().all()
    assert torch.equal(pooled[1], reference.forward(maps, rois[1:], (2, 2), 1 / 16)[0][0])
    grad = cuda.backward(torch.ones_like(pooled), rois, argmax, 2, 8, 10)
    assert grad.sum() == pooled[1].numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-20, 1, 1e20])
def test_deterministic_backward_adds_exactly(dtype, size):
    """Sums of fixed point are those of float64, rounded once, and do not depend on the order."""
    rois = torch.tensor(ROIS[:1] * 6, dtype=torch.float32, device=DEVICE)
    maps = features(dtype).to(DEVICE)
    _, argmax = cuda.forward(maps, rois, (2, 2), 1 / 16, True)
    generator = torch.Generator().manual_seed(0)
    grad = (torch.randn(argmax.shape, generator=generator) * size).to(dtype).to(DEVICE)
    exact = reference.backward(grad.double(), rois, argmax, 2, 8, 10).float().to(dtype)
    torch.use_deterministic_algorithms(True)
    found = [cuda.backward(grad[order], rois, argmax[order], 2, 8, 10) for order in (range(6), [5, 3, 1, 0, 2, 4])]
    poisoned = grad.clone()
    poisoned[0, 0, 0, 0] = NAN
    spread = cuda.backward(poisoned, rois, argmax, 2, 8, 10)
    nothing = cuda.backward(grad * 0, rois, argmax, 2, 8, 10)
    torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(found[0], exact, rtol=0, atol=1e-11 * size)
    assert torch.equal(found[0], found[1])
    assert spread.isnan().any()
    assert not nothing.any()
