"""The training and the evaluation loop."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from detector.boxes import BoxCoder
from detector.device import Compute
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
) -> Iterator[Step]:
    """Take one optimizer step a batch, and yield it. What the caller does in between is not in the measured times."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    begin = time.perf_counter()
    for iteration, batch in enumerate(batches, start=1):
        waited = time.perf_counter() - begin
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * schedule(iteration - 1)
        targets = make_targets(batch, recipe.sampling, recipe.coder, recipe.seed)
        torch.manual_seed(seed_of(recipe.seed, Stream.DROPOUT, iteration))
        values = train_step(model, batch.images, targets, optimizer, compute)
        values |= {
            "train/lr": optimizer.param_groups[0]["lr"],
            "time/data_s": waited,
            "time/step_s": time.perf_counter() - begin,
        }
        yield Step(iteration, batch, targets, values)
        begin = time.perf_counter()


def train_step(
    model: nn.Module, images: Tensor, targets: RoiTargets, optimizer: torch.optim.Optimizer, compute: Compute
) -> dict[str, Tensor | float]:
    """Forward, loss, backward, update. Returns losses, gradient norm and accuracies by TensorBoard tag."""
    model.train()
    targets = targets.to(compute.device)
    class_logits, deltas = compute.forward(model, images, targets.rois)
    losses = multi_task_loss(class_logits, deltas, targets)
    loss = losses["cls"] + losses["box"]
    optimizer.zero_grad()
    loss.backward()
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm(gradients)
    optimizer.step()
    return {
        "train/loss": loss.detach(),
        **{f"train/loss_{name}": value.detach() for name, value in losses.items()},
        "train/grad_norm": grad_norm,
        **{f"roi/{name}": value for name, value in accuracy(class_logits, targets).items()},
    }


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], recipe: Recipe, compute: Compute
) -> tuple[list[Detections], dict[str, float]]:
    """Detections of every image, and the mean losses `cls` and `box` on RoIs drawn as in training.

    Each image goes through the network once: its proposals and the RoIs of the loss share the feature map.
    """
    model.eval()
    detections, losses = [], []
    for batch in tqdm(batches, unit="image", desc="evaluate", leave=False, disable=None):
        targets = make_targets(batch, recipe.sampling, recipe.coder, recipe.seed)
        proposals = [with_batch_index(boxes, index) for index, boxes in enumerate(batch.proposals)]
        rois = torch.cat([targets.rois, *proposals])
        class_logits, deltas = (answer.float().cpu() for answer in compute.forward(model, batch.images, rois))
        drawn = len(targets.rois)
        losses.append(multi_task_loss(class_logits[:drawn], deltas[:drawn], targets))
        detections += _detections(class_logits[drawn:], deltas[drawn:], batch, recipe)
    return detections, {name: float(torch.stack([item[name] for item in losses]).mean()) for name in ("cls", "box")}


@torch.inference_mode()
def detect(model: nn.Module, batch: Batch, recipe: Recipe, compute: Compute) -> list[Detections]:
    """Detections of every image of a batch."""
    model.eval()
    rois = torch.cat([with_batch_index(boxes, index) for index, boxes in enumerate(batch.proposals)])
    class_logits, deltas = (answer.float().cpu() for answer in compute.forward(model, batch.images, rois))
    return _detections(class_logits, deltas, batch, recipe)


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
