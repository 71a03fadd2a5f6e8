"""The training loop."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from detector.boxes import BoxCoder
from detector.runtime.device import Compute
from detector.runtime.distributed import all_reduce_sum, mean, raise_once
from detector.runtime.ranks import rank_info
from detector.runtime.seeds import Stream, seed_of
from detector.settings import RoISampling
from detector.structures import Batch, RoiTargets
from detector.training.diagnostics import NotFinite, not_finite_failure, out_of_memory_failure
from detector.training.losses import PAPER, LossConfig, accuracy, multi_task_loss
from detector.training.ohem import all_targets, hardest_targets
from detector.training.targets import make_targets


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

    def candidate_targets(self, batch: Batch) -> RoiTargets:
        """The RoIs to train on; with OHEM all RoIs, of which the hardest are."""
        targets = all_targets if self.sampling.ohem else make_targets
        return targets(batch, self.sampling, self.coder, self.seed)


@dataclass(frozen=True)
class Step:
    """A completed training step."""

    iteration: int  # from 1
    batch: Batch
    targets: RoiTargets
    values: dict[str, Tensor | float]  # by TensorBoard tag; tensors are read only when logged


def training_steps(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float],
    config: TrainingConfig,
    compute: Compute,
    start: int = 0,
) -> Iterator[Step]:
    """Take one optimizer step per batch and yield it. The measured times exclude the caller's work in between.

    `start` is the number of steps already done. Raises RunFailure, before any weight is changed, if the loss or the
    gradient is not finite, and if the GPU runs out of memory.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    begin = time.perf_counter()
    for iteration, batch in enumerate(batches, start=start + 1):
        waited = time.perf_counter() - begin
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * schedule(iteration - 1)
        torch.manual_seed(seed_of(config.seed, Stream.DROPOUT, iteration, rank_info().rank))
        targets = config.candidate_targets(batch)
        try:
            if config.sampling.ohem:
                size = config.sampling.rois_per_image
                targets = hardest_targets(model, batch.images, targets, size, compute, config.loss)
            values = train_step(model, batch.images, targets, optimizer, compute, config)
        except NotFinite as error:
            raise_once(not_finite_failure(error, iteration, batch, optimizer.param_groups[0]["lr"]))
        except torch.OutOfMemoryError as error:
            raise out_of_memory_failure(error, iteration, batch, targets, compute) from error
        values |= {
            "train/lr": optimizer.param_groups[0]["lr"],
            "time/data_s": waited,
            "time/step_s": time.perf_counter() - begin,
        }
        yield Step(iteration, batch, targets, values)
        begin = time.perf_counter()


def train_step(
    model: nn.Module,
    images: Tensor,
    targets: RoiTargets,
    optimizer: torch.optim.Optimizer,
    compute: Compute,
    config: TrainingConfig,
) -> dict[str, Tensor | float]:
    """Forward, loss and backward of each part of the batch, update. Returns losses, gradient norm and accuracies by
    TensorBoard tag.

    In float16, a step whose gradient overflows is skipped, its norm is NaN, and the next losses have a smaller scale.

    A gradient whose norm is above `config.max_grad_norm` is scaled down to it; the returned norm is that before this.

    Of several processes, each has a part of the batch. Losses are divided by the RoIs of the whole batch, so gradient
    and losses equal those of one process with the whole batch; the accuracies are of this process's part.
    """
    model.train()
    processes = rank_info().world_size
    count = all_reduce_sum(len(targets.labels)) / processes  # gradients are averaged over the processes
    optimizer.zero_grad()
    own, logits, labels = torch.zeros(2, device=compute.device), [], []
    for part_images, part in split_batch(images, targets, config.accumulate):
        part = part.to(compute.device)
        class_logits, deltas = compute.forward(model, part_images, part.rois)
        losses = multi_task_loss(class_logits, deltas, part, count, config.loss)
        config.scaler.scale(losses["cls"] + losses["box"]).backward()
        own += torch.stack([losses["cls"], losses["box"]]).detach()
        logits.append(class_logits.detach())
        labels.append(part.labels)
    config.scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    # Reading these synchronizes with the GPU once per step; only the launch of the update is then not overlapped.
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
    """Whether a gradient that is not finite may be due to the scale of the loss."""
    return scaler.is_enabled() and scaler.get_scale() > 1


def split_batch(images: Tensor, targets: RoiTargets, parts: int) -> Iterator[tuple[Tensor, RoiTargets]]:
    """The batch in `parts` of (nearly) as many images each; RoIs are ordered by their image."""
    size = math.ceil(len(images) / parts)
    for first in range(0, len(images), size):
        row = torch.nonzero((targets.rois[:, 0] >= first) & (targets.rois[:, 0] < first + size)).flatten()
        rois = targets.rois[row] - targets.rois.new_tensor([first, 0, 0, 0, 0])
        yield images[first : first + size], RoiTargets(rois, targets.labels[row], targets.deltas[row])
