"""Threads that compute beside the main one, which signals interrupt."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from detector.errors import Stopped


@contextmanager
def thread_pool(*arguments: Any) -> Iterator[ThreadPoolExecutor]:
    """A ThreadPoolExecutor of these arguments. Tasks that have not started when the context ends are dropped.

    An interrupt does not wait for the tasks that run: `exit_status` ends the process with them.
    """
    pool, waits = ThreadPoolExecutor(*arguments), True
    try:
        yield pool
    except (KeyboardInterrupt, Stopped):
        waits = False
        raise
    finally:
        pool.shutdown(wait=waits, cancel_futures=True)
