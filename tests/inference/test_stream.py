import threading
import time
from functools import partial

import pytest
import torch

from detector.inference.stream import detect_stream, share_cores
from detector.runtime.device import limit_threads
from detector.runtime.threads import NAME


def test_results_are_in_order_while_several_images_are_in_flight():
    together = threading.Barrier(3)  # passed only if three are in flight at once

    def detect(number: int) -> int:
        together.wait(timeout=10)
        time.sleep(0.01 * (number % 3 == 0))  # later ones are done first
        return number**2

    assert list(detect_stream(detect, range(9), threads=3)) == [number**2 for number in range(9)]


def test_a_slow_caller_limits_how_far_the_stream_runs_ahead():
    taken = []
    stream = detect_stream(lambda number: number, (taken.append(n) or n for n in range(100)), threads=3)
    for number in range(10):
        assert next(stream) == number
        assert len(taken) <= number + 6
    stream.close()
    assert len(taken) <= 16


def test_an_exception_comes_in_its_turn_and_is_the_last():
    begun = []

    def detect(number: int) -> int:
        begun.append(number)
        if number == 2:
            raise OSError("disk full")
        time.sleep(0.02)
        return number

    stream = detect_stream(detect, range(1000), threads=2)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(OSError, match="disk full"):
        next(stream)
    count = len(begun)
    time.sleep(0.1)
    assert len(begun) == count <= 2 + 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(NAME)]


def test_an_interrupted_caller_waits_for_nothing():
    begun, first, end = [], threading.Event(), threading.Event()

    def images():
        yield from range(5)
        assert first.wait(10)
        raise KeyboardInterrupt

    def detect(number: int) -> None:
        begun.append(number)
        first.set()
        assert end.wait(10)

    with pytest.raises(KeyboardInterrupt):
        list(detect_stream(detect, images(), threads=3))
    running = [thread for thread in threading.enumerate() if thread.name.startswith(NAME)]
    assert running  # so it was not waited for
    end.set()
    for thread in running:
        thread.join()
    assert sorted(begun) == list(range(len(begun)))
    assert len(begun) <= 3


def test_a_result_is_given_before_the_next_images_are_there():
    taken = []

    def camera():
        for number in range(10):
            taken.append(number)
            yield number
            time.sleep(0.03)

    stream = detect_stream(lambda number: number, camera(), threads=4)
    assert next(stream) == 0
    assert len(taken) < 8
    stream.close()


@pytest.mark.parametrize(
    ("cores", "images", "expected"),
    [(1, 100, (1, 1)), (4, 100, (4, 1)), (64, 100, (8, 8)), (6, 1, (1, 6)), (5, 2, (2, 2)), (2, 0, (1, 2))],
)
def test_the_images_in_flight_are_limited_and_share_the_cores(cores, images, expected):
    assert share_cores(cores, images) == expected


def test_threads_of_torch_are_limited_in_the_stream_alone():
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        counts = set(detect_stream(lambda _: torch.get_num_threads(), range(8), 2, partial(limit_threads, 2)))
        more = set(detect_stream(lambda _: torch.get_num_threads(), range(8), 2, partial(limit_threads, 5)))
        later = list(detect_stream(lambda _: torch.get_num_threads(), range(2), 1))
        assert (counts, more, later, torch.get_num_threads()) == ({2}, {3}, [3, 3], 3)
    finally:
        torch.set_num_threads(usual)
