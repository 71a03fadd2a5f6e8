"""An interrupt ends the program at once only if it has left threads that compute."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from detector.runtime import exits
from detector.runtime.exits import exit_status
from detector.runtime.threads import thread_pool


class Worker:
    def __init__(self) -> None:
        self.ended = False

    def terminate(self) -> None:
        self.ended = True


@pytest.fixture
def ended(monkeypatch) -> list[int]:
    """Statuses with which the process would have ended at once."""
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    return statuses


def interrupt() -> None:
    raise KeyboardInterrupt


def test_idle_threads_of_others_do_not_matter(ended):
    with ThreadPoolExecutor(1, "roi_pool") as idle:
        idle.submit(int).result()
        assert exit_status(interrupt, "") == 130
    assert ended == []


def test_threads_of_a_pool_and_workers_are_ended(ended, monkeypatch):
    go_on, worker = threading.Event(), Worker()
    monkeypatch.setattr(exits.multiprocessing, "active_children", lambda: [worker])

    def program() -> None:
        with thread_pool(1) as pool:
            pool.submit(go_on.wait, 10)
            interrupt()

    try:
        assert exit_status(program, "") == 130
    finally:
        go_on.set()
    assert ended == [130]
    assert worker.ended
