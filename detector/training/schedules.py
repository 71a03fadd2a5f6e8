"""Learning rate schedules: a factor on the base rate, as a function of the iteration."""

import math
from collections.abc import Sequence


class Step:
    """Linear warm-up from `warmup_factor` to 1; the factor is multiplied by `gamma` at each of `steps`.

    `steps` are fractions of the run: 0.75 of 40 000 iterations is the paper's drop at 30 000. Raises ValueError for a
    `gamma` that is not a number above 0.
    """

    def __init__(
        self, iterations: int, steps: Sequence[float], gamma: float, warmup_iterations: int, warmup_factor: float
    ) -> None:
        if not (isinstance(gamma, int | float) and 0 < gamma < math.inf):
            raise ValueError(f"gamma={gamma} must be a number above 0")
        self.milestones = [step * iterations for step in steps]
        self.gamma = gamma
        self.warmup_iterations = warmup_iterations
        self.warmup_factor = warmup_factor

    def __call__(self, iteration: int) -> float:
        drops = sum(iteration >= milestone for milestone in self.milestones)
        return self.gamma**drops * _warmup(iteration, self.warmup_iterations, self.warmup_factor)


class Cosine:
    """Half a cosine from 1 down to 0 at the last iteration, times a linear warm-up from `warmup_factor` to 1."""

    def __init__(self, iterations: int, warmup_iterations: int, warmup_factor: float) -> None:
        self.iterations = iterations
        self.warmup_iterations = warmup_iterations
        self.warmup_factor = warmup_factor

    def __call__(self, iteration: int) -> float:
        cosine = (1 + math.cos(math.pi * iteration / self.iterations)) / 2
        return cosine * _warmup(iteration, self.warmup_iterations, self.warmup_factor)


def _warmup(iteration: int, warmup_iterations: int, warmup_factor: float) -> float:
    done = min(iteration / warmup_iterations, 1) if warmup_iterations else 1
    return warmup_factor + (1 - warmup_factor) * done
