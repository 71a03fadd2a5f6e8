"""Signs that a run learns nothing, or soon will not be finite, read from numbers that are at hand at every step."""

import math
from collections import deque
from statistics import median

import torch
from torch import Tensor

SETTLED = 0.98  # of the entropy of the labels: no better than to predict how frequent each label is
HARDLY_ANY = 0.01  # foreground accuracy
GROWN = 100.0  # times the usual norm of the gradient
STEPS_IN_A_ROW = 3
USUAL_STEPS = 100  # the norm's median over so many is the usual one


class CollapseDetector:
    """Whether the network has collapsed to predicting label frequencies, whatever the RoI.

    It has when in a window of at least `window` iterations no foreground RoI was classified correctly, or hardly any
    while the class loss was as high as the entropy of the labels: the loss of a constant prediction (for one class and
    a quarter of foreground RoIs 0.562).
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.since: int | None = None  # the iteration before the window in which it was first seen; None: it is not
        self._seen: deque[tuple[int, int, float, float, Tensor]] = deque()

    def add(self, first: int, last: int, foreground_accuracy: float, loss_cls: float, label_counts: Tensor) -> bool:
        """Means over the iterations `first` to `last`, and how often each label occurred. Returns `is_collapsed`.

        `foreground_accuracy` is NaN where there was no foreground.
        """
        self._seen.append((first, last, foreground_accuracy, loss_cls, label_counts))
        while last - self._seen[0][1] >= self.window:
            self._seen.popleft()
        collapsed = last - self._seen[0][0] + 1 >= self.window and self._window_shows_it()
        self.since = (self.since or self._seen[0][0]) if collapsed else None
        return collapsed

    def _window_shows_it(self) -> bool:
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
    """Whether the norm of the gradient has grown to a hundred times its usual value, which soon is not finite."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=USUAL_STEPS)
        self._above = 0

    def add(self, grad_norm: float) -> float | None:
        """The norm of a step's gradient. Returns its usual value at the third step in a row that is far above it."""
        usual = median(self._norms) if len(self._norms) >= USUAL_STEPS // 5 else math.inf
        if grad_norm <= GROWN * usual:
            self._above = 0
            self._norms.append(grad_norm)
            return None
        self._above += 1
        return usual if self._above == STEPS_IN_A_ROW else None
