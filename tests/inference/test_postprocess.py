from dataclasses import replace

import numpy as np
import torch

from detector.boxes import BoxCoder
from detector.inference.postprocess import postprocess, postprocess_again
from detector.settings import Detect
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


def run(settings: Detect, deltas: torch.Tensor | None = None, original_hw=(50, 100), image_hw=(50, 100)):
    deltas = torch.zeros(4, 2, 4) if deltas is None else deltas
    return postprocess(PROBABILITIES.log(), deltas, PROPOSALS, CODER, "a", image_hw, original_hw, settings)


def test_suppression_is_by_class_and_the_result_is_sorted():
    found = run(LOOSE)
    assert found.labels.tolist() == [2, 1, 1]
    np.testing.assert_allclose(found.scores, [0.96, 0.8, 0.4], atol=1e-6)
    np.testing.assert_allclose(found.boxes, PROPOSALS[[3, 0, 2]])
    assert found.image_id == "a"


def test_each_setting_has_its_effect():
    assert len(run(LOOSE.with_values(nms_iou=0.3)).scores) == 2
    assert len(run(LOOSE.with_values(nms_iou=0.95)).scores) == 4
    assert len(run(LOOSE.with_values(score_threshold=0.5)).scores) == 2
    assert run(LOOSE.with_values(max_detections=1)).labels.tolist() == [2]
    assert len(run(LOOSE.with_values(score_threshold=0.97)).scores) == 0


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
    none = postprocess(
        torch.zeros(0, 3),
        torch.zeros(0, 2, 4),
        torch.zeros(0, 4),
        CODER,
        "a",
        (5, 5),
        (5, 5),
        LOOSE,
    )
    assert none.boxes.shape == (0, 4)
    assert len(none.scores) == len(none.labels) == 0


def test_suppression_of_many_classes_far_out_is_that_of_each_alone():
    """Two boxes whose overlap is a hair below the limit, in the last class of many and at the edge of a large image."""
    boxes = np.array([[20_000, 0, 20_000.5, 1], [20_000.17, 0, 20_000.67, 1]], np.float32)
    others = np.tile(np.array([[0, 0, 30_000, 1]], np.float32), (200, 1))
    scores, labels = np.linspace(1, 0.5, 202).astype(np.float32), np.arange(1, 203)
    labels[1] = 1
    alone = postprocess_again(Detections("a", boxes, labels[:2], scores[:2]), None, 0.5, None)
    labels[:2] = 250
    among = postprocess_again(Detections("a", np.vstack([boxes, others]), labels, scores), None, 0.5, None)
    assert len(alone.scores) == (among.labels == 250).sum() == 2


def test_saved_detections_once_more_equal_the_network_s_answers_with_these_settings():
    everything = run(Detect(score_threshold=0.0, nms_iou=1.0, max_detections=1000))
    shuffled = replace(
        everything, **{key: getattr(everything, key)[::-1].copy() for key in ("boxes", "labels", "scores")}
    )
    for settings in (
        LOOSE,
        LOOSE.with_values(nms_iou=0.3),
        LOOSE.with_values(max_detections=1),
        Detect(score_threshold=0.5),
    ):
        again = postprocess_again(shuffled, settings.score_threshold, settings.nms_iou, settings.max_detections)
        direct = run(settings)
        assert again.image_id == "a"
        for key in ("boxes", "labels", "scores"):
            np.testing.assert_array_equal(getattr(again, key), getattr(direct, key))
    assert len(postprocess_again(shuffled, None, None, None).scores) == len(everything.scores) == 8
