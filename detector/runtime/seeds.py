"""Everything random is a function of numbers that are known: the run's seed, the iteration, the sample's position.

So a run does not depend on the number of workers, and can be taken up again at any step.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What the randomness is for, so that no two uses share it."""

    ORDER = 0
    AUGMENTATION = 1
    ROIS = 2
    DROPOUT = 3


def seed_of(*numbers: int) -> int:
    """One seed from several numbers, the same on every machine; near numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
