import shutil

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from detector.boxes import BoxCoder
from detector.errors import InputError
from detector.models import build_model
from detector.models.heads import FcHead
from detector.runtime.device import Compute
from detector.settings import Detect, Model, RoISampling
from detector.training.engine import train_step
from detector.training.losses import multi_task_loss
from detector.training.targets import RoiTargets

CODER = BoxCoder((0.1, 0.1, 0.2, 0.2))
IMAGES = torch.randint(0, 255, (2, 3, 64, 96), dtype=torch.uint8)
ROIS = torch.tensor([[0, 0, 0, 60, 60], [1, 10, 20, 90, 60], [1, 0, 0, 96, 64.0]])
BUILDS = [
    ("vgg16", "fc", 512),
    ("resnet18", "fc", 256),
    ("resnet18", "res5", 256),
    ("resnet50", "fc", 1024),
    ("resnet50", "res5", 1024),
]


@pytest.mark.parametrize(("backbone", "head", "channels"), BUILDS)
def test_shapes_and_a_gradient_for_every_parameter(backbone, head, channels):
    model = build_model(Model(backbone=backbone, head=head, hidden=32), num_classes=3)
    assert model.backbone(IMAGES.float()).shape == (2, channels, 64 / 16, 96 / 16)
    assert (model.backbone.out_channels, model.backbone.stride) == (channels, 16)
    logits, deltas = model(IMAGES, ROIS)
    assert logits.shape == (3, 4)
    assert deltas.shape == (3, 3, 4)
    targets = RoiTargets(ROIS, torch.tensor([1, 2, 3]), torch.ones(3, 4))
    sum(multi_task_loss(logits, deltas, targets).values()).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet18", "vgg16"])
def test_losses_of_training_are_those_with_torchvision_s_pooling(backbone):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(40, 2, generator=generator) * torch.tensor([60.0, 40.0])
    boxes = torch.cat([corners, corners + 4 + torch.rand(40, 2, generator=generator) * 40], dim=1)
    rois = torch.cat([torch.arange(40)[:, None] % 2, boxes], dim=1)
    labels = torch.randint(0, 4, (40,), generator=generator)
    targets = RoiTargets(rois, labels, torch.randn(40, 4, generator=generator))
    compute, losses = Compute(torch.device("cpu"), torch.float32), {}
    for pool in ("ours", "theirs"):
        torch.manual_seed(0)
        model = build_model(Model(backbone=backbone, hidden=32), num_classes=3)
        if pool == "theirs":
            model.roi_pool = torchvision.ops.RoIPool(7, 1 / 16)
        compute.place(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        steps = [train_step(model, IMAGES, targets, optimizer, compute) for _ in range(4)]
        losses[pool] = [float(step["train/loss"]) for step in steps]
    assert losses["ours"] == pytest.approx(losses["theirs"], rel=1e-5)
    assert losses["ours"][3] < losses["ours"][0]


def test_answers_for_a_roi_do_not_depend_on_the_others():
    model = build_model(Model(backbone="resnet18", hidden=16), num_classes=2).eval()
    together = model(IMAGES, ROIS)
    alone = model(IMAGES, ROIS[1:2])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:2], b, atol=1e-5, rtol=1e-4)


def test_no_rois():
    logits, deltas = build_model(Model(backbone="resnet18", hidden=16), num_classes=2)(IMAGES, torch.zeros(0, 5))
    assert (logits.shape, deltas.shape) == ((0, 3), (0, 2, 4))


def test_the_flattening_order_is_channels_last():
    pooled = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(1, 2, 3, 4)
    head = FcHead(2, 3, hidden=24, dropout=0.0)
    head.fc6 = head.fc7 = nn.Identity()
    assert head(pooled)[0].tolist() == pooled.permute(0, 2, 3, 1).flatten().tolist()


@pytest.mark.parametrize("backbone", ["resnet18", "vgg16"])
def test_pretrained_means_frozen_batch_norm_and_first_stages(backbone):
    scratch = build_model(Model(backbone=backbone, hidden=8), num_classes=2)
    assert all(parameter.requires_grad for parameter in scratch.parameters())
    tuned = build_model(Model(backbone=backbone, hidden=8, weights="imagenet"), num_classes=2)
    frozen = {name for name, parameter in tuned.named_parameters() if not parameter.requires_grad}
    expected = {"resnet18": ("backbone.stem.", "backbone.layer1."),
                "vgg16": tuple(f"backbone.features.{n}." for n in (0, 2, 5, 7))}[backbone]  # fmt: skip
    assert frozen == {name for name, _ in tuned.named_parameters() if name.startswith(expected)}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in tuned.modules())
    assert any(isinstance(module, FrozenBatchNorm2d) for module in tuned.modules()) == (backbone == "resnet18")
    free = build_model(Model(backbone=backbone, hidden=8, frozen_stages=0, weights="imagenet"), num_classes=2)
    assert all(parameter.requires_grad for parameter in free.parameters())


def test_more_frozen_stages_than_there_are():
    with pytest.raises(InputError, match="frozen_stages=9: resnet18 has 4 stages"):
        build_model(Model(backbone="resnet18", frozen_stages=9, weights="imagenet"), num_classes=2)
    with pytest.raises(InputError, match="frozen_stages=1: without model.weights"):
        build_model(Model(backbone="resnet18", frozen_stages=1), num_classes=2)


def test_settings_of_the_head_have_their_effect():
    model = build_model(Model(backbone="vgg16", pool_size=3, hidden=8, dropout=0.5), num_classes=2).train()
    assert model.head.fc6.weight.shape == (8, 512 * 9)
    pooled = torch.rand(50, 512, 3, 3)
    assert not torch.equal(model.head(pooled), model.head(pooled))
    assert torch.equal(model.eval().head(pooled), model.head(pooled))


def test_class_agnostic_boxes_are_the_same_for_all_classes():
    model = build_model(Model(backbone="resnet18", hidden=8, class_agnostic=True), num_classes=3)
    logits, deltas = model(IMAGES, ROIS)
    assert (model.bbox_pred.out_features, logits.shape, deltas.shape) == (4, (3, 4), (3, 3, 4))
    assert torch.equal(deltas[:, 0], deltas[:, 2])
    targets = RoiTargets(ROIS, torch.tensor([1, 2, 0]), torch.ones(3, 4))
    multi_task_loss(logits, deltas, targets)["box"].backward()
    assert model.bbox_pred.bias.grad.tolist() == pytest.approx([-2 / 3] * 4, abs=0.1)  # of both foreground RoIs


def test_vgg16_has_no_res5():
    with pytest.raises(InputError, match="vgg16 takes model.head=fc"):
        build_model(Model(backbone="vgg16", head="res5"), num_classes=2)


@pytest.mark.slow
def test_two_images_are_overfitted(small_shapes, tmp_path):
    """With true boxes among the RoIs, the network learns two images by heart: every box right, none too many."""
    from detector.data.loader import TrainBatchSampler, TransformedDataset, eval_loader, train_loader
    from detector.data.transforms import Resize
    from detector.data.voc import read_voc
    from detector.evaluation.matching import match
    from detector.evaluation.voc_ap import score_voc
    from detector.inference.predict import DetectorConfig, evaluate
    from detector.runtime.device import resolve_compute
    from detector.training.engine import TrainingConfig, training_steps
    from detector.training.optimizers import parameter_groups

    root = shutil.copytree(small_shapes, tmp_path / "data")
    (root / "ImageSets/Main/two.txt").write_text("train_0\ntrain_1\n")
    dataset = read_voc(root, "two")
    truths = [dataset.ground_truth(index) for index in range(2)]
    grid = torch.cartesian_prod(*[torch.arange(0, 300, 30.0)] * 2)
    everywhere = torch.cat([torch.cat([grid, grid + size], dim=1) for size in (40, 80)]).numpy()
    proposals = {
        t.image_id: torch.cat([torch.from_numpy(t.boxes), torch.from_numpy(everywhere)]).numpy() for t in truths
    }
    samples = TransformedDataset(dataset, proposals, Resize(160, 300))
    model = build_model(Model(backbone="resnet18", hidden=128), num_classes=len(dataset.classes))
    compute = resolve_compute("cpu", "float32")
    compute.place(model)
    config, detector = (
        TrainingConfig(RoISampling(), CODER, seed=0),
        DetectorConfig(CODER, Detect()),
    )
    optimizer = torch.optim.SGD(parameter_groups(model, 0.01, 5e-4, 2.0), momentum=0.9)
    batches = train_loader(samples, TrainBatchSampler(2, 2, 60, seed=0), workers=0)
    losses = [
        float(s.values["train/loss"]) for s in training_steps(model, batches, optimizer, lambda i: 1.0, config, compute)
    ]
    detections, val_losses = evaluate(
        model, eval_loader(samples, 0), detector, compute, config.sample_targets, multi_task_loss
    )
    metrics, _ = score_voc(match(truths, detections, len(dataset.classes)), dataset.classes)
    assert losses[-1] < 0.2 * losses[0]
    assert metrics["area@0.50"]["mAP"] == 1.0
    assert val_losses["cls"] < 0.3
