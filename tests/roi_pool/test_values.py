"""Every value and gradient is that of torchvision's kernel, which is also Caffe's."""

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.roi_pool import reference, roi_pool


def random_rois(count, batch_size, width, height, generator):
    """RoIs of all sizes in and around the map, a third on ties of rounding, some inverted or without size."""
    centers = torch.rand(count, 2, generator=generator) * 1.4 - 0.2
    halves = torch.rand(count, 2, generator=generator) ** 3 * 0.7 - 0.03
    boxes = torch.cat([centers - halves, centers + halves], 1) * torch.tensor([width, height] * 2)
    boxes[::3] = (boxes[::3] / 8).round() * 8
    images = torch.randint(batch_size, (count, 1), generator=generator)
    return torch.cat([images, boxes], 1).float()


@pytest.mark.parametrize(
    ("shape", "output_size", "scale", "count"),
    [
        ((1, 64, 38, 63), 7, 1 / 16, 4000),  # whole blocks of channels, each row at a cache line
        ((3, 3, 20, 31), (7, 7), 1 / 16, 3000),
        ((2, 45, 50, 34), (6, 3), 1 / 8, 2000),  # a block and a part of one, rows anywhere
        ((2, 96, 20, 31), 7, 1 / 16, 1000),  # rows at a cache line, but blocks of sums overlap
        ((2, 1, 9, 130), (1, 7), 1 / 2, 2000),
        ((1, 2, 1, 1), 2, 1 / 32, 500),
        ((1, 5, 300, 280), 7, 1.0, 500),  # so many cells that their index takes four bytes
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equal_to_torchvision(shape, output_size, scale, count, dtype, memory_format):
    generator = torch.Generator().manual_seed(count)
    features = torch.randn(shape, dtype=dtype, generator=generator).contiguous(memory_format=memory_format)
    features = features.round(decimals=1)  # equal values, so that the first must be chosen
    rois = random_rois(count, shape[0], shape[3] / scale, shape[2] / scale, generator).to(dtype)
    mine, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    pooled = roi_pool(mine, rois, output_size, scale)
    expected = torchvision.ops.roi_pool(theirs, rois, output_size, scale)
    assert torch.equal(pooled, expected)
    assert torch.equal(roi_pool(features, rois, output_size, scale), expected)
    grad = torch.randn(pooled.shape, dtype=dtype, generator=generator)
    pooled.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=1e-5)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_equal_to_torchvision_and_reference_for_any_roi(data):
    sizes = st.integers(1, 12)
    batch_size, height, width = data.draw(st.integers(1, 3)), data.draw(sizes), data.draw(sizes)
    pooled_hw = data.draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    scale = data.draw(st.sampled_from([1.0, 0.5, 0.25, 1 / 16, 0.3]))
    halves = st.integers(-30, 60).map(lambda n: n / 2 / scale)
    coordinate = halves | st.floats(-20, 40, width=32).map(lambda v: v / scale)
    roi = st.tuples(st.integers(0, batch_size - 1), *[coordinate] * 4)
    rois = torch.tensor(data.draw(st.lists(roi, max_size=6)), dtype=torch.float32).reshape(-1, 5)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    features = torch.randint(-3, 4, (batch_size, 3, height, width), generator=generator).float()
    mine, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    pooled = roi_pool(mine, rois, pooled_hw, scale)
    expected = torchvision.ops.roi_pool(theirs, rois, pooled_hw, scale)
    assert torch.equal(pooled, expected)
    slow, argmax = reference.forward(features, rois, pooled_hw, scale)
    assert torch.equal(slow, expected)
    grad = torch.randint(-9, 9, pooled.shape, generator=generator).float()  # sums of these are exact
    pooled.backward(grad)
    expected.backward(grad)
    assert torch.equal(mine.grad, theirs.grad)
    assert torch.equal(reference.backward(grad, rois, argmax, batch_size, height, width), theirs.grad)


def columns(width):
    """A map of one row whose cell x holds x + 1."""
    return torch.arange(1.0, width + 1).view(1, 1, 1, width)


@pytest.mark.parametrize(("x", "cell"), [(7.99, 0), (8, 1), (23.9, 1), (24, 2), (40, 3), (72, 5), (-7.9, 0), (-8, -1)])
def test_halves_are_rounded_away_from_zero(x, cell):
    pooled = roi_pool(columns(8), torch.tensor([[0, x, 0, x, 0]]), 1, 1 / 16)
    assert pooled.item() == cell + 1  # at cell -1 the RoI is off the map and gives 0


@pytest.mark.parametrize(
    ("cells", "dtype", "last"),
    [
        (57, torch.float32, 58),
        (114, torch.float32, 115),
        (121, torch.float32, 122),
        (56, torch.float32, 56),
        (29, torch.float32, 29),
        (29, torch.float64, 30),
        (57, torch.float64, 57),
    ],
)
def test_last_of_seven_bins_overshoots_at_some_sizes(cells, dtype, last):
    features = columns(140).to(dtype)
    roi = torch.tensor([[0.0, 0, 0, cells - 1, 0]], dtype=dtype)
    assert roi_pool(features, roi, (1, 7)).max() == last
    assert torchvision.ops.roi_pool(features, roi, (1, 7)).max() == last


@pytest.mark.parametrize(
    ("roi", "expected"),
    [
        ([0, 1, 0, 1, 0], [2, 2, 2]),  # one cell is in every bin
        ([0, 1, 0, 2, 0], [2, 3, 3]),  # two cells in three bins
        ([0, 3, 0, 1, 0], [4, 4, 4]),  # inverted: one cell, at its start
        ([0, -2, 0, 1, 0], [0, 1, 2]),  # the first bin lies off the map
        ([0, 4, 0, 9, 0], [5, 0, 0]),  # over the right edge (cells 4 | 6 | 8)
        ([0, -9, 0, -5, 0], [0, 0, 0]),  # left of the map
        ([0, 5, 0, 7, 0], [0, 0, 0]),  # right of it
        ([0, 0, -4, 4, -2], [0, 0, 0]),  # above
        ([0, 0, 1, 4, 3], [0, 0, 0]),  # below
        ([0, -1e30, 0, 1e30, 0], [0, 5, 0]),  # beyond 32 bits
        ([0, 1e30, 0, 1e30, 0], [0, 0, 0]),
    ],
)
def test_borders(roi, expected):
    features = columns(5).requires_grad_()
    pooled = roi_pool(features, torch.tensor([roi], dtype=torch.float32), (1, 3))
    assert pooled.flatten().tolist() == expected
    pooled.sum().backward()
    counts = [expected.count(value) for value in range(1, 6)]
    assert features.grad.flatten().tolist() == counts  # empty bins pass no gradient


def test_no_rois_give_an_empty_result_and_zero_gradients():
    features = torch.ones(2, 3, 4, 5, requires_grad=True)
    pooled = roi_pool(features, torch.zeros(0, 5), (2, 3))
    assert pooled.shape == (0, 3, 2, 3)
    pooled.sum().backward()
    assert torch.equal(features.grad, torch.zeros(2, 3, 4, 5))


def test_the_first_of_equal_values_gets_the_gradient():
    features = torch.tensor([[[[1.0, 5, 5], [5, 2, 5]]]], requires_grad=True)
    roi_pool(features, torch.tensor([[0.0, 0, 0, 2, 1]]), 1).backward()
    assert features.grad.tolist() == [[[[0, 1, 0], [0, 0, 0]]]]


@pytest.mark.parametrize("channels", [1, 96])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_features_that_are_not_finite_come_out_as_they_are(dtype, channels):
    nan, inf = float("nan"), float("inf")
    rows = [[1, nan, 2], [-nan, inf, 3], [-inf, -inf, -inf], [inf, 4, -inf]]
    features = torch.tensor(rows, dtype=dtype).view(4, 1, 1, 3).repeat(1, channels, 1, 1).requires_grad_()
    rois = torch.tensor([[image, 0, 0, 2, 0] for image in range(4)], dtype=torch.float32)
    pooled = roi_pool(features, rois, 1).flatten(1)
    for channel in range(channels):
        assert pooled[:, channel].isnan().tolist() == [True, True, False, False]
        assert pooled[2:, channel].tolist() == [-inf, inf]
    pooled.backward(torch.ones_like(pooled))
    for channel in range(channels):
        assert features.grad[:, channel].flatten(1).tolist() == [[0, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]]
    for other in (reference.forward(features.detach(), rois, (1, 1), 1.0)[0], roi_pool(features.detach(), rois, 1)):
        torch.testing.assert_close(other.flatten(1), pooled, rtol=0, atol=0, equal_nan=True)
    assert reference.forward(features.detach(), rois, (1, 1), 1.0)[1][:, 0].flatten().tolist() == [1, 0, 0, 0]


def test_bfloat16_gradients_are_summed_as_float32():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 70, 9, 11, generator=generator).bfloat16()
    rois = random_rois(300, 2, 11, 9, generator)
    grad = torch.randn(300, 70, 3, 3, generator=generator).bfloat16()
    rois[40:44, 1:] = torch.tensor([0.0, 0, 10, 8])
    # Sums on ties of rounding, infinite ones and ones that are no number, with all bits set.
    grad[:40] = (grad[:40] * 64).round() / 64
    grad[40, 3], grad[41, 5], grad[42, 5] = torch.inf, -torch.inf, torch.inf
    grad[43, 7] = torch.tensor([0x7FFF], dtype=torch.int16).view(torch.bfloat16)
    sums = {}
    for dtype in (torch.bfloat16, torch.float32):
        leaf = features.to(dtype).requires_grad_()
        [sums[dtype]] = torch.autograd.grad(roi_pool(leaf, rois, 3), leaf, grad.to(dtype))
    expected = sums[torch.float32].bfloat16()
    assert expected.isinf().any()
    assert expected.isnan().any()
    torch.testing.assert_close(sums[torch.bfloat16], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("channels", [40, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_features_have_exact_maxima_and_float32_sums(dtype, channels):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, channels, 20, 30, generator=generator).to(dtype)
    features[0, :, :4, :4] = torch.tensor([0.0, -0.0, -1, -65504], dtype=dtype)
    features[0, 0, 0, 0] = 2**-24  # denormal in float16
    rois = random_rois(300, 2, 480, 320, generator)
    mine, exact = features.clone().requires_grad_(), features.float().requires_grad_()
    pooled, expected = roi_pool(mine, rois, 7, 1 / 16), roi_pool(exact, rois, 7, 1 / 16)
    assert pooled.dtype == dtype
    assert torch.equal(pooled.float(), expected)
    assert torch.equal(roi_pool(features, rois, 7, 1 / 16).float(), expected)
    grad = torch.randn(pooled.shape, generator=generator).to(dtype)
    pooled.backward(grad)
    expected.backward(grad.float())
    assert torch.equal(mine.grad, exact.grad.to(dtype))


def test_coordinates_keep_full_precision_beside_16_bit_features():
    # In bfloat16, 391 would become 392 = 24.5 * 16 and the RoI one cell to the right.
    pooled = roi_pool(columns(30).bfloat16(), torch.tensor([[0, 391.0, 0, 391, 0]]), 1, 1 / 16)
    assert pooled.item() == 25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("width", "index"), [(65534, torch.uint16), (65535, torch.int32), (65600, torch.int32)])
def test_every_cell_has_an_index_of_its_own(width, index, dtype):
    assert reference.argmax_dtype(1, width) == index
    features = torch.zeros(1, 1, 1, width, dtype=dtype)
    features[..., -1] = 1
    features.requires_grad_()
    roi_pool(features, torch.tensor([[0.0, 0, 0, width - 1, 0], [0, -5, 0, -3, 0]]), 1).sum().backward()
    assert features.grad.nonzero().tolist() == [[0, 0, 0, width - 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_several_nans_the_first_gets_the_gradient(dtype):
    features = torch.tensor([[[[1.0, torch.nan, 7], [torch.nan, 2, torch.nan]]]], dtype=dtype, requires_grad=True)
    roi_pool(features, torch.tensor([[0.0, 0, 0, 2, 1]]), 1).backward()
    assert features.grad.tolist() == [[[[0, 1, 0], [0, 0, 0]]]]


@pytest.mark.parametrize("image", [2, 1e9, -3, float("nan")])
def test_rois_changed_before_backward_write_nowhere_else(image):
    features = torch.ones(2, 64, 2, 2, requires_grad=True)
    array = np.array([[0, 0, 0, 1, 1], [1, 0, 0, 1, 1]], np.float32)
    pooled = roi_pool(features, torch.from_numpy(array), 1)
    array[0, 0] = image
    pooled.sum().backward()
    assert features.grad.sum(dim=(1, 2, 3)).tolist() == [0, 64]


def test_forward_and_backward_read_a_batch_index_alike():
    features = torch.rand(2, 1, 2, 2, requires_grad=True)
    rois = torch.tensor([[1 - 1e-10, 0, 0, 1, 1]], dtype=torch.float64)  # 1 in float32
    roi_pool(features, rois, 1).backward()
    assert features.grad.sum(dim=(1, 2, 3)).tolist() == [0, 1]


def test_boxes_of_each_image_may_come_as_a_list():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 4, 8, 8, generator=generator)
    boxes = [random_rois(count, 1, 8, 8, generator)[:, 1:] for count in (3, 0, 2)]
    expected = torchvision.ops.roi_pool(features, boxes, 2)
    assert torch.equal(roi_pool(features, boxes, 2), expected)
