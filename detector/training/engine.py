"""The training loop, and the components of a run."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel

from detector.boxes import BoxCoder
from detector.data.epoch_order import EpochOrder
from detector.data.loader import TransformedDataset, collate
from detector.errors import InputError
from detector.inference.predict import DetectorConfig
from detector.models import FastRCNN
from detector.runtime.device import NOT_DETERMINISTIC, Compute
from detector.runtime.distributed import all_reduce_sum, mean, raise_once
from detector.runtime.ranks import rank_info
from detector.runtime.seeds import Stream, seed_of
from detector.settings import RoISampling
from detector.structures import Batch, RoiTargets, Sample, TrainBatch
from detector.training.diagnostics import NotFinite, not_finite_failure, out_of_memory_failure
from detector.training.losses import PAPER, LossConfig, accuracy, multi_task_loss
from detector.training.targets import all_targets, make_targets, with_hardest_rois


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training step: how RoIs are sampled and encoded, the loss, and how the gradient is computed."""

    sampling: RoISampling
    coder: BoxCoder
    seed: int
    loss: LossConfig = PAPER
    max_grad_norm: float | None = None  # a larger gradient is scaled down to this norm
    accumulate: int = 1  # parts into which a batch is split, whose gradients are added
    scaler: GradScaler = field(default_factory=lambda: GradScaler("cpu", enabled=False))  # of the loss in float16

    def sample_targets(self, batch: Batch) -> RoiTargets:
        """Sample the RoIs of a batch, with their targets."""
        return make_targets(batch, self.sampling, self.coder, self.seed)

    def loss_of(self, class_logits: Tensor, deltas: Tensor, targets: RoiTargets) -> dict[str, Tensor]:
        """The losses of a batch; see `multi_task_loss`."""
        return multi_task_loss(class_logits, deltas, targets, config=self.loss)

    def collate_with_rois(self, items: list[tuple[Sample, int]]) -> TrainBatch:
        """Collate samples into a batch and sample its RoIs: everything that a data worker can do before the step."""
        return self.with_rois(collate(items))

    def with_rois(self, batch: Batch) -> TrainBatch:
        """The batch with the RoIs to train on. With OHEM these are all RoIs, and the step selects the hardest."""
        make = all_targets if self.sampling.ohem else make_targets
        targets = make(batch, self.sampling, self.coder, self.seed)
        counts = targets.rois[:, 0].long().bincount(minlength=len(batch.images)).tolist()
        gt_boxes = [boxes.numpy() for boxes in batch.gt_boxes]  # a tensor would need a file to be sent
        return TrainBatch(batch.image_ids, batch.image_hws, gt_boxes, batch.images, targets, counts)


@dataclass(frozen=True)
class TrainingComponents:
    """The components of training: network, optimizer, data and their settings, from `builders.training`."""

    classes: tuple[str, ...]
    model: FastRCNN
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]  # the factor on its learning rates at an iteration
    training: TrainingConfig
    detector: DetectorConfig
    compute: Compute
    train_samples: TransformedDataset
    val_samples: TransformedDataset
    fingerprints: dict[str, str]  # of data and proposals
    train_order: EpochOrder
    averaged: AveragedModel | None = None  # the moving average of the weights, if `train.ema` is set

    @property
    def evaluated_model(self) -> FastRCNN:
        """The network that is evaluated and shared."""
        model = self.model if self.averaged is None else self.averaged.module
        assert isinstance(model, FastRCNN)
        return model


@dataclass(frozen=True)
class CompletedStep:
    """A completed training step."""

    iteration: int  # from 1
    batch: TrainBatch  # on the CPU
    values: dict[str, Tensor | float]  # by TensorBoard tag; tensors are read only when logged


def training_steps(
    model: nn.Module,
    batches: Iterable[TrainBatch],
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float],
    config: TrainingConfig,
    compute: Compute,
    start: int = 0,
) -> Iterator[CompletedStep]:
    """Take one optimizer step per batch and yield it. The measured times exclude the caller's work in between.

    `start` is the number of steps already done. Raises RunFailure, before any weight is changed, if the loss or the
    gradient is not finite, and if the GPU runs out of memory; InputError for an operation that is not deterministic
    after `set_deterministic`.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    begin = time.perf_counter()
    for iteration, (batch, ready) in enumerate(compute.copy_ahead(batches), start=start + 1):
        waited = time.perf_counter() - begin
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * schedule(iteration - 1)
        torch.manual_seed(seed_of(config.seed, Stream.DROPOUT, iteration, rank_info().rank))
        try:
            if config.sampling.ohem:
                ready = with_hardest_rois(model, ready, config.sampling.rois_per_image, compute, config.loss)
                batch = replace(batch, targets=RoiTargets(ready.targets.packed.cpu()), roi_counts=ready.roi_counts)
            values = train_step(model, ready, optimizer, compute, config)
        except NotFinite as error:
            raise_once(not_finite_failure(error, iteration, batch, optimizer.param_groups[0]["lr"]))
        except torch.OutOfMemoryError as error:
            raise out_of_memory_failure(error, iteration, batch, compute) from error
        except RuntimeError as error:
            operation, missing, _ = str(error).partition(f" {NOT_DETERMINISTIC}")
            if not missing:
                raise
            message = f"deterministic=true: torch has no deterministic {operation} on {compute.device}: remove it, or "
            raise_once(InputError(f"{message}change the setting that uses the operation"))
        values |= {
            "train/lr": optimizer.param_groups[0]["lr"],
            "time/data_s": waited,
            "time/step_s": time.perf_counter() - begin,
        }
        yield CompletedStep(iteration, batch, values)
        begin = time.perf_counter()


def train_step(
    model: nn.Module, batch: TrainBatch, optimizer: torch.optim.Optimizer, compute: Compute, config: TrainingConfig
) -> dict[str, Tensor | float]:
    """Forward and backward pass of each part of the batch, then one optimizer step. Returns losses, gradient norm and
    accuracies by TensorBoard tag.

    The batch is on the device of `compute`. The step reads from this device once, to see whether loss and gradient are
    finite. In float16, a step whose gradient overflows is skipped, its norm is NaN, and the scale of the loss is
    reduced. A gradient whose norm is above `config.max_grad_norm` is scaled down to it; the returned norm is the one
    before scaling.

    With several processes, each has a part of the batch. Losses are divided by the number of RoIs of the whole batch,
    so gradient and losses equal those of one process with the whole batch; the accuracies are those of this process's
    part.

    Raises NotFinite, before any weight is changed, if the loss or the gradient is not finite.
    """
    model.train()
    processes = rank_info().world_size
    count = all_reduce_sum(sum(batch.roi_counts)) / processes  # gradients are averaged over the processes
    optimizer.zero_grad()
    own, logits, labels = torch.zeros(2, device=compute.device), [], []
    for images, part in split_batch(batch, config.accumulate):
        class_logits, deltas = compute.forward(model, images, part.rois)
        losses = multi_task_loss(class_logits, deltas, part, count, config.loss)
        config.scaler.scale(losses["cls"] + losses["box"]).backward()
        own += torch.stack([losses["cls"], losses["box"]]).detach()
        logits.append(class_logits.detach())
        labels.append(part.labels)
    config.scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    # This waits for the GPU, because no weight may change before the check. Meanwhile the next batch is copied.
    cls, box, grad_norm = torch.cat([mean(own), norm[None]]).tolist()
    overflows = math.isfinite(cls + box) and not math.isfinite(grad_norm) and can_decrease(config.scaler)
    if not (math.isfinite(cls + box + grad_norm) or overflows):
        raise NotFinite(cls + box, grad_norm, mine=not bool(own.isfinite().all()))
    if config.max_grad_norm is not None and grad_norm > config.max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, config.max_grad_norm, norm)
    if not overflows:
        optimizer.step()
    config.scaler.update()
    return {
        "loss/train": cls + box,
        "loss/train_cls": cls,
        "loss/train_box": box,
        "train/grad_norm": math.nan if overflows else grad_norm,
        **({"train/skipped": float(overflows)} if config.scaler.is_enabled() else {}),
        **{f"roi/{name}": value for name, value in accuracy(torch.cat(logits), torch.cat(labels)).items()},
    }


def can_decrease(scaler: GradScaler) -> bool:
    """Whether the scale of the loss can be reduced, so that a gradient that is not finite may be due to it."""
    return scaler.is_enabled() and scaler.get_scale() > 1


def split_batch(batch: TrainBatch, parts: int) -> Iterator[tuple[Tensor, RoiTargets]]:
    """The batch in `parts` of (nearly) as many images each, as pairs of images and the targets of their RoIs."""
    size = math.ceil(len(batch.images) / parts)
    counts = [sum(batch.roi_counts[first : first + size]) for first in range(0, len(batch.images), size)]
    for number, packed in enumerate(batch.targets.packed.split(counts)):
        first = number * size
        targets = RoiTargets(torch.cat([packed[:, :1] - first, packed[:, 1:]], dim=1))
        yield batch.images[first : first + size], targets
