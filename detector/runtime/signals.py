"""Ctrl-C and stop signals as requests: finish the step, write a checkpoint, then end the program."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import FrameType, TracebackType
from typing import TypeVar

from detector.errors import Stopped
from detector.runtime.distributed import all_reduce_max, gather
from detector.runtime.ranks import rank_info

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Slurm sends SIGUSR1 before the end of a job on request: sbatch --signal=USR1@60
REQUESTS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
# Signals within this time after the first one are the same request: torchrun, signalled together with its processes,
# signals them once more.
SAME_REQUEST_S = 2.0
AGREE_EVERY_S = 1.0  # several processes
MAX_STEPS = 100  # between two agreements, in case that steps become slower


def _reset_wakeup_fd() -> None:
    """Reset it in a forked child, which would write its own signals into the parent's pipe."""
    with suppress(ValueError):  # forked by a thread other than the main one, which cannot and need not
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_reset_wakeup_fd)


class StopRequest:
    """A context in which the first signal is stored in `signal` (0: none), and a second one ends the program at
    once.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._steps, self._left = 1, 0  # of this interval between agreements, and how many of them are left
        self._agreed_at = time.monotonic()
        self._raises = False  # the signal itself, while `interruptible` waits

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in REQUESTS}
        # Python calls `_note` only when the main thread returns from a call into torch, once for all signals until
        # then. In this pipe, each signal is a byte at once.
        arrivals, self._arriving = os.pipe()
        if hasattr(os, "set_blocking"):  # Windows has it from Python 3.12 on
            os.set_blocking(self._arriving, False)
        self._wakeup_before = signal.set_wakeup_fd(self._arriving, warn_on_full_buffer=False)
        threading.Thread(target=self._exit_on_second_signal, args=(arrivals,), daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._arriving)  # ends the thread, once data workers that share it have ended
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal = number
            when = "" if self._raises else " after this step; send it again to stop at once"
            logger.warning("%s: stopping%s", signal.Signals(number).name, when)
        if self._raises:
            self._raises = False
            raise Stopped(self.signal)

    @staticmethod
    def _exit_on_second_signal(arrivals: int) -> None:
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
        """The signal that any process of the run has received, 0 for none. All processes must call this after each
        step.

        Several processes communicate only about once per second, because all wait for the slowest one each time. Since
        their clocks differ, they count steps: as many as the slowest process does in that time.
        """
        if rank_info().world_size == 1:
            return self.signal
        self._left -= 1
        if self._left > 0:
            return 0
        now = time.monotonic()
        step_us = all_reduce_max(round(1e6 * (now - self._agreed_at) / self._steps))
        self._steps = self._left = min(max(int(AGREE_EVERY_S * 1e6 / max(step_us, 1)), 1), MAX_STEPS)
        self._agreed_at = now
        return all_reduce_max(self.signal)

    def interruptible(self, items: Iterable[T]) -> Iterator[T]:
        """The items. In a run of one process, a signal raises Stopped while the next item is awaited.

        Several processes must agree first, which they do after the step.
        """
        iterator, alone = iter(items), rank_info().world_size == 1
        while True:
            self._raises = alone
            try:
                if alone and self.signal:
                    raise Stopped(self.signal)
                item = next(iterator, None)
            except SystemError as error:  # if the signal arrives while a function in C returns, Stopped is its cause
                raise (error.__cause__ if isinstance(error.__cause__, Stopped) else error) from None
            finally:
                self._raises = False
            if item is None:
                return
            yield item

    def cut_short(self, items: Iterable[T]) -> Iterator[T]:
        """The items; raises Stopped in all processes of the run if one of them has received a signal to stop."""
        for item in self.interruptible(items):
            if self.signal:
                break
            yield item
        if number := max(gather(self.signal)):  # with a long timeout: the others may have more to do
            raise Stopped(number)


def leave_requests_to_parent() -> None:
    """Ignore signals to stop in a data worker: the training process decides when to stop."""
    for number in REQUESTS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # elsewhere (macOS, Windows) SIGTERM ends a worker, whoever sent it
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_exit_on_parent_sigterm, daemon=True).start()


def _exit_on_parent_sigterm() -> None:
    """Exit on a SIGTERM from the parent, which sends it when it ends while the worker waits, as after an error."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
