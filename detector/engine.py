"""The training and the evaluation loop."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from detector.boxes import BoxCoder
from detector.device import Compute, peak_memory_mib
from detector.distributed import gather, gather_turns, is_main, mean, place, raise_once, total
from detector.errors import RunFailure, first_few
from detector.losses import accuracy, multi_task_loss
from detector.postprocess import Postprocess, postprocess
from detector.seeds import Stream, seed_of
from detector.structures import Batch, Detections
from detector.targets import RoiTargets, Sampling, make_targets, with_batch_index


@dataclass(frozen=True)
class Recipe:
    """What is the same at every step: how RoIs are drawn and coded, and which detections are kept."""

    sampling: Sampling
    coder: BoxCoder
    postprocess: Postprocess
    seed: int
    max_grad_norm: float | None = None  # a larger gradient is scaled down to this


@dataclass(frozen=True)
class Step:
    """One step of training, done."""

    iteration: int  # from 1
    batch: Batch
    targets: RoiTargets
    values: dict[str, Tensor | float]  # by TensorBoard tag; tensors, which are read when they are logged


def training_steps(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float],
    recipe: Recipe,
    compute: Compute,
    start: int = 0,
) -> Iterator[Step]:
    """Take one optimizer step a batch, and yield it. What the caller does in between is not in the measured times.

    `start` steps are done already. Raises RunFailure, before any weight is changed, when the loss or the gradient is
    not finite, and when the GPU has not enough memory.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    begin = time.perf_counter()
    for iteration, batch in enumerate(batches, start=start + 1):
        waited = time.perf_counter() - begin
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * schedule(iteration - 1)
        targets = make_targets(batch, recipe.sampling, recipe.coder, recipe.seed)
        torch.manual_seed(seed_of(recipe.seed, Stream.DROPOUT, iteration, place().rank))
        try:
            values = train_step(model, batch.images, targets, optimizer, compute, recipe.max_grad_norm)
        except NotFinite as error:
            raise_once(_not_finite(error, iteration, batch, optimizer.param_groups[0]["lr"]))
        except torch.OutOfMemoryError as error:
            raise _out_of_memory(error, iteration, batch, targets, compute) from error
        values |= {
            "train/lr": optimizer.param_groups[0]["lr"],
            "time/data_s": waited,
            "time/step_s": time.perf_counter() - begin,
        }
        yield Step(iteration, batch, targets, values)
        begin = time.perf_counter()


class NotFinite(Exception):
    """The loss or the gradient of a step is not finite; no weight was changed. `mine`: this process's loss is not."""

    def __init__(self, loss: float, grad_norm: float, mine: bool) -> None:
        super().__init__(f"the loss is {loss:g}, the gradient's norm {grad_norm:g}")
        self.mine = mine


def train_step(
    model: nn.Module,
    images: Tensor,
    targets: RoiTargets,
    optimizer: torch.optim.Optimizer,
    compute: Compute,
    max_grad_norm: float | None = None,
) -> dict[str, Tensor | float]:
    """Forward, loss, backward, update. Returns losses, gradient norm and accuracies by TensorBoard tag.

    A gradient whose norm is above `max_grad_norm` is scaled down to it; the norm returned is that before.

    Of several processes each has a part of the batch. Losses are divided by the RoIs of the whole batch, so gradient
    and losses are those of one process with all of it; the accuracies are of this process's part.
    """
    model.train()
    processes = place().world_size
    count = total(len(targets.labels)) / processes  # gradients are averaged over the processes
    targets = targets.to(compute.device)
    class_logits, deltas = compute.forward(model, images, targets.rois)
    losses = multi_task_loss(class_logits, deltas, targets, count)
    optimizer.zero_grad()
    (losses["cls"] + losses["box"]).backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    own = torch.stack([losses["cls"], losses["box"]]).detach()
    # Reading these waits for the GPU once a step; only the launch of the update is then not hidden behind computing.
    cls, box, grad_norm = torch.cat([mean(own), norm[None]]).tolist()
    if not math.isfinite(cls + box + grad_norm):
        raise NotFinite(cls + box, grad_norm, mine=not bool(own.isfinite().all()))
    if max_grad_norm is not None and grad_norm > max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    optimizer.step()
    return {
        "train/loss": cls + box,
        "train/loss_cls": cls,
        "train/loss_box": box,
        "train/grad_norm": grad_norm,
        **{f"roi/{name}": value for name, value in accuracy(class_logits, targets).items()},
    }


def _not_finite(error: NotFinite, iteration: int, batch: Batch, lr: float) -> RunFailure:
    """The images of the processes whose own loss is not finite, or of all where only the gradient is not."""
    images = [
        f"{image_id} ({height}x{width} in the network, boxes {first_few(boxes.round().int().tolist()) or 'none'})"
        for image_id, (height, width), boxes in zip(batch.image_ids, batch.image_hws, batch.gt_boxes, strict=True)
    ]
    reports = gather((error.mine, images))
    guilty = [image for mine, part in reports for image in part if mine or not any(bad for bad, _ in reports)]
    return RunFailure(
        f"{error} at iteration {iteration}, at learning rate {lr:g}; the last finite one was "
        f"{iteration - 1 or 'none'}. No weight was changed by this step, and the checkpoints are kept. Its images:\n  "
        + "\n  ".join(guilty)
        + "\nA lower optimizer.lr or a longer schedule.warmup_iterations helps most often."
    )


def _out_of_memory(error: Exception, iteration: int, batch: Batch, targets: RoiTargets, compute: Compute) -> RunFailure:
    height, width = max(batch.image_hws, key=lambda hw: hw[0] * hw[1])
    return RunFailure(
        f"out of GPU memory at iteration {iteration}: {len(batch.image_ids)} images, padded to "
        f"{batch.images.shape[2]}x{batch.images.shape[3]} (the largest, {width} wide and {height} high), "
        f"{len(targets.labels)} RoIs, at most {peak_memory_mib(compute.device):.0f} MiB in use. The checkpoints are "
        "kept. Less is needed with smaller train.images_per_batch, data.max_side_px or roi.rois_per_image, or with "
        f"precision=bfloat16. ({str(error).splitlines()[0]})"
    )


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], recipe: Recipe, compute: Compute
) -> tuple[list[Detections], dict[str, float]]:
    """Detections of every image, and the mean losses `cls` and `box` on RoIs drawn as in training.

    Each image goes through the network once: its proposals and the RoIs of the loss share the feature map. Of several
    processes each takes its turn of the images, and all get the whole outcome.
    """
    model.eval()
    detections, losses = [], []
    for batch in tqdm(batches, unit="image", desc="evaluate", leave=False, disable=None if is_main() else True):
        targets = make_targets(batch, recipe.sampling, recipe.coder, recipe.seed)
        proposals = [with_batch_index(boxes, index) for index, boxes in enumerate(batch.proposals)]
        rois = torch.cat([targets.rois, *proposals])
        class_logits, deltas = _answers(model, batch, rois, compute)
        drawn = len(targets.rois)
        losses.append(multi_task_loss(class_logits[:drawn], deltas[:drawn], targets))
        detections += _detections(class_logits[drawn:], deltas[drawn:], batch, recipe)
    detections, losses = gather_turns(detections), gather_turns(losses)
    return detections, {name: float(torch.stack([item[name] for item in losses]).mean()) for name in ("cls", "box")}


@torch.inference_mode()
def detect(model: nn.Module, batch: Batch, recipe: Recipe, compute: Compute) -> list[Detections]:
    """Detections of every image of a batch."""
    model.eval()
    rois = torch.cat([with_batch_index(boxes, index) for index, boxes in enumerate(batch.proposals)])
    class_logits, deltas = _answers(model, batch, rois, compute)
    return _detections(class_logits, deltas, batch, recipe)


def _answers(model: nn.Module, batch: Batch, rois: Tensor, compute: Compute) -> tuple[Tensor, Tensor]:
    """Class logits and deltas of every RoI, in float32 on the CPU."""
    try:
        class_logits, deltas = compute.forward(model, batch.images, rois)
        return class_logits.float().cpu(), deltas.float().cpu()
    except torch.OutOfMemoryError as error:
        raise RunFailure(
            f"out of GPU memory at {', '.join(batch.image_ids)}: padded to {batch.images.shape[2]}x"
            f"{batch.images.shape[3]}, {len(rois)} RoIs, at most {peak_memory_mib(compute.device):.0f} MiB in use. "
            "Less is needed with smaller data.max_side_px or data.val_max_proposals, or with precision=bfloat16. "
            f"({str(error).splitlines()[0]})"
        ) from error


def _detections(class_logits: Tensor, deltas: Tensor, batch: Batch, recipe: Recipe) -> list[Detections]:
    """From the answers (P, ...) for the proposals of all images of the batch, end to end."""
    sizes = [len(boxes) for boxes in batch.proposals]
    return [
        postprocess(logits, moves, proposals, recipe.coder, image_id, image_hw, original_hw, recipe.postprocess)
        for logits, moves, proposals, image_id, image_hw, original_hw in zip(
            class_logits.split(sizes),
            deltas.split(sizes),
            batch.proposals,
            batch.image_ids,
            batch.image_hws,
            batch.original_hws,
            strict=True,
        )
    ]
