"""Threads that compute beside the main thread, which can be interrupted by signals."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from detector.errors import Stopped

NAME = "compute"  # of the threads


@contextmanager
def thread_pool(threads: int, begin: Callable[[], None] | None = None) -> Iterator[ThreadPoolExecutor]:
    """A ThreadPoolExecutor; `begin` is called on each thread. Tasks that have not started when the context ends are
    dropped.

    An interrupt does not wait for running tasks: `exit_status` ends the process and its threads.
    """
    pool, waits = ThreadPoolExecutor(threads, NAME, begin), True
    try:
        yield pool
    except (KeyboardInterrupt, Stopped):
        waits = False
        raise
    finally:
        pool.shutdown(wait=waits, cancel_futures=True)


def pools_run() -> bool:
    """Whether a thread of a `thread_pool` still runs, as after an interrupt."""
    return any(thread.name.startswith(NAME) for thread in threading.enumerate())
