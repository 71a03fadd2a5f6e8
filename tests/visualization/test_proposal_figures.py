import numpy as np
import pytest

from detector.evaluation.recall import score_recall
from detector.visualization.detection import Stages, add_caption, animate_stages
from detector.visualization.proposals import Best, draw_proposals, draw_recall
from detector.visualization.style import new_figure, pixels, show_image
from tests.conftest import ground_truth

IMAGE = np.full((60, 80, 3), 90, dtype=np.uint8)
PROPOSALS = np.array([[0, 0, 10, 10], [20, 20, 40, 50], [20, 20, 40, 40], [0, 0, 20, 10]], dtype=np.float32)


def test_best_proposal_of_each_object_is_drawn_with_rank_and_iou():
    objects = np.array([[20, 20, 40, 40], [0, 0, 15, 10], [60, 0, 70, 10]], dtype=np.float32)
    figure, best = draw_proposals(IMAGE, PROPOSALS, 2, objects, np.array([1, 2, 2]), ["cat", "dog"])
    assert best == [Best(1, 3, 1.0), Best(2, 4, 0.75), Best(2, 1, 0.0)]
    assert [text.get_text() for text in figure.axes[1].texts][:2] == ["cat: IoU 1.00, rank 3", "dog: IoU 0.75, rank 4"]
    assert figure.axes[0].get_title(loc="left") == "The first 2 of 4 proposals"


def test_image_without_proposals_or_objects_is_drawn():
    none = np.zeros((0, 4), dtype=np.float32)
    assert draw_proposals(IMAGE, none, 5, PROPOSALS[:1], np.array([1]), ["cat"])[1] == []
    assert draw_proposals(IMAGE, PROPOSALS, 5, none, np.zeros(0, dtype=np.int64), [])[1] == []


def test_recall_curves_are_those_of_the_score():
    truth = ground_truth("a", (1, 20, 20, 40, 40), (1, 0, 0, 15, 10))
    result = score_recall([truth], [PROPOSALS], ["cat"])
    lines = {line.get_label(): line.get_ydata() for line in draw_recall(result).axes[0].lines}
    assert lines["IoU 0.5: 1.00"].tolist() == [1.0]
    assert lines["IoU 0.9: 0.50"].tolist() == [0.5]
    assert draw_recall(score_recall([], [], ["cat"])).axes[0].lines == pytest.approx([])


def test_a_caption_is_at_the_bottom_if_another_is_at_the_top():
    axes = new_figure(5, 4).subplots()
    show_image(axes, np.zeros((100, 150, 3), np.uint8), "")
    for box in ((10, 10, 80, 60), (20, 12, 90, 90), (100, 12, 140, 90), (10, 40, 30, 50)):
        add_caption(axes, np.array(box), "star 0.81", "#0072B2")
    assert [caption.get_position() for caption in axes.texts] == [(10, 10), (20, 90), (100, 12), (10, 40)]
    add_caption(axes, np.array((140, 70, 150, 90)), "at the right border", "#0072B2")
    pixels(axes.figure)
    assert axes.texts[-1].get_window_extent().x1 <= axes.get_window_extent().x1


def test_captions_of_many_objects_are_short():
    objects = np.repeat(PROPOSALS[:1], 9, axis=0)
    figure, _ = draw_proposals(IMAGE, PROPOSALS, 2, objects, np.ones(9, dtype=np.int64), ["cat"])
    assert {text.get_text() for text in figure.axes[1].texts} == {"1.00, 1"}
    assert figure.axes[1].get_title(loc="left") == "Objects (dashed), best proposals: IoU, rank"


@pytest.mark.parametrize("image_hw", [(2, 700), (700, 2)])
def test_stages_of_a_very_thin_image_are_drawn(image_hw):
    boxes, none = np.array([[0, 0, image_hw[1], image_hw[0]]], np.float32), np.zeros(0, np.int64)
    image = np.zeros((*image_hw, 3), np.uint8)
    stages = Stages(image, ("cat",), boxes, none, none, none, boxes[:0], none, none, 0.5)
    [first, *_], _ = animate_stages(stages)
    assert 200 <= len(first) <= 1400
