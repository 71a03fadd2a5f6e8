"""Diagnostics: a step needs more memory than is free, fails, or diverges, or the network collapses."""

import logging
import math
from collections import deque
from collections.abc import Mapping
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from detector.errors import RunFailure, first_few
from detector.runtime.device import Compute, free_memory_gib, peak_memory_mib
from detector.runtime.distributed import gather
from detector.structures import TrainBatch

logger = logging.getLogger(__name__)

ENTROPY_FRACTION = 0.98  # a class loss of so much of the label entropy is that of predicting label frequencies
MAX_ACCURACY = 0.01  # foreground accuracy that still counts as a collapse at such a loss
NORM_FACTOR = 100.0  # times the usual gradient norm is divergence
STEPS_IN_A_ROW = 3
USUAL_STEPS = 100  # the usual norm is the median over so many steps

COPIES = 4  # of the weights: the weights, their gradients, and the two running means of AdamW
WORKSPACE_GIB = 0.3  # of convolutions and the backward pass, as measured for ResNet-18 and VGG16 on a CPU
SIDE, ROIS = 96, 8  # of the small inputs that are measured


class CollapseDetector:
    """Detects that the network has collapsed to predicting label frequencies, regardless of the RoI.

    It has collapsed if in a window of at least `window` iterations no foreground RoI is classified correctly, or hardly
    any while the class loss is as high as the entropy of the labels: the loss of a constant prediction (0.562 for one
    class and a quarter of foreground RoIs). The first `warmup` iterations do not count. The detector reads logged
    values, so that a resumed run can restore it from metrics.jsonl. With several processes, accuracy and entropy are
    those of the first.
    """

    def __init__(self, window: int, warmup: int) -> None:
        self.window = window
        self.warmup = warmup
        self.since: int | None = None  # first iteration of the collapse; None: not collapsed
        self.first: int | None = None  # the same for the first collapse of the run
        self._last = 0
        self._seen: deque[tuple[int, int, float, float, float]] = deque()

    def add(self, iteration: int, values: Mapping[str, float | None]) -> bool:
        """Add the means since the last call, by tag. Returns whether the network has collapsed.

        `roi/foreground_accuracy` is NaN or None if there was no foreground.
        """
        first, self._last = max(self._last, self.warmup) + 1, iteration
        if first > iteration:
            return False
        accuracy = values["roi/foreground_accuracy"]
        loss, entropy = values["loss/train_cls"] or 0.0, values["roi/label_entropy"] or 0.0
        self._seen.append((first, iteration, math.nan if accuracy is None else accuracy, loss, entropy))
        while iteration - self._seen[0][1] >= self.window:
            self._seen.popleft()
        collapsed = iteration - self._seen[0][0] + 1 >= self.window and self._window_is_collapsed()
        self.since = (self.since or self._seen[0][0]) if collapsed else None
        self.first = self.first or self.since
        return collapsed

    def _window_is_collapsed(self) -> bool:
        correct = [(last - first + 1, accuracy) for first, last, accuracy, *_ in self._seen if not math.isnan(accuracy)]
        if not correct:
            return False
        accuracy = sum(steps * value for steps, value in correct) / sum(steps for steps, _ in correct)
        loss = sum((last - first + 1) * loss for first, last, _, loss, _ in self._seen)
        entropy = sum((last - first + 1) * entropy for first, last, *_, entropy in self._seen)
        return accuracy == 0 or (accuracy < MAX_ACCURACY and loss >= ENTROPY_FRACTION * entropy)


def label_entropy(counts: Tensor) -> float:
    """Entropy in nats of label counts (K+1,): the class loss of a network that predicts their frequencies."""
    return float(torch.special.entr(counts.double() / counts.sum().clamp(min=1)).sum())


class DivergenceDetector:
    """Detects a gradient norm of a hundred times its usual value, which usually precedes a loss that is not finite.

    The usual value is known after the norms of 20 steps.
    """

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=USUAL_STEPS)
        self._above = 0

    def add(self, grad_norm: float) -> float | None:
        """Add the gradient norm of a step, NaN for a skipped one. Returns its usual value at the third step in a row
        far above it.
        """
        if math.isnan(grad_norm):
            return None
        usual = median(self._norms) if len(self._norms) >= USUAL_STEPS // 5 else math.inf
        if grad_norm <= NORM_FACTOR * usual:
            self._above = 0
            self._norms.append(grad_norm)
            return None
        self._above += 1
        return usual if self._above == STEPS_IN_A_ROW else None


class NotFinite(Exception):
    """The loss or the gradient of a step is not finite; no weight was changed. `mine`: this process's loss is not."""

    def __init__(self, loss: float, grad_norm: float, mine: bool) -> None:
        super().__init__(f"the loss is {loss:g}, the gradient's norm {grad_norm:g}")
        self.mine = mine


def not_finite_failure(error: NotFinite, iteration: int, batch: TrainBatch, lr: float) -> RunFailure:
    """The failure of a step with a loss or gradient that is not finite.

    It names the images of the processes whose own loss is not finite, or of all if only the gradient is not.
    """
    images = [
        f"{image_id} ({height}x{width} in the network, boxes {first_few(boxes.round().astype(int).tolist()) or 'none'})"
        for image_id, (height, width), boxes in zip(batch.image_ids, batch.image_hws, batch.gt_boxes, strict=True)
    ]
    reports = gather((error.mine, images))
    guilty = [image for mine, part in reports for image in part if mine or not any(bad for bad, _ in reports)]
    return RunFailure(
        f"{error} at iteration {iteration}, at learning rate {lr:g}; the last finite one was "
        f"{iteration - 1 or 'none'}. No weight was changed by this step, and the checkpoints are kept. Its images:\n  "
        + "\n  ".join(guilty)
        + "\nA lower optimizer.lr or a longer schedule.warmup_iterations usually helps."
    )


def out_of_memory_failure(error: Exception, iteration: int, batch: TrainBatch, compute: Compute) -> RunFailure:
    """The failure of a step that does not fit into the GPU's memory, with what reduces memory."""
    height, width = max(batch.image_hws, key=lambda hw: hw[0] * hw[1])
    return RunFailure(
        f"out of GPU memory at iteration {iteration}: {len(batch.image_ids)} images, padded to "
        f"{batch.images.shape[2]}x{batch.images.shape[3]} (the largest, {width} wide and {height} high), "
        f"{sum(batch.roi_counts)} RoIs, at most {peak_memory_mib(compute.device):.0f} MiB in use. The checkpoints are "
        "kept. To reduce memory, lower train.images_per_batch, data.max_side_px or roi.rois_per_image, use "
        f"precision=bfloat16, or split the batch with train.accumulate. ({str(error).splitlines()[0]})"
    )


def warn_if_memory_is_short(
    model: nn.Module, compute: Compute, images: int, max_hw: tuple[int, int], rois_per_image: int
) -> None:
    """Log the memory that a step with `images` images of at most `max_hw` needs, as a warning if less is free."""
    needed, free = step_gib(model, compute, images, max_hw, rois_per_image), free_memory_gib(compute.device)
    size = f"{images} images of at most {max_hw[0]}x{max_hw[1]} with {rois_per_image} RoIs each"
    if needed > free:
        logger.warning(
            "a step of %s needs about %.1f GiB, and %.1f GiB are free: reduce train.images_per_batch, "
            "data.max_side_px or roi.rois_per_image, or split the batch with train.accumulate", size, needed, free,
        )  # fmt: skip
    else:
        logger.info("a step of %s needs about %.1f GiB; %.1f GiB are free", size, needed, free)


def step_gib(model: nn.Module, compute: Compute, images: int, max_hw: tuple[int, int], rois_per_image: int) -> float:
    """GiB that a step needs for weights, gradients, optimizer state and what autograd keeps.

    What autograd keeps grows linearly with pixels and RoIs, so three small inputs determine both rates. On a CPU the
    estimate is within 5 % of the growth of the process, for ResNet-18, ResNet-50 and VGG16 with AdamW.
    """
    saved = partial(_saved_bytes, model.eval(), compute)
    base = saved(SIDE, ROIS)
    per_pixel = (saved(2 * SIDE, ROIS) - base) / (3 * SIDE**2)
    per_roi = (saved(SIDE, 2 * ROIS) - base) / ROIS
    weights = sum(parameter.nbytes for parameter in model.parameters())
    activations = images * (per_pixel * max_hw[0] * max_hw[1] + per_roi * rois_per_image)
    return (COPIES * weights + activations) / 2**30 + WORKSPACE_GIB


def _saved_bytes(model: nn.Module, compute: Compute, side: int, rois: int) -> int:
    """Bytes of the tensors that autograd keeps of one image (side, side) with this number of RoIs."""
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    box = torch.tensor([[0.0, 0.0, 0.0, side - 1, side - 1]]).repeat(rois, 1)
    with saved_tensors_hooks(count, lambda tensor: tensor):
        outputs = compute.forward(model, torch.zeros(1, 3, side, side, dtype=torch.uint8), box)
    del outputs
    return sum(sizes.values())
