"""All randomness is a function of known numbers: the seed of the run, the iteration, the position of the sample.

Therefore a run does not depend on the number of workers, and can be resumed at any step.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """A separate random stream for each use."""

    ORDER = 0
    AUGMENTATION = 1
    ROIS = 2
    DROPOUT = 3
    SCALE = 4


def seed_of(*numbers: int) -> int:
    """One seed from several numbers, the same on every machine; similar numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
