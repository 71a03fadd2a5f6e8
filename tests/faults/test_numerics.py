"""Cases 17 to 24 of FAULTS.md: numbers that are not finite, nothing to learn from, degenerate boxes."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
import torchvision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from detector.boxes import MAX_LOG_RATIO, BoxCoder
from detector.errors import InputError, RunFailure
from detector.inference import predict
from detector.inference.predict import DetectorConfig
from detector.models import build_model
from detector.roi_pool import RoIPool
from detector.runtime.device import resolve_compute
from detector.settings import Detect, Model, RoISampling
from detector.structures import Batch, TrainBatch
from detector.training import engine
from detector.training.diagnostics import NotFinite
from detector.training.engine import TrainingConfig, train_step, training_steps
from detector.training.losses import multi_task_loss
from detector.training.targets import RoiTargets
from tests.helpers.batches import train_batch

CODER = BoxCoder((0.1, 0.1, 0.2, 0.2))
COMPUTE = resolve_compute("cpu", "float32")
TRAINING = TrainingConfig(RoISampling(rois_per_image=8), CODER, seed=0)
DETECTOR = DetectorConfig(CODER, Detect(score_threshold=0.05, nms_iou=0.3, max_detections=100))


@pytest.fixture
def model():
    return build_model(Model(backbone="resnet18", pool_size=2, hidden=4), num_classes=2)


@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)


def batch(*, proposals: int = 4) -> Batch:
    return Batch(
        image_ids=["left", "right"],
        positions=[0, 1],
        images=torch.zeros(2, 3, 64, 96, dtype=torch.uint8),
        image_hws=[(64, 96), (60, 90)],
        original_hws=[(64, 96), (60, 90)],
        gt_boxes=[torch.tensor([[1.0, 2.0, 30.0, 40.0]]), torch.zeros(0, 4)],
        gt_labels=[torch.tensor([1]), torch.zeros(0, dtype=torch.int64)],
        proposals=[torch.tensor([[0.0, 0.0, 32.0, 48.0]]).repeat(proposals, 1)] * 2,
    )


def rois(*labels: int) -> TrainBatch:
    boxes = torch.tensor([[0.0, 0, 0, 40, 40]]).repeat(len(labels), 1)
    targets = RoiTargets.pack(boxes, torch.tensor(labels, dtype=torch.int64), torch.zeros(len(labels), 4))
    return train_batch(batch().images, targets)


@pytest.mark.parametrize(("weight", "says"), [(math.nan, "the loss is nan"), (1e38, "the loss is inf|the loss is nan")])
def test_case_17_a_loss_that_is_not_finite_is_never_applied(model, optimizer, weight, says):
    with torch.no_grad():
        model.cls_score.weight.fill_(weight)
        model.cls_score.weight[1:] *= -1
    before = {key: value.clone() for key, value in model.named_parameters()}
    steps = training_steps(
        model, [TRAINING.with_rois(batch())], optimizer, lambda iteration: 0.5, TRAINING, COMPUTE, start=7
    )
    with pytest.raises(RunFailure, match=says) as failure:
        next(steps)
    for part in (
        "at iteration 8, at learning rate 0.25; the last finite one was 7. No weight was changed",
        "left (64x96 in the network, boxes [1, 2, 30, 40])",
        "right (60x90 in the network, boxes none)",
    ):
        assert part in str(failure.value)
    assert all(torch.equal(value.nan_to_num(), before[key].nan_to_num()) for key, value in model.named_parameters())
    assert not optimizer.state


def test_case_17_a_gradient_that_is_not_finite_stops_too(model, optimizer):
    model.head.fc7.weight.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(NotFinite, match="the gradient's norm (nan|inf)") as failure:
        train_step(model, rois(1, 0), optimizer, COMPUTE, TRAINING)
    assert not failure.value.mine  # the loss itself is finite
    assert not optimizer.state


def test_a_larger_gradient_is_clipped_to_the_norm(model):
    def step(max_grad_norm: float | None) -> tuple[float, float]:
        """The norm that is reported, and how far the update moved the weights."""
        copied = copy.deepcopy(model)
        optimizer = torch.optim.SGD(copied.parameters(), lr=1.0)
        values = train_step(copied, rois(1, 0), optimizer, COMPUTE, replace(TRAINING, max_grad_norm=max_grad_norm))
        pairs = zip(copied.parameters(), model.parameters(), strict=True)
        moved = torch.cat([(new - old).detach().flatten() for new, old in pairs]).norm()
        return values["train/grad_norm"], float(moved)

    norm, moved = step(None)
    assert moved == pytest.approx(norm, rel=1e-3)
    assert step(norm / 4) == (norm, pytest.approx(norm / 4, rel=1e-3))
    assert step(norm * 4) == (norm, moved)


def test_case_17_the_last_good_checkpoint_is_kept(settings, tiny, tmp_path):
    overrides = [*tiny, f"run.dir={tmp_path}/run", "optimizer.lr=1e25", "schedule.warmup_iterations=0"]
    with pytest.raises(RunFailure, match="No weight was changed by this step, and the checkpoints are kept"):
        train.main(settings("train", *overrides, "train.checkpoint_every=1", "train.iterations=20"))
    saved = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert saved["iteration"] == max(line["iteration"] for line in lines)
    assert all(line["loss/train"] is not None for line in lines if "loss/train" in line)
    events = EventAccumulator(str(tmp_path / "run")).Reload().Scalars("loss/train")  # none is lost with the run
    assert [event.step for event in events] == [line["iteration"] for line in lines if "loss/train" in line]


def test_an_invalid_augmentation_ends_before_there_is_a_folder(settings, tiny, tmp_path):
    normalize = "augment.transforms=[{_target_: albumentations.Normalize, p: 1.0}]"
    config = settings("train", *tiny, f"run.dir={tmp_path}/run", normalize)
    with pytest.raises(InputError, match="augment.transforms: they return a ndarray of float32"):
        train.main(config)
    assert not (tmp_path / "run").exists()


def test_case_19_a_batch_without_foreground_has_all_gradients(model, optimizer):
    values = train_step(model, rois(0, 0), optimizer, COMPUTE, TRAINING)
    assert values["loss/train_box"] == 0
    assert values["loss/train_cls"] > 0
    assert all(parameter.grad is not None for parameter in model.parameters())  # or DDP would wait for it
    assert not model.bbox_pred.weight.grad.any()


def test_case_20_images_without_a_single_usable_roi(model, optimizer):
    values = train_step(model, rois(), optimizer, COMPUTE, TRAINING)
    assert (values["loss/train"], values["train/grad_norm"]) == (0, 0)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_case_21_boxes_without_area_or_outside_equal_torchvision():
    features = torch.randn(1, 3, 5, 6, requires_grad=True)
    odd = torch.tensor(
        [
            [0, 20, 20, 20, 20],
            [0, -90, -90, -50, -50],
            [0, 500, 500, 600, 600],
            [0, 60, 60, 20, 20],
            [0, -9, 5, 900, 30],
        ],
        dtype=torch.float32,
    )
    ours = RoIPool(2, spatial_scale=1 / 16)(features, odd)
    theirs = torchvision.ops.roi_pool(features, odd, 2, 1 / 16)
    assert torch.equal(ours, theirs)
    assert torch.equal(torch.autograd.grad(ours.sum(), features)[0], torch.autograd.grad(theirs.sum(), features)[0])


def test_case_22_no_delta_makes_a_box_that_overflows():
    boxes = BoxCoder((1, 1, 1, 1)).decode(torch.tensor([[[0.0, 0.0, 1e9, 5.0]]]), torch.tensor([[0.0, 0.0, 2.0, 2.0]]))
    width, height = (boxes[0, 0, 2:] - boxes[0, 0, :2]).tolist()
    assert (width, height) == pytest.approx((2 * 1000 / 16, 2 * 1000 / 16))
    assert math.exp(MAX_LOG_RATIO) == pytest.approx(62.5)


def test_case_23_out_of_gpu_memory_says_what_was_in_it(model, optimizer, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    monkeypatch.setattr(engine, "train_step", full)
    steps = training_steps(
        model, [TRAINING.with_rois(batch(proposals=30))], optimizer, lambda iteration: 1.0, TRAINING, COMPUTE
    )
    with pytest.raises(RunFailure) as failure:
        next(steps)
    for part in ("iteration 1: 2 images, padded to 64x96", "the largest, 96 wide and 64 high", " 10 RoIs", "MiB in use",
                 "train.images_per_batch", "Tried to allocate 9 GiB"):  # fmt: skip
        assert part in str(failure.value)


def test_case_23_out_of_gpu_memory_in_an_evaluation_says_where(model):
    class Full(type(COMPUTE)):
        def forward(self, *arguments):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    full = Full(**vars(COMPUTE))
    for look in (lambda: predict.evaluate(model, [batch(proposals=30)], DETECTOR, full,
                                          TRAINING.sample_targets, multi_task_loss),
                 lambda: predict.detect(model, batch(proposals=30), DETECTOR, full)):  # fmt: skip
        with pytest.raises(RunFailure, match=r"out of GPU memory at .*: padded to 64x96, \d+ RoIs.*val_max_proposals"):
            look()


def test_case_24_the_same_seed_gives_the_same_history(settings, tiny, whole, tmp_path):
    from tests.helpers.runs import differences

    train.main(settings("train", *tiny, f"run.dir={tmp_path}/run"))
    assert differences(tmp_path / "run", whole) == []
