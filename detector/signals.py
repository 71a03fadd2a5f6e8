"""Ctrl-C and SIGTERM as requests: the step is finished, a checkpoint written, then the program ends."""

import logging
import signal
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import TypeVar

from detector.distributed import gather, largest

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Signals that follow the first one within this time are taken for the same request: torchrun, asked together with its
# processes, asks them once more.
SAME_REQUEST_S = 2.0


class Stopped(BaseException):
    """The run was asked to stop, which is no error. `signal` is the number of the signal."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


class StopRequest:
    """In this context the first signal is noted in `signal` (0: none), and a second one ends the program at once."""

    def __init__(self) -> None:
        self.signal = 0
        self._first = 0.0

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal and now - self._first > SAME_REQUEST_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self.signal:
            return
        self.signal, self._first = number, now
        logger.warning("%s: stopping after this step; once more to stop at once", signal.Signals(number).name)

    def agreed(self) -> int:
        """The signal that any process of the run has got, 0 for none. All must ask."""
        return largest(self.signal)

    def cut_short(self, items: Iterable[T]) -> Iterator[T]:
        """The items; raises Stopped, in all processes of the run, when one of them has been asked to stop."""
        for item in items:
            if self.signal:
                break
            yield item
        if number := max(gather(self.signal)):  # patiently: the others may have more to do
            raise Stopped(number)
