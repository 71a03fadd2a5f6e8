"""Ctrl-C and signals to stop as requests: the step is finished, a checkpoint written, then the program ends."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import FrameType, TracebackType
from typing import TypeVar

from detector.runtime.distributed import all_reduce_max, gather

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Slurm sends SIGUSR1 ahead of the end of a job, if it is asked to: sbatch --signal=USR1@60
REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Signals that follow the first one within this time are taken for the same request: torchrun, asked together with its
# processes, asks them once more.
SAME_REQUEST_S = 2.0


def _leave_to_the_parent() -> None:
    """A forked child would write its own signals into the parent's pipe."""
    with suppress(ValueError):  # forked by another thread than the main one, which cannot and need not
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_leave_to_the_parent)


class Stopped(BaseException):
    """The run was asked to stop, which is no error. `signal` is the number of the signal."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


class StopRequest:
    """In this context the first signal is noted in `signal` (0: none), and a second one ends the program at once."""

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in REQUESTS}
        # Python calls `_note` when the call into torch that the main thread is in returns, once for all that came
        # meanwhile. Each signal is a byte in this pipe at once.
        arrivals, self._arriving = os.pipe()
        os.set_blocking(self._arriving, False)
        self._wakeup_before = signal.set_wakeup_fd(self._arriving, warn_on_full_buffer=False)
        threading.Thread(target=self._end_at_the_second, args=(arrivals,), daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._arriving)  # which ends the thread, once data workers have ended that share it
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal = number
            logger.warning("%s: stopping after this step; once more to stop at once", signal.Signals(number).name)

    @staticmethod
    def _end_at_the_second(arrivals: int) -> None:
        first = None
        while number := os.read(arrivals, 1):
            if number[0] not in REQUESTS:
                continue
            now = time.monotonic()
            first = now if first is None else first
            if now - first > SAME_REQUEST_S:
                os._exit(128 + number[0])
        os.close(arrivals)

    def agreed(self) -> int:
        """The signal that any process of the run has got, 0 for none. All must ask."""
        return all_reduce_max(self.signal)

    def cut_short(self, items: Iterable[T]) -> Iterator[T]:
        """The items; raises Stopped, in all processes of the run, when one of them has been asked to stop."""
        for item in items:
            if self.signal:
                break
            yield item
        if number := max(gather(self.signal)):  # patiently: the others may have more to do
            raise Stopped(number)
