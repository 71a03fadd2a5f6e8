import numpy as np
import pytest
import torch

from detector.boxes import BoxCoder
from detector.structures import RoiTargets, TrainBatch
from detector.visualization.sampling import draw_sampled_rois, roi_ious
from tests.helpers.batches import train_batch

CODER = BoxCoder((0.1, 0.1, 0.2, 0.2))
OBJECT = torch.tensor([[10.0, 10, 30, 30]])
ROIS = torch.tensor([[0, 10, 10, 30, 30], [0, 10, 10, 20, 30], [0, 50, 40, 60, 50], [1, 0, 0, 9, 9.0]])


@pytest.fixture
def batch() -> TrainBatch:
    """Two images, of which the second has no object."""
    deltas = torch.zeros(4, 4)
    deltas[:2] = CODER.encode(OBJECT.expand(2, 4), ROIS[:2, 1:])
    targets = RoiTargets.pack(ROIS, torch.tensor([1, 1, 0, 0]), deltas)
    return train_batch(torch.zeros(2, 3, 60, 80, dtype=torch.uint8), targets, [OBJECT.numpy(), np.zeros((0, 4))])


def test_iou_of_each_sampled_roi(batch):
    assert roi_ious(batch).tolist() == [1.0, 0.5, 0.0, 0.0]


def test_sampled_rois_are_shown_with_their_objects(batch):
    figure, captions = draw_sampled_rois(batch, CODER, ["cat"])
    assert captions == ["cat: 2 RoIs, IoU 0.50 to 1.00"]
    titles = [axes.get_title(loc="left") for axes in figure.axes[:4]]
    assert [title.split(" RoIs")[0] for title in titles] == [
        "2 foreground", "1 background", "0 foreground", "1 background"
    ]  # fmt: skip
    dashed = figure.axes[0].collections[-1].get_paths()[0].get_extents()
    assert np.allclose([dashed.x0, dashed.y0, dashed.x1, dashed.y1], OBJECT[0])
