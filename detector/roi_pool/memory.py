"""Memory for results. That of results which nobody holds any longer is used again, as allocators for GPUs do: Linux
takes longer to hand out 200 fresh MB page by page than the pooling takes to fill them.
"""

import math
import weakref
from collections import deque

import numpy as np

# Rows of results begin at multiples of this, the size of a cache line.
ALIGNMENT = 64
# What is kept: a step's results, its argmax and its gradient; nothing so large that keeping it would hurt.
_KEPT: deque[np.ndarray] = deque(maxlen=3)
_LARGEST_KEPT_BYTES = 2**28


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of any values that begins at a multiple of ALIGNMENT.

    When it is gone, its memory is used again: hand it on as it is, not a view of it, which would outlive it.
    Fresh memory comes from numpy, which asks Linux for huge pages.
    """
    size = math.prod(shape) * dtype.itemsize
    room = _take(size)
    array = room[:size].view(dtype).reshape(shape)
    weakref.finalize(array, _give_back, room).atexit = False
    return array


def _take(size: int) -> np.ndarray:
    for _ in range(len(_KEPT)):
        try:
            room = _KEPT.popleft()
        except IndexError:  # another thread took it
            break
        if size <= room.nbytes <= 2 * size:
            return room
        _KEPT.append(room)
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size]


def _give_back(room: np.ndarray) -> None:
    if 0 < room.nbytes <= _LARGEST_KEPT_BYTES:
        _KEPT.append(room)
