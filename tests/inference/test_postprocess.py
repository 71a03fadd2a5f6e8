import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms

from detector.boxes import BoxCoder, clip
from detector.inference.postprocess import ImageFrames, find_candidates, finish, postprocess_again
from detector.settings import Detect, GivenDetect
from detector.structures import Detections

CODER = BoxCoder((0.1, 0.1, 0.2, 0.2))
PROPOSALS = torch.tensor(
    [
        [0.0, 0.0, 20.0, 20.0],
        [1.0, 0.0, 21.0, 20.0],  # overlaps the first by 0.9
        [0.0, 0.0, 20.0, 6.1],  # by 0.305
        [40.0, 10.0, 60.0, 30.0],
    ]
)
PROBABILITIES = torch.tensor([[0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1], [0.02, 0.02, 0.96]])
LOOSE = Detect(score_threshold=0.15, nms_iou=0.5, max_detections=100)


def postprocess(logits, deltas, proposals, image_hw, original_hw, settings):
    found = find_candidates(logits, deltas, proposals, CODER, image_hw, settings)
    return finish(found, ImageFrames("a", image_hw, original_hw), settings)


def run(settings: Detect, deltas: torch.Tensor | None = None, original_hw=(50, 100), image_hw=(50, 100)):
    deltas = torch.zeros(4, 2, 4) if deltas is None else deltas
    return postprocess(PROBABILITIES.log(), deltas, PROPOSALS, image_hw, original_hw, settings)


def test_suppression_is_by_class_and_the_result_is_sorted():
    found = run(LOOSE)
    assert found.labels.tolist() == [2, 1, 1]
    np.testing.assert_allclose(found.scores, [0.96, 0.8, 0.4], atol=1e-6)
    np.testing.assert_allclose(found.boxes, PROPOSALS[[3, 0, 2]])
    assert found.image_id == "a"


def test_proposals_of_detections_are_in_the_original_frame():
    deltas = torch.full((4, 2, 4), 0.5)
    found = run(LOOSE, deltas, original_hw=(100, 300))
    np.testing.assert_allclose(found.proposals, PROPOSALS[[3, 0, 2]] * torch.tensor([3, 2, 3, 2]))
    assert not np.allclose(found.proposals, found.boxes, atol=1)


def test_each_setting_has_its_effect():
    assert len(run(LOOSE.with_values(nms_iou=0.3)).scores) == 2
    assert len(run(LOOSE.with_values(nms_iou=0.95)).scores) == 4
    assert len(run(LOOSE.with_values(score_threshold=0.5)).scores) == 2
    assert run(LOOSE.with_values(max_detections=1)).labels.tolist() == [2]
    assert len(run(LOOSE.with_values(score_threshold=0.97)).scores) == 0


def test_soft_suppression_lowers_scores_of_boxes_that_overlap():
    """The second box overlaps the first by 380 / 420, and the third by 115.9 / 406.1."""
    soft = LOOSE.with_values(nms="soft", score_threshold=0.0)
    found = run(soft)
    assert len(found.scores) == 8
    of_first_class = found.scores[found.labels == 1]
    third = 0.4 * math.exp(-(0.305**2) / 0.5)
    second = 0.7 * math.exp(-((380 / 420) ** 2) / 0.5) * math.exp(-((115.9 / 406.1) ** 2) / 0.5)
    np.testing.assert_allclose(of_first_class, [0.8, third, second, 0.02], rtol=1e-5)
    assert len(run(soft.with_values(score_threshold=0.3)).scores) == 3
    milder = run(soft.with_values(soft_nms_sigma=5.0)).scores
    assert milder.sum() > found.scores.sum()
    assert run(soft.with_values(max_detections=2)).scores.tolist() == found.scores[:2].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_decoding_above_the_threshold_equals_decoding_everything(seed):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(300, 2, generator=generator) * 80
    proposals = torch.cat([corners, corners + 1 + torch.rand(300, 2, generator=generator) * 30], dim=1)
    logits, deltas = torch.randn(300, 6, generator=generator), torch.randn(300, 5, 4, generator=generator)
    found = postprocess(logits, deltas, proposals, (90, 100), (90, 100), LOOSE)
    scores, boxes = logits.softmax(dim=1)[:, 1:], clip(CODER.decode(deltas, proposals), (90, 100))
    row, column = torch.nonzero((scores > 0.15) & (boxes[..., 2:] > boxes[..., :2]).all(dim=2), as_tuple=True)
    keep = batched_nms(boxes[row, column].double(), scores[row, column].double(), column, 0.5)[:100]
    assert len(keep) > 50
    np.testing.assert_array_equal(found.boxes, boxes[row, column][keep].numpy())
    np.testing.assert_array_equal(found.scores, scores[row, column][keep].numpy())


def test_without_box_regression_detections_are_proposals():
    deltas = torch.ones(4, 2, 4)
    assert not np.array_equal(run(LOOSE, deltas).boxes[0], PROPOSALS[3])
    assert np.array_equal(run(LOOSE.with_values(regress_boxes=False), deltas).boxes[0], PROPOSALS[3])


def test_boxes_are_clipped_and_scaled_to_the_original_frame():
    deltas = torch.zeros(4, 2, 4)
    deltas[3, 1, 0] = 20.0  # two widths to the right: 80 to 100
    deltas[3, 1, 1] = 10.0  # one height down: 30 to 50
    found = run(LOOSE, deltas, image_hw=(40, 90), original_hw=(80, 270))
    np.testing.assert_allclose(found.boxes[0], [240, 60, 270, 80], atol=1e-3)


def test_a_box_moved_out_of_the_image_disappears():
    deltas = torch.zeros(4, 2, 4)
    deltas[3, 1, 0] = 50.0
    assert 2 not in run(LOOSE, deltas).labels


def test_no_proposals():
    none = postprocess(torch.zeros(0, 3), torch.zeros(0, 2, 4), torch.zeros(0, 4), (5, 5), (5, 5), LOOSE)
    assert none.boxes.shape == (0, 4)
    assert len(none.scores) == len(none.labels) == 0


def test_suppression_of_many_classes_is_that_of_each_alone():
    """Two boxes whose overlap is a hair below the limit, in the last class of many and at the edge of a large image."""
    boxes = np.array([[20_000, 0, 20_000.5, 1], [20_000.17, 0, 20_000.67, 1]], np.float32)
    others = np.tile(np.array([[0, 0, 30_000, 1]], np.float32), (200, 1))
    scores, labels = np.linspace(1, 0.5, 202).astype(np.float32), np.arange(1, 203)
    labels[1] = 1
    alone = postprocess_again(Detections("a", boxes, labels[:2], scores[:2]), GivenDetect(nms_iou=0.5))
    labels[:2] = 250
    among = postprocess_again(Detections("a", np.vstack([boxes, others]), labels, scores), GivenDetect(nms_iou=0.5))
    assert len(alone.scores) == (among.labels == 250).sum() == 2


def test_saved_detections_are_suppressed_as_those_of_the_network():
    everything = run(Detect(score_threshold=0.0, nms_iou=1.0, max_detections=1000))
    shuffled = replace(
        everything, **{key: getattr(everything, key)[::-1].copy() for key in ("boxes", "labels", "scores")}
    )
    for settings in (
        LOOSE,
        LOOSE.with_values(nms_iou=0.3),
        LOOSE.with_values(max_detections=1),
        Detect(score_threshold=0.5),
        LOOSE.with_values(nms="soft", soft_nms_sigma=0.3),
    ):
        again = postprocess_again(shuffled, settings)
        direct = run(settings)
        assert again.image_id == "a"
        for key in ("boxes", "labels", "scores"):
            np.testing.assert_array_equal(getattr(again, key), getattr(direct, key))
    assert len(postprocess_again(shuffled, GivenDetect()).scores) == len(everything.scores) == 8
