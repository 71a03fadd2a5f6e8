"""Losses and detections equal those of a Fast R-CNN made of torchvision's parts, with the same weights."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.ops import MultiScaleRoIAlign, roi_pool

from detector.boxes import BoxCoder
from detector.inference.predict import DetectorConfig, detect
from detector.models import FastRCNN, build_model
from detector.models.pooling import levels_of
from detector.runtime.device import Compute
from detector.settings import Detect, Loss, Model, RoISampling
from detector.structures import Batch
from detector.training.losses import LossConfig, multi_task_loss
from detector.training.targets import make_targets

COMPUTE = Compute(torch.device("cpu"), torch.float32)
CODER = BoxCoder((0.1, 0.1, 0.2, 0.2))
SETTINGS = Detect(score_threshold=0.05, nms_iou=0.5, max_detections=60)
K, HIDDEN = 3, 32


class SingleScalePool(nn.Module):
    """torchvision's RoI pooling, called as RoIHeads does."""

    def forward(self, features: dict, proposals: list, image_shapes: list) -> Tensor:
        return roi_pool(features["0"], proposals, 7, 1 / 16)


def batch(height: int, width: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    proposals, limit = [], torch.tensor([float(width), float(height)])
    for _ in range(2):
        corners = torch.rand(60, 2, generator=generator) * limit * 0.8
        sizes = 8 + torch.rand(60, 2, generator=generator) * limit
        proposals.append(torch.cat([corners, torch.minimum(corners + sizes, limit)], dim=1))
        proposals[-1][:5] = torch.tensor([0.0, 0.0, width, height])  # the largest
        proposals[-1][:5, :2] += torch.arange(5.0)[:, None]
    images = torch.randint(0, 255, (2, 3, height, width), dtype=torch.uint8, generator=generator)
    gt_boxes = [proposals[0][[7, 9]] + 2, proposals[1][:1] + 2]
    gt_labels = [torch.tensor([1, 3]), torch.tensor([2])]
    sizes = [(height, width)] * 2
    return Batch(["a", "b"], [0, 1], images, sizes, sizes, gt_boxes, gt_labels, proposals)


def ours(backbone: str, pooling: str, data: Batch) -> FastRCNN:
    """With outputs and norm statistics of a natural size."""
    torch.manual_seed(0)
    model = build_model(Model(backbone=backbone, pooling=pooling, hidden=HIDDEN), K)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(data.images, torch.zeros(0, 5))  # sets the statistics of batch norm
        hidden = model.eval().head(model.roi_pool(features_of(model, data), torch.tensor([[0, 0, 0, 190.0, 120.0]])))
        for layer, size in ((model.cls_score, 2.0), (model.bbox_pred, 1.0)):
            nn.init.normal_(layer.weight, std=size / float(hidden.norm()))
    return model


def features_of(model: FastRCNN, data: Batch) -> Tensor | list:
    with torch.no_grad():
        return model.backbone((data.images - model.mean) / model.std)


def their_heads(model: FastRCNN, pool: nn.Module, channels: int) -> RoIHeads:
    """torchvision's RoIHeads with our weights: its order of a pooled map is (c, h, w), and background has a box."""
    head, predictor = TwoMLPHead(channels * 49, HIDDEN), FastRCNNPredictor(HIDDEN, K + 1)
    state = model.head.state_dict()
    state["fc6.weight"] = state["fc6.weight"].unflatten(1, (7, 7, -1)).permute(0, 3, 1, 2).flatten(1)
    head.load_state_dict(state)
    predictor.cls_score.load_state_dict(model.cls_score.state_dict())
    none = torch.zeros(4, HIDDEN)
    predictor.bbox_pred.weight.data = torch.cat([none, model.bbox_pred.weight.data])
    predictor.bbox_pred.bias.data = torch.cat([none[:, 0], model.bbox_pred.bias.data])
    sampling = (0.5, 0.5, 64, 0.25)  # not used: proposals are given, RoIs sampled by us
    thresholds = (SETTINGS.score_threshold, SETTINGS.nms_iou, SETTINGS.max_detections)
    return RoIHeads(pool, head, predictor, *sampling, (10.0, 10.0, 5.0, 5.0), *thresholds).eval()


def their_features(model: FastRCNN, data: Batch) -> dict[str, Tensor]:
    """The maps of torchvision's backbone with our weights."""
    images = (data.images - model.mean) / model.std
    if model.backbone.levels == 1:
        return {"0": features_of(model, data)}  # the convolutions are torchvision's own
    net = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5, extra_blocks=None
    )
    names = {"stem.0": "body.conv1", "stem.1": "body.bn1"}
    state = {}
    for key, value in model.backbone.state_dict().items():
        name = key if key.startswith("fpn.") else f"body.{key}"
        for old, new in names.items():
            name = name.replace(f"body.{old}", new)
        state[name] = value
    net.load_state_dict(state)
    with torch.no_grad():
        maps = net.eval()(images)
    return {name: maps[name] for name in "0123"}


def test_vgg16_equals_torchvision_s_parts():
    data = batch(96, 128)
    compare(ours("vgg16", "roi_pool", data), SingleScalePool(), data)


@pytest.mark.slow
def test_a_feature_pyramid_equals_torchvision_s_parts():
    data = batch(240, 320)  # proposals of up to 277 pixels, by the root of their area: three levels
    assert {*levels_of(torch.cat([torch.zeros(120, 1), torch.cat(data.proposals)], dim=1), 4).tolist()} == {0, 1, 2}
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, sampling_ratio=2)
    compare(ours("resnet50_fpn", "roi_align", data), pool, data)


def compare(model: FastRCNN, pool: nn.Module, data: Batch) -> None:
    features, heads = their_features(model, data), their_heads(model, pool, model.backbone.out_channels)
    with torch.no_grad():
        theirs, _ = heads(features, data.proposals, data.image_hws)
    found = detect(model, data, DetectorConfig(CODER, SETTINGS), COMPUTE)
    for mine, other in zip(found, theirs, strict=True):
        assert len(mine.scores) == len(other["scores"]) > 10
        assert len({*mine.labels}) > 1
        order = np.lexsort([mine.scores, mine.labels])
        their_order = np.lexsort([other["scores"].numpy(), other["labels"].numpy()])
        assert mine.labels[order].tolist() == other["labels"][their_order].tolist()
        np.testing.assert_allclose(mine.scores[order], other["scores"][their_order], atol=1e-4)
        np.testing.assert_allclose(mine.boxes[order], other["boxes"][their_order], atol=1e-3, rtol=1e-4)

    targets = make_targets(data, RoISampling(rois_per_image=32), CODER, seed=0)
    assert {*targets.labels.tolist()} == {0, 1, 2, 3}
    class_logits, deltas = model(data.images, targets.rois)
    mine = multi_task_loss(class_logits, deltas, targets, config=LossConfig(Loss(beta=1 / 9)))
    sampled = [targets.rois[targets.rois[:, 0] == image, 1:] for image in range(2)]
    hidden = heads.box_head(heads.box_roi_pool(features, sampled, data.image_hws))
    counts = [len(boxes) for boxes in sampled]
    cls, box = fastrcnn_loss(
        *heads.box_predictor(hidden), list(targets.labels.split(counts)), list(targets.deltas.split(counts))
    )
    assert mine["cls"].item() == pytest.approx(cls.item(), rel=1e-4)
    assert mine["box"].item() == pytest.approx(box.item(), rel=1e-4)
    assert box.item() > 0
