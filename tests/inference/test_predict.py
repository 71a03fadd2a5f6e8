from dataclasses import replace

import numpy as np
import pytest
import torch

from detector.boxes import BoxCoder
from detector.inference import predict
from detector.inference.predict import DetectorConfig, detect, mirrored
from detector.models import build_model
from detector.runtime.device import Compute
from detector.settings import Detect, Model
from detector.structures import Batch, RoiTargets

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


def turned_round(boxes: torch.Tensor) -> torch.Tensor:
    return torch.stack([96 - boxes[:, 2], boxes[:, 1], 96 - boxes[:, 0], boxes[:, 3]], dim=1)


def test_with_flip_a_mirrored_image_has_mirrored_detections(model):
    def found(settings: Detect) -> tuple:
        config = DetectorConfig(CODER, settings)
        [plain] = detect(model, batch(IMAGE, PROPOSALS), config, COMPUTE)
        [turned] = detect(model, batch(IMAGE.flip(3), turned_round(PROPOSALS)), config, COMPUTE)
        return plain, replace(turned, boxes=turned_round(torch.from_numpy(turned.boxes)).numpy())

    once = Detect(score_threshold=0.0, nms_iou=1.0)
    plain, turned = found(once)
    assert not np.allclose(plain.scores, turned.scores, atol=1e-5)
    plain, turned = found(once.with_values(flip=True))
    np.testing.assert_allclose(plain.scores, turned.scores, atol=1e-5)
    np.testing.assert_allclose(plain.boxes, turned.boxes, atol=1e-3)


def test_with_flip_a_symmetric_network_keeps_its_result(model):
    """The mean of two equal outputs is each of them, also for deltas whose dx changes its sign."""
    symmetric = torch.cat([IMAGE[..., :48], IMAGE[..., :48].flip(3)], dim=3)
    both = torch.cat([PROPOSALS, turned_round(PROPOSALS)])
    config = DetectorConfig(CODER, Detect(score_threshold=0.0, nms_iou=1.0, flip=True))
    [found] = detect(model, batch(symmetric, both), config, COMPUTE)
    boxes = torch.from_numpy(found.boxes)
    distance = (turned_round(boxes)[:, None] - boxes).abs().amax(dim=2)
    assert distance.amin(dim=1).max() < 1e-3


def test_padding_is_not_mirrored():
    images = torch.zeros(1, 3, 4, 6, dtype=torch.uint8)
    images[0, :, :2, :3] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    turned = mirrored(replace(batch(images, torch.tensor([[0.0, 0.0, 1.0, 2.0]])), image_hws=[(2, 3)]))
    assert turned.images[0, 0].tolist() == [[3, 2, 1, 0, 0, 0]] * 2 + [[0] * 6] * 2
    assert turned.proposals[0].tolist() == [[2, 0, 3, 2]]


class Sizes(torch.nn.Module):
    """The logit of class 1 is the height of the image, that of class 2 the width of the RoI."""

    def forward(self, images, rois):
        width = rois[:, 3] - rois[:, 1]
        logits = torch.stack([torch.zeros_like(width), torch.full_like(width, images.shape[2]), width], dim=1)
        return logits / 1000, torch.zeros(len(rois), 2, 4)


def test_a_proposal_is_scored_where_it_is_closest_to_224_pixels():
    """At the image's own scale, at twice and at four times it, 224 pixels are 224, 112 and 56."""
    proposals = torch.tensor([[0.0, 0, 60, 60], [0, 0, 100, 100], [0, 0, 200, 100], [10, 10, 40, 40], [0, 0, 110, 100]])
    one = replace(batch(torch.zeros(1, 3, 100, 200, dtype=torch.uint8), proposals), image_hws=[(100, 200)])
    outputs = predict.predict(Sizes(), one, Detect(pyramid_px=(100, 200, 400)), COMPUTE)[0] * 1000
    scale = outputs[:, 1] / 100
    assert scale.tolist() == [4, 2, 2, 4, 2]
    torch.testing.assert_close(outputs[:, 2], (proposals[:, 2] - proposals[:, 0]) * scale)
    plain = predict.predict(Sizes(), one, Detect(), COMPUTE)[0] * 1000
    assert plain[:, 1].tolist() == pytest.approx([100] * 5)
    thin = replace(one, images=torch.zeros(1, 3, 100, 1000, dtype=torch.uint8), image_hws=[(100, 1000)])
    capped = predict.predict(Sizes(), thin, Detect(pyramid_px=(400,)), COMPUTE)[0] * 1000
    assert capped[:, 1].tolist() == pytest.approx([200] * 5)  # the long side is 2000


def test_rois_of_the_same_cells_pass_through_the_network_once(model, monkeypatch, caplog):
    """At stride 16 corners are rounded to multiples of 16, halves away from zero."""
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(40, 2, generator=generator) * torch.tensor([60.0, 40.0])
    proposals = torch.cat([corners, corners + 8 + 20 * torch.rand(40, 2, generator=generator)], dim=1)
    seen = []
    hook = model.cls_score.register_forward_hook(lambda layer, inputs, output: seen.append(len(output)))
    config = DetectorConfig(CODER, Detect(score_threshold=0.0, nms_iou=1.0))
    with torch.inference_mode():
        outputs = predict.predict(model, batch(IMAGE, proposals), config.postprocess, COMPUTE)
        with monkeypatch.context() as each:
            each.setattr(predict, "_distinct", lambda model, rois: (rois, torch.arange(len(rois))))
            all_outputs = predict.predict(model, batch(IMAGE, proposals), config.postprocess, COMPUTE)
    hook.remove()
    cells = (proposals / 16 + 0.5).floor().int().tolist()
    assert seen[0] == len({tuple(row) for row in cells}) < 40
    assert seen[1] == 40
    torch.testing.assert_close(outputs, all_outputs, atol=1e-5, rtol=1e-5)
    targets = RoiTargets.pack(torch.tensor([[0.0, 0, 0, 50, 50]]), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 4))
    zero = {"cls": torch.zeros(()), "box": torch.zeros(())}
    with caplog.at_level("INFO"):
        predict.evaluate(model, [batch(IMAGE, proposals)], config, COMPUTE, lambda _: targets, lambda *_: zero)
    assert f"RoIs: 41, of which {40 - seen[0]} pool the cells of another one" in caplog.text


@pytest.mark.parametrize("settings", [Model(backbone="resnet18", pooling="roi_align"), Model(backbone="resnet18_fpn")])
def test_rois_that_are_not_rounded_are_all_computed(settings):
    network = build_model(settings.with_values(pool_size=2, hidden=8), num_classes=2)
    rois = torch.tensor([[0.0, 0, 0, 50, 60], [0, 1, 1, 51, 61]])
    assert len(predict._distinct(network, rois)[0]) == 2
    assert len(predict._distinct(build_model(Model(backbone="resnet18", hidden=8), 2), rois)[0]) == 1


def test_images_evaluated_at_once_give_what_each_gives_alone(model):
    generator = torch.Generator().manual_seed(2)
    images = [torch.randint(0, 255, IMAGE.shape, dtype=torch.uint8, generator=generator) for _ in range(7)]
    batches = [replace(batch(pixels, PROPOSALS), image_ids=[str(index)]) for index, pixels in enumerate(images)]
    config = DetectorConfig(CODER, Detect(score_threshold=0.0, nms_iou=1.0))
    targets = RoiTargets.pack(torch.tensor([[0.0, 0, 0, 50, 50]]), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 4))

    def evaluated(threads: int) -> tuple:
        usual = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return predict.evaluate(
                model, batches, config, COMPUTE, lambda _: targets,
                lambda logits, deltas, _: {"cls": logits.sum(), "box": deltas.sum()},
            )  # fmt: skip
        finally:
            torch.set_num_threads(usual)

    (found, losses), (one_by_one, same_losses) = evaluated(3), evaluated(1)
    assert losses == pytest.approx(same_losses, abs=1e-5)
    assert [item.image_id for item in found] == [str(index) for index in range(7)]
    for item, other in zip(found, one_by_one, strict=True):
        np.testing.assert_allclose(item.scores, other.scores, atol=1e-6)
        np.testing.assert_allclose(item.boxes, other.boxes, atol=1e-4)


@pytest.mark.parametrize(("pyramid_px", "passes"), [((), [2 + 3]), ((200,), [2, 3])])
def test_proposals_share_the_pass_of_the_loss_at_its_scale(monkeypatch, pyramid_px, passes):
    proposals = torch.tensor([[0.0, 0, 60, 60], [0, 0, 100, 100], [10, 10, 40, 40]])
    one = replace(batch(torch.zeros(1, 3, 100, 200, dtype=torch.uint8), proposals), image_hws=[(100, 200)])
    rois = torch.tensor([[0.0, 0, 0, 50, 50], [0, 0, 0, 90, 90]])
    targets = RoiTargets.pack(rois, torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4))
    seen, plain_predict = [], predict._predict

    def counted(model, batch, rois, compute):
        seen.append(len(rois))
        return plain_predict(model, batch, rois, compute)

    monkeypatch.setattr(predict, "_predict", counted)
    _, losses = predict.evaluate(
        Sizes(), [one], DetectorConfig(CODER, Detect(pyramid_px=pyramid_px)), COMPUTE, lambda _: targets,
        lambda logits, deltas, targets: {"cls": logits[:, 2].sum() * 1000, "box": torch.tensor(float(len(deltas)))},
    )  # fmt: skip
    assert seen == passes
    assert losses == pytest.approx({"cls": 50 + 90, "box": 2})
