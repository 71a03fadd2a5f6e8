"""Memory for results. Memory of results without references is reused, as in GPU allocators: page faults on 200 MB of
new memory take longer in Linux than the pooling that fills it.
"""

import math
import weakref
from collections import deque

import numpy as np

# Rows of results start at multiples of this, the size of a cache line.
ALIGNMENT = 64
# Kept memory: the result, argmax and gradient of one step, up to a maximum size.
_KEPT: deque[np.ndarray] = deque(maxlen=3)
_LARGEST_KEPT_BYTES = 2**28


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialized array that starts at a multiple of ALIGNMENT.

    Its memory is reused once the array is deleted: pass on the array itself, not a view, which could outlive it.
    New memory comes from numpy, which requests huge pages from Linux.
    """
    size = math.prod(shape) * dtype.itemsize
    buffer = _take(size)
    array = buffer[:size].view(dtype).reshape(shape)
    weakref.finalize(array, _give_back, buffer).atexit = False
    return array


def _take(size: int) -> np.ndarray:
    for _ in range(len(_KEPT)):
        try:
            buffer = _KEPT.popleft()
        except IndexError:  # another thread took it
            break
        if size <= buffer.nbytes <= 2 * size:
            return buffer
        _KEPT.append(buffer)
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size]


def _give_back(buffer: np.ndarray) -> None:
    if 0 < buffer.nbytes <= _LARGEST_KEPT_BYTES:
        _KEPT.append(buffer)
