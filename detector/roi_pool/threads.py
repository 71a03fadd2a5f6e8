"""Threads for kernels that release the GIL: ours instead of numba's, whose layers end the process when two
Python threads call at once (workqueue) or when a forked child calls after its parent did (GNU OpenMP).
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

# No thread starts before the first task, and only as many as are busy at once.
_executor = ThreadPoolExecutor(os.cpu_count(), "roi_pool")


def _renew() -> None:
    """A forked child inherits the executor, but not its threads."""
    global _executor
    _executor = ThreadPoolExecutor(os.cpu_count(), "roi_pool")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def run(kernel: Callable[..., None], *arguments: Any) -> None:
    """Call `kernel(*arguments, taken)` on as many threads as torch uses, the caller's among them.

    `taken`, int64 (1,), is 0 at first: each call takes one task after the other, by its number, until all are taken,
    without coming back to Python, where only one thread at a time gets on.
    """
    taken = np.zeros(1, np.int64)
    futures = [_executor.submit(kernel, *arguments, taken) for _ in range(torch.get_num_threads() - 1)]
    kernel(*arguments, taken)
    for future in futures:
        # A helper that never got a thread has nothing left to do; one that runs is waited for.
        if not future.cancel():
            future.result()
