"""Diagnostics of a failing run: the network collapses, training diverges, or a step fails."""

import math
from collections import deque
from statistics import median

import torch
from torch import Tensor

from detector.errors import RunFailure, first_few
from detector.runtime.device import Compute, peak_memory_mib
from detector.runtime.distributed import gather
from detector.structures import Batch, RoiTargets

SETTLED = 0.98  # of the entropy of the labels: no better than predicting label frequencies
HARDLY_ANY = 0.01  # foreground accuracy
GROWN = 100.0  # times the usual gradient norm
STEPS_IN_A_ROW = 3
USUAL_STEPS = 100  # the usual norm is the median over so many steps


class CollapseDetector:
    """Detects that the network has collapsed to predicting label frequencies, regardless of the RoI.

    It has collapsed if in a window of at least `window` iterations no foreground RoI is classified correctly, or hardly
    any while the class loss is as high as the entropy of the labels: the loss of a constant prediction (0.562 for one
    class and a quarter of foreground RoIs).
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.since: int | None = None  # start of the window that first showed collapse; None: not collapsed
        self._seen: deque[tuple[int, int, float, float, Tensor]] = deque()

    def add(self, first: int, last: int, foreground_accuracy: float, loss_cls: float, label_counts: Tensor) -> bool:
        """Add means over the iterations `first` to `last`, and the label counts. Returns whether it has collapsed.

        `foreground_accuracy` is NaN if there was no foreground.
        """
        self._seen.append((first, last, foreground_accuracy, loss_cls, label_counts))
        while last - self._seen[0][1] >= self.window:
            self._seen.popleft()
        collapsed = last - self._seen[0][0] + 1 >= self.window and self._window_is_collapsed()
        self.since = (self.since or self._seen[0][0]) if collapsed else None
        return collapsed

    def _window_is_collapsed(self) -> bool:
        weights = [last - first + 1 for first, last, *_ in self._seen]
        right = [(w, item[2]) for w, item in zip(weights, self._seen, strict=True) if not math.isnan(item[2])]
        if not right:
            return False
        accuracy = sum(w * value for w, value in right) / sum(w for w, _ in right)
        loss = sum(w * item[3] for w, item in zip(weights, self._seen, strict=True)) / sum(weights)
        frequencies = torch.stack([item[4] for item in self._seen]).sum(dim=0).double()
        entropy = float(torch.special.entr(frequencies / frequencies.sum()).sum())
        return accuracy == 0 or (accuracy < HARDLY_ANY and loss >= SETTLED * entropy)


class DivergenceDetector:
    """Detects a gradient norm of a hundred times its usual value, which is soon not finite."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=USUAL_STEPS)
        self._above = 0

    def add(self, grad_norm: float) -> float | None:
        """Add the gradient norm of a step. Returns its usual value at the third step in a row far above it."""
        usual = median(self._norms) if len(self._norms) >= USUAL_STEPS // 5 else math.inf
        if grad_norm <= GROWN * usual:
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


def not_finite_failure(error: NotFinite, iteration: int, batch: Batch, lr: float) -> RunFailure:
    """The failure of a step with a loss or gradient that is not finite.

    It names the images of the processes whose own loss is not finite, or of all if only the gradient is not.
    """
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
        + "\nA lower optimizer.lr or a longer schedule.warmup_iterations usually helps."
    )


def out_of_memory_failure(
    error: Exception, iteration: int, batch: Batch, targets: RoiTargets, compute: Compute
) -> RunFailure:
    """The failure of a step that does not fit into the GPU's memory, with what reduces memory."""
    height, width = max(batch.image_hws, key=lambda hw: hw[0] * hw[1])
    return RunFailure(
        f"out of GPU memory at iteration {iteration}: {len(batch.image_ids)} images, padded to "
        f"{batch.images.shape[2]}x{batch.images.shape[3]} (the largest, {width} wide and {height} high), "
        f"{len(targets.labels)} RoIs, at most {peak_memory_mib(compute.device):.0f} MiB in use. The checkpoints are "
        "kept. Less is needed with smaller train.images_per_batch, data.max_side_px or roi.rois_per_image, or with "
        f"precision=bfloat16. ({str(error).splitlines()[0]})"
    )
