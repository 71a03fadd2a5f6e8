"""Learning rate schedules: a factor on the base rate, as a function of the iteration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """Linear warm-up from `warmup_factor` to 1; the factor is multiplied by `gamma` at each of `steps`.

    `steps` are fractions of the run: 0.75 of 40 000 iterations is the paper's drop at 30 000. Raises ValueError for a
    `gamma` that is not a number above 0.
    """

    iterations: int
    steps: Sequence[float]
    gamma: float
    warmup_iterations: int
    warmup_factor: float

    def __post_init__(self) -> None:
        if not (isinstance(self.gamma, int | float) and 0 < self.gamma < math.inf):
            raise ValueError(f"gamma={self.gamma} must be a number above 0")

    def __call__(self, iteration: int) -> float:
        drops = sum(iteration >= step * self.iterations for step in self.steps)
        return self.gamma**drops * _warmup(iteration, self.warmup_iterations, self.warmup_factor)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 down to 0 at the last iteration, times a linear warm-up from `warmup_factor` to 1."""

    iterations: int
    warmup_iterations: int
    warmup_factor: float

    def __call__(self, iteration: int) -> float:
        cosine = (1 + math.cos(math.pi * iteration / self.iterations)) / 2
        return cosine * _warmup(iteration, self.warmup_iterations, self.warmup_factor)


def _warmup(iteration: int, warmup_iterations: int, warmup_factor: float) -> float:
    done = min(iteration / warmup_iterations, 1) if warmup_iterations else 1
    return warmup_factor + (1 - warmup_factor) * done
