import math
import shutil
from typing import get_args

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from detector.boxes import BoxCoder
from detector.errors import InputError
from detector.models import build_model
from detector.models.backbones import FrozenNorm
from detector.models.heads import FcHead
from detector.models.pooling import POOLINGS, PyramidPooling, RoIAlign, RoIPoolOnMap, levels_of
from detector.roi_pool import RoIPool
from detector.runtime.device import Compute
from detector.settings import BackboneName, Detect, Model, RoISampling
from detector.training.engine import TrainingConfig, train_step
from detector.training.losses import multi_task_loss
from detector.training.targets import RoiTargets
from tests.helpers.batches import train_batch

CODER = BoxCoder((0.1, 0.1, 0.2, 0.2))
IMAGES = torch.randint(0, 255, (2, 3, 64, 96), dtype=torch.uint8)
ROIS = torch.tensor([[0, 0, 0, 60, 60], [1, 10, 20, 90, 60], [1, 0, 0, 96, 64.0]])
# Backbone, head, and channels and stride of the (finest) map.
BUILDS = [
    ("alexnet", "fc", 256, 16),
    ("zf", "fc", 256, 16),
    ("vgg_cnn_m", "fc", 512, 16),
    ("vgg11", "fc", 512, 16),
    ("vgg16", "fc", 512, 16),
    ("vgg16_bn", "4conv1fc", 512, 16),
    ("resnet18", "fc", 256, 16),
    ("resnet18", "res5", 256, 16),
    ("resnet34", "4conv1fc", 256, 16),
    ("resnet50", "res5", 1024, 16),
    ("resnet18_fpn", "fc", 256, 4),
    ("resnet50_fpn", "4conv1fc", 256, 4),
    ("resnet50_dc5", "fc", 2048, 16),
]
SLOW_BUILDS = [
    *((name, "fc", 512, 16) for name in ("vgg13", "vgg19", "vgg11_bn", "vgg13_bn", "vgg19_bn")),
    ("resnet50", "fc", 1024, 16),
    *((f"resnet{depth}", "res5", 1024, 16) for depth in (101, 152)),
    *((f"resnet{depth}_fpn", "fc", 256, 4) for depth in (34, 101, 152)),
    *((f"resnet{depth}_dc5", "fc", 2048, 16) for depth in (101, 152)),
]


def test_every_backbone_is_among_these():
    assert {name for name, *_ in BUILDS + SLOW_BUILDS} == {*get_args(BackboneName)}


@pytest.mark.parametrize(
    ("backbone", "head", "channels", "stride"),
    [*BUILDS, *(pytest.param(*build, marks=pytest.mark.slow) for build in SLOW_BUILDS)],
)
def test_shapes_and_a_gradient_for_every_parameter(backbone, head, channels, stride):
    norm = "group" if head == "4conv1fc" else None
    pool_size = 3 if head == "4conv1fc" else None
    model = build_model(Model(backbone=backbone, head=head, hidden=32, norm=norm, pool_size=pool_size), num_classes=3)
    with torch.no_grad():
        maps = model.backbone(IMAGES.float())
    maps = [maps] if stride == 16 else maps
    assert [tuple(level.shape) for level in maps] == [
        (2, channels, 64 // (stride * 2**n), 96 // (stride * 2**n)) for n in range(4 if stride == 4 else 1)
    ]
    assert (model.backbone.out_channels, model.backbone.stride) == (channels, stride)
    rois = torch.tensor([[0, 0, 0, 60, 60], [1, 10, 20, 90, 60], [1, 0, 0, 96, 64.0]])
    if stride == 4:  # one for each level
        rois = torch.cat([rois, torch.tensor([[0, 0, 0, 130, 130], [0, 0, 0, 300, 300], [0, 0, 0, 500, 500.0]])])
    logits, deltas = model(IMAGES, rois)
    assert logits.shape == (len(rois), 4)
    assert deltas.shape == (len(rois), 3, 4)
    targets = RoiTargets.pack(rois, torch.arange(len(rois)) % 3 + 1, torch.ones(len(rois), 4))
    sum(multi_task_loss(logits, deltas, targets).values()).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    if norm == "group":
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        kinds = [type(module) for module in model.head.convs]
        assert kinds == [nn.Conv2d, nn.GroupNorm, nn.ReLU] * 4
    normalized = sum(isinstance(module, nn.LocalResponseNorm) for module in model.modules())
    assert normalized == (2 if backbone in ("zf", "vgg_cnn_m") else 0)


def test_rois_of_a_pyramid_are_pooled_from_levels_by_their_size():
    """56 pixels and less: stride 4; 112: stride 8; 224: stride 16; 448 and more: stride 32."""
    sides = torch.tensor([10.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 2000.0])
    rois = torch.zeros(8, 5)
    rois[:, 3:] = sides[:, None]
    assert levels_of(rois, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    rois[:, 3], rois[:, 4] = sides * 2, sides / 2  # the area decides
    assert levels_of(rois, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    order = torch.tensor([7, 0, 4, 2, 1, 6, 3, 5])
    maps = [torch.full((1, 2, 64 // 2**n, 64 // 2**n), float(n)) for n in range(4)]
    for kind in POOLINGS.values():
        pooled = PyramidPooling([kind(2, 1 / (4 * 2**n)) for n in range(4)])(maps, rois[order] / 100)
        assert pooled.shape == (8, 2, 2, 2)
        assert pooled.amax(dim=(1, 2, 3)).tolist() == [0.0] * 8  # all are small now
        rois_inside = torch.tensor([[0, 0, 0, 240, 240], [0, 0, 0, 30, 30], [0, 0, 0, 120, 120.0]])
        pooled = PyramidPooling([kind(2, 1 / (4 * 2**n)) for n in range(4)])(maps, rois_inside)
        assert pooled.amax(dim=(1, 2, 3)).tolist() == [2.0, 0.0, 1.0]


def test_a_roi_beyond_the_map_pools_its_last_row_or_column():
    features = torch.arange(1.0, 13).reshape(1, 1, 3, 4).requires_grad_()
    rois = torch.tensor([[0, 60, 0, 64, 48], [0, 0, 40, 64, 48], [0, 63, 47, 64, 48], [0, 90, 4, 900, 20.0]])
    pooled = RoIPoolOnMap(1, 1 / 16)(features, rois)
    assert pooled.flatten().tolist() == [12, 12, 12, 8]
    pooled.sum().backward()
    assert features.grad.flatten().nonzero().flatten().tolist() == [7, 11]
    assert not RoIPool(1, 1 / 16)(features, rois).any()  # the operator, as Caffe's
    for wrong in ([0, math.inf, 0, 64, 48], [0, 90, 0, math.inf, 48], [0, 90, 0, math.nan, 48]):
        with pytest.raises(ValueError, match=r"rois\[0\] is .*: coordinates must be finite"):
            RoIPoolOnMap(1, 1 / 16)(features, torch.tensor([wrong]))
    # Others, also those whose last corner is beyond the map, are as in the operator.
    starts = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([55.9, 39.9])
    inside = torch.cat([torch.zeros(200, 1), starts, starts + 20], dim=1)
    assert torch.equal(RoIPoolOnMap(2, 1 / 16)(features, inside), RoIPool(2, 1 / 16)(features, inside))


def test_roi_align_averages_where_roi_pooling_takes_the_maximum():
    features = torch.zeros(1, 1, 8, 8)
    features[0, 0, 1, 1] = 4.0  # one of the four samples of RoI Align
    rois = torch.tensor([[0, 0, 0, 64.0, 64.0]])
    models = {
        name: build_model(Model(backbone="resnet18", pooling=name, pool_size=1, hidden=8), num_classes=2)
        for name in POOLINGS
    }
    assert models["roi_pool"].roi_pool(features, rois).item() == 4.0
    assert models["roi_align"].roi_pool(features, rois).item() == 1.0
    features = torch.arange(64.0).reshape(1, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):  # RoIs keep their precision
        exact = models["roi_align"].roi_pool(features.bfloat16(), torch.tensor([[0, 33.3, 0, 97.7, 64.0]]))
    assert torch.equal(exact, RoIAlign(1, 1 / 16)(features, torch.tensor([[0, 33.3, 0, 97.7, 64.0]])))


def test_roi_align_v2_is_shifted_by_half_a_cell():
    """Of a map whose values are its columns, where the middle of a cell has its number, a RoI's mean is its middle."""
    columns = torch.arange(8.0).expand(1, 1, 8, 8)
    rois = torch.tensor([[0, 16.0, 16.0, 80.0, 80.0]])  # from 1 to 5 cells
    means = {
        name: build_model(Model(backbone="resnet18", pooling=name, pool_size=1, hidden=8), num_classes=2)
        .roi_pool(columns, rois)
        .item()
        for name in ("roi_align", "roi_align_v2")
    }
    assert means == {"roi_align": 3.0, "roi_align_v2": 2.5}
    noise, rois = torch.rand(1, 3, 8, 8), torch.tensor([[0, 16.0, 16.0, 112.0, 112.0]])
    expected = torchvision.ops.roi_align(noise, rois, 1, 1 / 16, sampling_ratio=6, aligned=True)  # one for each cell
    torch.testing.assert_close(POOLINGS["roi_align_v2"](1, 1 / 16)(noise, rois), expected)


def test_a_frozen_norm_is_torchvision_s_in_the_dtype_of_the_maps():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = FrozenNorm(6), FrozenBatchNorm2d(6)
    state = {name: torch.rand(6, generator=generator) + 0.5 for name in theirs.state_dict()}
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    results = []
    for norm in (ours, theirs):
        maps = torch.randn(2, 6, 5, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
        values = norm(maps)
        values.square().sum().backward()
        results.append((values.detach(), maps.grad))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    for dtype in (torch.bfloat16, torch.float16):
        maps = results[0][1].to(dtype)
        assert ours(maps).dtype == dtype
        torch.testing.assert_close(ours(maps).float(), theirs(maps), rtol=0.01, atol=0.01)


def test_norm_layers_are_a_setting():
    def kinds(**values) -> set:
        model = build_model(Model(backbone="resnet18", hidden=8, **values), num_classes=2)
        return {type(module).__name__ for module in model.modules() if "Norm" in type(module).__name__}

    assert kinds() == kinds(norm="batch") == kinds(norm="batch", weights="imagenet") == {"BatchNorm2d"}
    assert kinds(weights="imagenet") == kinds(norm="frozen", weights="imagenet") == {"FrozenNorm"}
    assert kinds(norm="group") == {"GroupNorm"}
    with pytest.raises(InputError, match="norm=frozen: without model.weights"):
        kinds(norm="frozen")
    for norm in ("group", "batch"):
        with pytest.raises(InputError, match=f"norm={norm}: vgg11 has no norm layers"):
            build_model(Model(backbone="vgg11", hidden=8, norm=norm), num_classes=2)


@pytest.mark.parametrize("values", [{"hidden_last": 8}, {"dropout": 0.5}])
@pytest.mark.parametrize("head", ["4conv1fc", "res5"])
def test_settings_of_another_head_are_refused(head, values):
    with pytest.raises(InputError, match="needs model.hidden_last=null model.dropout=0"):
        build_model(Model(backbone="resnet18", head=head, hidden=8, **values), num_classes=2)


def test_pool_size_of_res5_is_14_unless_given():
    def size(**values) -> int:
        return build_model(Model(backbone="resnet18", hidden=8, **values), num_classes=2).roi_pool.output_size

    assert (size(), size(head="res5"), size(head="res5", pool_size=7), size(pool_size=3)) == (7, 14, 7, 3)


def test_a_network_whose_box_regression_alone_learns():
    model = build_model(Model(backbone="resnet18", hidden=8, weights="x.pt", only_boxes=True), num_classes=2)
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert learning == ["bbox_pred.weight", "bbox_pred.bias"]
    with pytest.raises(InputError, match="only_boxes=true: needs the model.weights"):
        build_model(Model(backbone="resnet18", only_boxes=True), num_classes=2)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet18", "vgg16"])
def test_losses_of_training_are_those_with_torchvision_s_pooling(backbone):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(40, 2, generator=generator) * torch.tensor([60.0, 40.0])
    boxes = torch.cat([corners, corners + 4 + torch.rand(40, 2, generator=generator) * 40], dim=1)
    rois = torch.cat([torch.arange(40)[:, None] % 2, boxes], dim=1)
    labels = torch.randint(0, 4, (40,), generator=generator)
    targets = RoiTargets.pack(rois, labels, torch.randn(40, 4, generator=generator))
    compute, losses = Compute(torch.device("cpu"), torch.float32), {}
    for pool in ("ours", "theirs"):
        torch.manual_seed(0)
        model = build_model(Model(backbone=backbone, hidden=32), num_classes=3)
        if pool == "theirs":
            model.roi_pool = torchvision.ops.RoIPool(7, 1 / 16)
        compute.place(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        config = TrainingConfig(RoISampling(), CODER, seed=0)
        steps = [train_step(model, train_batch(IMAGES, targets), optimizer, compute, config) for _ in range(4)]
        losses[pool] = [float(step["loss/train"]) for step in steps]
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
    with pytest.raises(InputError, match="frozen_stages=1: stages can be frozen only with model.weights"):
        build_model(Model(backbone="resnet18", frozen_stages=1), num_classes=2)


def test_settings_of_the_head_have_their_effect():
    model = build_model(Model(backbone="vgg16", pool_size=3, hidden=8, dropout=0.5), num_classes=2).train()
    assert model.head.fc6.weight.shape == (8, 512 * 9)
    narrow = build_model(Model(backbone="resnet18", pool_size=2, hidden=16, hidden_last=4), num_classes=2)
    assert (narrow.head.fc7.weight.shape, narrow.cls_score.in_features) == ((4, 16), 4)
    pooled = torch.rand(50, 512, 3, 3)
    assert not torch.equal(model.head(pooled), model.head(pooled))
    dropped = []
    hook = model.head.dropout.register_forward_hook(lambda layer, inputs, output: dropped.append(output))
    result = model.head(pooled)
    hook.remove()
    assert len(dropped) == 2  # after fc6 and after fc7
    assert torch.equal(dropped[1], result)
    assert torch.equal(model.eval().head(pooled), model.head(pooled))


def test_class_agnostic_boxes_are_the_same_for_all_classes():
    model = build_model(Model(backbone="resnet18", hidden=8, class_agnostic=True), num_classes=3)
    logits, deltas = model(IMAGES, ROIS)
    assert (model.bbox_pred.out_features, logits.shape, deltas.shape) == (4, (3, 4), (3, 3, 4))
    assert torch.equal(deltas[:, 0], deltas[:, 2])
    targets = RoiTargets.pack(ROIS, torch.tensor([1, 2, 0]), torch.ones(3, 4))
    multi_task_loss(logits, deltas, targets)["box"].backward()
    assert model.bbox_pred.bias.grad.tolist() == pytest.approx([-2 / 3] * 4, abs=0.1)  # of both foreground RoIs


def test_compressed_layers_are_the_best_of_their_rank():
    head = FcHead(4, 2, hidden=12, dropout=0.0).eval()
    pooled = torch.rand(5, 4, 2, 2)
    before, weight = head(pooled), head.fc6.weight.detach().clone()
    head.compress([12, 12])
    torch.testing.assert_close(head(pooled), before, atol=1e-5, rtol=1e-4)  # of full rank: the same
    other = FcHead(4, 2, hidden=12, dropout=0.0)
    other.fc6.weight.data = weight
    other.compress([3, 12])
    product = other.fc6[1].weight @ other.fc6[0].weight
    error = torch.linalg.svdvals(weight)[3:].square().sum().sqrt()
    assert torch.linalg.norm(product - weight).item() == pytest.approx(error.item(), rel=1e-4)
    assert other.fc6[0].weight.shape == (3, 16)
    several = torch.rand(400, 4, 2, 2) @ torch.rand(2, 2)
    outputs = [weight @ several.flatten(1).T, torch.rand(12, 400)]
    other = FcHead(4, 2, hidden=12, dropout=0.0)
    other.fc6.weight.data = weight
    other.compress([11, 12], [(y.mean(dim=1), torch.cov(y, correction=0)) for y in outputs])
    found = other.fc6(several.flatten(1))
    error = torch.linalg.eigvalsh(torch.cov(outputs[0], correction=0))[0]  # the least of what 11 directions can leave
    assert (found - outputs[0].T).square().sum(dim=1).mean().item() == pytest.approx(error.item(), rel=0.01)
    with pytest.raises(InputError, match=r"svd_ranks=\[13, 2\]: fc6 has a rank of 12 at most"):
        FcHead(4, 2, hidden=12, dropout=0.0).compress([13, 2])


@pytest.mark.parametrize("backbone", ["vgg16", "resnet18_fpn"])
def test_networks_without_res5(backbone):
    with pytest.raises(InputError, match=f"{backbone} takes fc or 4conv1fc"):
        build_model(Model(backbone=backbone, head="res5"), num_classes=2)


@pytest.mark.slow
def test_two_images_are_overfitted(small_shapes, tmp_path):
    """With true boxes among the RoIs, the network learns two images by heart: every box right, none too many."""
    from detector.data.epoch_order import EpochOrder
    from detector.data.formats.voc import read_voc
    from detector.data.loader import TrainBatchSampler, TransformedDataset, batch_loader, eval_loader
    from detector.data.transforms import Resize
    from detector.evaluation.matching import match
    from detector.evaluation.voc_ap import score_voc
    from detector.inference.predict import DetectorConfig, evaluate
    from detector.runtime.device import resolve_compute
    from detector.settings import Sgd
    from detector.training.engine import training_steps
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
    samples = TransformedDataset(dataset, proposals, Resize([160], 300))
    model = build_model(Model(backbone="resnet18", hidden=128), num_classes=len(dataset.classes))
    compute = resolve_compute("cpu", "float32")
    compute.place(model)
    config, detector = (
        TrainingConfig(RoISampling(), CODER, seed=0),
        DetectorConfig(CODER, Detect()),
    )
    optimizer = torch.optim.SGD(
        parameter_groups(model, Sgd(_target_="torch.optim.SGD", lr=0.01, weight_decay=5e-4, bias_lr_factor=2.0)),
        momentum=0.9,
    )
    batches = batch_loader(samples, TrainBatchSampler(EpochOrder(2, 0), 2, 60), 0, config.collate_with_rois)
    losses = [
        float(s.values["loss/train"]) for s in training_steps(model, batches, optimizer, lambda i: 1.0, config, compute)
    ]
    detections, val_losses = evaluate(
        model, eval_loader(samples, 0), detector, compute, config.sample_targets, multi_task_loss
    )
    metrics, _ = score_voc(match(truths, detections, len(dataset.classes)), dataset.classes)
    assert losses[-1] < 0.2 * losses[0]
    assert metrics["area@0.50"]["mAP"] == 1.0
    assert val_losses["cls"] < 0.3
