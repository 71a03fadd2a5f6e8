"""A training step reads the device once: whether loss and gradient are finite.

On a GPU each read waits until everything launched so far has been computed. On a CPU the same calls are counted.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from detector.boxes import BoxCoder
from detector.models import FastRCNN
from detector.models.backbones import Backbone
from detector.models.heads import FcHead
from detector.models.pooling import PyramidPooling
from detector.roi_pool import RoIPool
from detector.runtime.device import Compute
from detector.settings import Loss, RoISampling
from detector.structures import RoiTargets, TrainBatch
from detector.training.engine import TrainingConfig, train_step
from detector.training.losses import LossConfig, accuracy
from tests.helpers.batches import train_batch

COMPUTE = Compute(torch.device("cpu"), torch.float32)
CODER = BoxCoder((0.1, 0.1, 0.2, 0.2))
IMAGES = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
ROIS = torch.tensor([[0, 0, 0, 40, 40], [0, 20, 10, 90, 60], [1, 0, 0, 96, 64], [1, 5, 5, 30, 30.0]])
BATCH = train_batch(IMAGES, RoiTargets.pack(ROIS, torch.tensor([1, 0, 2, 0]), torch.ones(4, 4)))


class Body(Backbone):
    """One convolution, and at each further level the mean of four cells."""

    out_channels, stride = 4, 4

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 4, stride=4)
        self.norm = nn.BatchNorm2d(4)
        self.levels = levels

    def forward(self, images):
        maps = [self.norm(self.convolution(images)).relu()]
        while len(maps) < self.levels:
            maps.append(nn.functional.avg_pool2d(maps[-1], 2))
        return maps if self.levels > 1 else maps[0]


def network(levels: int = 1) -> FastRCNN:
    torch.manual_seed(0)
    pools = [RoIPool(2, 1 / (4 * 2**level)) for level in range(levels)]
    pooling = PyramidPooling(pools) if levels > 1 else pools[0]
    return FastRCNN(Body(levels), pooling, FcHead(4, 2, hidden=8, dropout=0.5), num_classes=2)


aten = torch.ops.aten
OPERATORS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.repeat_interleave}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
# Calls that reach no operator on a CPU; `new_tensor` is a copy to the device that waits.
METHODS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.new_tensor}


class Operators(TorchDispatchMode):
    """Records the operators that a GPU answers only after a wait."""

    def __init__(self, reads: list[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        packet = function.overloadpacket
        boolean = packet in INDEXED and any(i is not None and i.dtype == torch.bool for i in arguments[1])
        if packet in OPERATORS or boolean:
            self.reads.append(str(packet))
        return function(*arguments, **(named or {}))


class Methods(TorchFunctionMode):
    """Records the methods that do."""

    def __init__(self, reads: list[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, function, types, arguments=(), named=None):
        if function in METHODS:
            self.reads.append(function.__name__)
        return function(*arguments, **(named or {}))


def reads_of(function, *arguments) -> list[str]:
    reads: list[str] = []
    with Methods(reads), Operators(reads):
        function(*arguments)
    return reads


def step_reads(batch: TrainBatch = BATCH, levels: int = 1, **changes) -> list[str]:
    model = network(levels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    config = replace(TrainingConfig(RoISampling(), CODER, seed=0, max_grad_norm=1e-3), **changes)
    before = model.cls_score.weight.detach().clone()
    reads = reads_of(train_step, model, batch, optimizer, COMPUTE, config)
    assert not torch.equal(model.cls_score.weight, before)  # it was a whole step
    return reads


@pytest.mark.parametrize(
    "loss",
    [Loss(), Loss(cls="focal"), Loss(box="l1"), Loss(box="giou"), Loss(box="ciou"), Loss(cls="focal", box="diou")],
    ids=lambda loss: f"{loss.cls}-{loss.box}",
)
@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 0.5)])
def test_a_step_reads_the_device_once(loss, weights):
    assert step_reads(loss=LossConfig(loss, CODER, weights)) == ["tolist"]


def test_normalised_targets_or_scaled_losses_read_once():
    assert step_reads(loss=LossConfig(delta_std=((0.5,) * 4,) * 2)) == ["tolist"]
    assert step_reads(scaler=torch.amp.GradScaler("cpu", init_scale=4.0)) == ["tolist"]


def test_a_step_in_parts_reads_the_device_once():
    assert step_reads(accumulate=2) == ["tolist"]


def test_a_step_without_foreground_or_rois_reads_the_device_once():
    nothing = RoiTargets.pack(ROIS[:0], torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    for targets in (nothing, RoiTargets.pack(ROIS, torch.zeros(4, dtype=torch.int64), torch.zeros(4, 4))):
        assert step_reads(train_batch(IMAGES, targets)) == ["tolist"]


def test_a_pyramid_reads_once_more_how_many_rois_each_level_has():
    assert step_reads(levels=4) == ["tolist"] * 2


def test_reads_are_noticed():
    """Each of what a step did before, and what could come back."""
    labels, logits = torch.tensor([0, 1]), torch.ones(2, 2)
    assert reads_of(lambda: logits[labels > 0]) != []
    assert reads_of(lambda: torch.nonzero(labels)) != []
    assert reads_of(lambda: logits.masked_fill(labels[:, None] > 0, 0.0)) == []
    assert reads_of(lambda: bool(logits.sum() > 0)) != []
    assert reads_of(lambda: float(logits[0, 0])) != []
    assert reads_of(lambda: logits.sum().item()) != []
    assert reads_of(lambda: logits.new_tensor([1.0])) != []
    assert reads_of(lambda: logits.index_put_((labels > 0,), torch.zeros(2))) != []
    assert reads_of(accuracy, logits, labels) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, which counts its synchronizations itself")
@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 0.5)])
@pytest.mark.parametrize("box", ["smooth_l1", "giou"])
def test_a_step_on_a_gpu_synchronizes_once(box, weights, recwarn):
    compute = Compute(torch.device("cuda"), torch.float32)
    model = network()
    compute.place(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    config = TrainingConfig(RoISampling(), CODER, 0, LossConfig(Loss(box=box), CODER, weights), max_grad_norm=1e-3)
    [(_, first), (_, second)] = compute.copy_ahead([BATCH.pin_memory()] * 2)
    train_step(model, first, optimizer, compute, config)  # compiles the kernels
    recwarn.clear()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        train_step(model, second, optimizer, compute, config)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing" in str(warning.message) for warning in recwarn) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: on a CPU a batch is passed through")
def test_batches_are_copied_to_a_gpu_one_ahead():
    asked = []

    def batches():
        for number in range(3):
            asked.append(number)
            yield replace(BATCH, image_ids=[str(number)] * 2).pin_memory()

    for number, (batch, copied) in enumerate(Compute(torch.device("cuda"), torch.float32).copy_ahead(batches())):
        assert (batch.image_ids, asked[-1]) == ([str(number)] * 2, min(number + 1, 2))
        assert (batch.images.device.type, copied.images.device.type) == ("cpu", "cuda")
        assert torch.equal(copied.images.cpu(), batch.images)
        assert torch.equal(copied.targets.packed.cpu(), batch.targets.packed)


def test_on_a_cpu_batches_are_passed_through():
    [(batch, same)] = COMPUTE.copy_ahead([BATCH])
    assert batch is BATCH
    assert same.images is BATCH.images
    assert same.targets.packed is BATCH.targets.packed
