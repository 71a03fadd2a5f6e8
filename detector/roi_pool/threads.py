"""Threads for kernels that release the GIL: ours instead of numba's, whose layers end the process when two
Python threads call at once (workqueue) or when a forked child calls after its parent did (GNU OpenMP).
"""

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

# No thread starts before the first task, and only as many as are busy at once.
_executor = ThreadPoolExecutor(os.cpu_count(), "roi_pool")


def _renew() -> None:
    """A forked child inherits the executor, but not its threads."""
    global _executor
    _executor = ThreadPoolExecutor(os.cpu_count(), "roi_pool")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def run(kernel: Callable[..., None], tasks: Iterable[tuple[Any, ...]]) -> None:
    """Call `kernel(*task)` for every task, on as many threads as torch uses, the caller's among them."""
    waiting = deque(tasks)

    def work() -> None:
        while True:
            try:
                task = waiting.popleft()
            except IndexError:
                return
            kernel(*task)

    helpers = min(torch.get_num_threads(), len(waiting)) - 1
    futures = [_executor.submit(work) for _ in range(helpers)]
    work()
    for future in futures:
        # A helper that never got a thread has nothing left to do; one that runs is waited for.
        if not future.cancel():
            future.result()
