"""Thread pool for kernels that release the GIL. It replaces numba's threading layers, which abort the process when
two Python threads call at once (workqueue) or when a forked child calls after its parent (GNU OpenMP).
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from detector.runtime.ranks import cores

# Threads start with the first task, and only as many as are busy at once.
_executor = ThreadPoolExecutor(cores(), "roi_pool")


def _renew() -> None:
    """A forked child inherits the executor, but not its threads."""
    global _executor
    _executor = ThreadPoolExecutor(cores(), "roi_pool")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def run(kernel: Callable[..., None], *arguments: Any) -> None:
    """Call `kernel(*arguments, taken)` on as many threads as torch uses, including the calling thread.

    `taken`, int64 (1,), starts at 0: each call takes one task number after another until all are taken, without
    returning to Python, where only one thread runs at a time.
    """
    taken = np.zeros(1, np.int64)
    futures = [_executor.submit(kernel, *arguments, taken) for _ in range(torch.get_num_threads() - 1)]
    kernel(*arguments, taken)
    for future in futures:
        # A call that has not started has nothing left to do; wait for those that run.
        if not future.cancel():
            future.result()
