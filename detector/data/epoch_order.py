"""The order of the training images in an epoch: a function of (seed, epoch), so that a run can resume at any step."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from detector.runtime.seeds import Stream, seed_of


@dataclass(frozen=True)
class EpochOrder:
    """Indices of the images of an epoch, in random order: each once, unless `repeats` is given.

    `repeats` is how often each image occurs in an epoch on average, 1 or more; fractions are rounded at random so that
    all epochs have the same length. With `is_portrait`, batches of `images_per_batch` have images of one orientation,
    except the first one and the last ones of an epoch. Both are (number of images,).
    """

    images: int
    seed: int
    repeats: np.ndarray | None = None
    is_portrait: np.ndarray | None = None
    images_per_batch: int = 1

    @property
    def size(self) -> int:
        """Number of samples of an epoch."""
        return self.images if self.repeats is None else math.ceil(round(float(self.repeats.sum()), 6))

    def indices(self, epoch: int) -> np.ndarray:
        """The images (size,) of this epoch, counted from 0."""
        rng = np.random.default_rng(seed_of(self.seed, Stream.ORDER, epoch))
        order = rng.permutation(self.images)
        if self.repeats is not None:
            # Systematic sampling: an image is repeated floor(r) or ceil(r) times, r on average.
            ends = np.cumsum(self.repeats[order]) * (self.size / self.repeats.sum())
            counts = np.diff(np.floor(ends.round(6) + rng.random()), prepend=0).astype(np.int64)
            order = rng.permutation(np.repeat(order, counts))
        return order if self.is_portrait is None else self._grouped(order, epoch, rng)

    def _grouped(self, order: np.ndarray, epoch: int, rng: np.random.Generator) -> np.ndarray:
        """The same images, in batches of one orientation; images that fill no batch come last."""
        assert self.is_portrait is not None
        first = min(-epoch * self.size % self.images_per_batch, len(order))  # completes the epoch before's last batch
        left, batches = [], []
        for portrait in (False, True):
            group = order[first:][self.is_portrait[order[first:]] == portrait]
            whole = len(group) - len(group) % self.images_per_batch
            batches.append(group[:whole].reshape(-1, self.images_per_batch))
            left.append(group[whole:])
        return np.concatenate([order[:first], rng.permutation(np.concatenate(batches)).ravel(), *left])


def repeat_factors(classes: Sequence[Collection[str]], threshold: float) -> np.ndarray:
    """How often each image is repeated in an epoch, so that rare classes are seen more often.

    `classes` are the class names of the objects of each image. A class in a fraction f of the images has the factor
    max(1, sqrt(threshold / f)), and an image the largest factor of its classes (Gupta et al. 2019, appendix B).
    """
    present = [{*names} for names in classes]
    counts = Counter(name for names in present for name in names)
    factors = {name: max(1.0, float(np.sqrt(threshold * len(present) / count))) for name, count in counts.items()}
    return np.array([max((factors[name] for name in names), default=1.0) for names in present])
