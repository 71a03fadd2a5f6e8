import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask

from detector.box_arrays import box_iou_array
from detector.boxes import BoxCoder, areas, box_iou, clip
from tests.helpers.batches import random_boxes

CODER = BoxCoder((0.1, 0.1, 0.2, 0.2))


def test_overlaps_of_literal_boxes():
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    others = torch.tensor(
        [[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [10.0, 0.0, 20.0, 10.0], [3.0, 3.0, 3.0, 3.0]]
    )
    assert box_iou(box, others).tolist() == [[1.0, pytest.approx(1 / 3), 0.0, 0.0]]


def test_overlap_of_two_boxes_without_area_is_0_not_nan():
    point = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    assert box_iou(point, point).tolist() == [[0.0]]


@given(st.integers(0, 1000))
def test_overlaps_equal_pycocotools(seed):
    boxes, others = random_boxes(7, seed), random_boxes(5, seed + 1)
    as_xywh = [torch.cat([b[:, :2], b[:, 2:] - b[:, :2]], dim=1).double().numpy() for b in (boxes, others)]
    expected = mask.iou(*as_xywh, np.zeros(5, dtype=np.uint8))
    np.testing.assert_allclose(box_iou(boxes, others).numpy(), expected, atol=1e-5)


@given(st.integers(0, 1000))
def test_ious_of_arrays_are_those_of_tensors(seed):
    boxes, others = random_boxes(7, seed), random_boxes(5, seed + 1)
    boxes[0], boxes[1], boxes[2], others[0] = torch.nan, 3e38, others[1], boxes[3, [0, 1, 0, 1]]  # without area
    found = box_iou_array(boxes.numpy(), others.numpy())
    np.testing.assert_array_equal(found, box_iou(boxes, others).numpy())
    assert found.dtype == np.float32
    assert box_iou_array(boxes.numpy(), np.zeros((0, 4), np.float32)).shape == (7, 0)


def test_overlaps_and_areas_of_nothing():
    none = torch.zeros(0, 4)
    assert box_iou(none, random_boxes(3, 0)).shape == (0, 3)
    assert areas(none).shape == (0,)


def test_clip_cuts_at_width_and_height():
    boxes = torch.tensor([[-5.0, -6.0, 70.0, 80.0], [1.0, 2.0, 3.0, 4.0]])
    assert clip(boxes, (40, 60)).tolist() == [[0.0, 0.0, 60.0, 40.0], [1.0, 2.0, 3.0, 4.0]]


def test_encode_of_literal_boxes():
    proposal = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    target = torch.tensor([[5.0, 10.0, 25.0, 20.0]])  # centre (15, 15), size (20, 10); the proposal's (5, 10), (10, 20)
    deltas = BoxCoder(std=(1, 1, 1, 1)).encode(target, proposal)
    assert deltas[0].tolist() == pytest.approx([1.0, 0.25, math.log(2), math.log(0.5)])
    normalised = BoxCoder(std=(0.1, 0.1, 0.2, 0.2)).encode(target, proposal)
    assert normalised[0].tolist() == pytest.approx([10.0, 2.5, 5 * math.log(2), 5 * math.log(0.5)])


@given(st.integers(0, 1000))
def test_decode_undoes_encode(seed):
    coder, targets, proposals = CODER, random_boxes(9, seed), random_boxes(9, seed + 1)
    decoded = coder.decode(coder.encode(targets, proposals)[:, None], proposals)[:, 0]
    torch.testing.assert_close(decoded, targets, atol=1e-3, rtol=1e-4)


def test_decode_bounds_wild_deltas():
    proposal = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    box = CODER.decode(torch.full((1, 1, 4), 1e4) * torch.tensor([0.0, 0.0, 1.0, 1.0]), proposal)[0, 0]
    assert (box[2] - box[0]).item() == pytest.approx(1000, rel=1e-4)
