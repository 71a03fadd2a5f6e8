from dataclasses import replace

import numpy as np
import pytest
import torch

from detector.boxes import BoxCoder
from detector.inference.predict import DetectorConfig, detect
from detector.models import build_model
from detector.runtime.device import Compute
from detector.settings import Detect, Model
from detector.structures import Batch

COMPUTE = Compute(torch.device("cpu"), torch.float32)
CODER = BoxCoder((0.1, 0.1, 0.2, 0.2))
IMAGE = torch.randint(0, 255, (1, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
PROPOSALS = torch.tensor([[0.0, 0.0, 50.0, 60.0], [30.0, 20.0, 90.0, 60.0], [5.0, 10.0, 40.0, 50.0]])


def batch(images: torch.Tensor, proposals: torch.Tensor) -> Batch:
    none = [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)]
    return Batch(["a"], [0], images, [(64, 96)], [(64, 96)], *none, [proposals])


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_model(Model(backbone="resnet18", pool_size=2, hidden=8), num_classes=2)
    torch.nn.init.normal_(model.bbox_pred.weight, std=0.1)  # deltas of some size
    return model


def mirrored(boxes: torch.Tensor) -> torch.Tensor:
    return torch.stack([96 - boxes[:, 2], boxes[:, 1], 96 - boxes[:, 0], boxes[:, 3]], dim=1)


def test_with_flip_an_image_and_its_mirror_image_give_mirrored_detections(model):
    def found(settings: Detect) -> tuple:
        config = DetectorConfig(CODER, settings)
        [plain] = detect(model, batch(IMAGE, PROPOSALS), config, COMPUTE)
        [turned] = detect(model, batch(IMAGE.flip(3), mirrored(PROPOSALS)), config, COMPUTE)
        return plain, replace(turned, boxes=mirrored(torch.from_numpy(turned.boxes)).numpy())

    once = Detect(score_threshold=0.0, nms_iou=1.0)
    plain, turned = found(once)
    assert not np.allclose(plain.scores, turned.scores, atol=1e-5)
    plain, turned = found(once.with_values(flip=True))
    np.testing.assert_allclose(plain.scores, turned.scores, atol=1e-5)
    np.testing.assert_allclose(plain.boxes, turned.boxes, atol=1e-3)


def test_with_flip_a_symmetric_network_keeps_its_result(model):
    """The mean of two equal outputs is each of them, also for deltas whose dx changes its sign."""
    symmetric = torch.cat([IMAGE[..., :48], IMAGE[..., :48].flip(3)], dim=3)
    both = torch.cat([PROPOSALS, mirrored(PROPOSALS)])
    config = DetectorConfig(CODER, Detect(score_threshold=0.0, nms_iou=1.0, flip=True))
    [found] = detect(model, batch(symmetric, both), config, COMPUTE)
    boxes = torch.from_numpy(found.boxes)
    distance = (mirrored(boxes)[:, None] - boxes).abs().amax(dim=2)
    assert distance.amin(dim=1).max() < 1e-3
