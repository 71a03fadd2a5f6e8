"""How a program ends: its exit status, and one message for an error that is not a bug."""

import errno
import io
import logging
import multiprocessing
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from detector.errors import InputError, RunFailure, Stopped
from detector.runtime.ranks import is_main
from detector.runtime.threads import pools_run

FAILED, WRONG_INPUT = 1, 2  # exit statuses
KEPT = "what was saved before is kept"  # after an interrupt of train.py or evaluate.py
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
NAME_ERRNOS = (errno.ENAMETOOLONG, errno.ELOOP)


def exit_status(program: Callable[[], int | None], if_interrupted: str) -> int:
    """Run a program, and return its exit status, which is 0 for None.

    It is 2 for invalid input and 1 if the program failed (the message is printed to stderr), 130 after Ctrl-C, 143
    after SIGTERM and 138 after SIGUSR1. Any other exception is raised. `if_interrupted` says what an interrupt leaves
    behind.
    """
    status = FAILED
    _open_closed_streams()
    try:
        _require_working_directory()
        with _sigterm_raises():
            status = program() or 0
        sys.stdout.flush()
        return status
    except (KeyboardInterrupt, Stopped) as error:
        number = error.signal if isinstance(error, Stopped) else signal.SIGINT
        if is_main():
            print(f"stopped by {signal.Signals(number).name}; {if_interrupted}", file=sys.stderr)
        _end_now_if_pools_run(128 + number)
        return 128 + number
    except Exception as error:
        is_closed = stdout_closed()
        if isinstance(error, BrokenPipeError) and is_closed:
            return status  # the results are in files
        if (told := _ending(error)) is None:
            raise
        message, status = told
        if status == FAILED or _speaks():
            print(f"error: {message}", file=sys.stderr)
            _write_to_log_files(f"error: {message}")
        return status


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM raises Stopped, as Ctrl-C raises KeyboardInterrupt, so that what is unfinished is removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():  # only the main one handles signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_now_if_pools_run(status: int) -> None:
    """End the process without waiting for threads, whose work, such as selective search, cannot be interrupted."""
    if pools_run():
        for worker in multiprocessing.active_children():
            worker.terminate()
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(status)


def _require_working_directory() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError("the working directory was deleted: change to another, with cd") from None


def _ending(error: Exception) -> tuple[str, int] | None:
    """The message and exit status for an error that ends a program; None if the error is a bug in the program."""
    if isinstance(error, InputError):
        return str(error), WRONG_INPUT
    if isinstance(error, RunFailure):
        return str(error), FAILED
    if isinstance(error, MemoryError):
        return "out of memory: use smaller images, fewer images per batch or fewer RoIs", FAILED
    if isinstance(error, OSError) and error.errno in NAME_ERRNOS:
        return f"a name that no file can have: {error!s:.200}", WRONG_INPUT
    if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
        if error.filename is not None:
            return f"the disk is full: {error}", FAILED
        return f"the disk, or /dev/shm of the data workers, is full: free space, or use workers=0: {error}", FAILED
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return f"{error}: raise the limit (ulimit -n), or use fewer workers", FAILED
    if isinstance(error, OSError) and error.filename is not None:
        return f"a file cannot be read or written: {error}", FAILED
    return None


def _speaks() -> bool:
    """Whether this process prints invalid input: before the processes are connected, all find the same error."""
    torch_distributed = sys.modules.get("torch.distributed")  # not loaded: no process is connected to others
    if torch_distributed is not None and torch_distributed.is_initialized():
        return True
    try:
        return is_main()
    except InputError:  # of the environment variables that say which process this is
        return True


def _write_to_log_files(message: str) -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(logging.makeLogRecord({"msg": message, "levelno": logging.ERROR}))


def _open_closed_streams() -> None:
    """Connect stdin, stdout and stderr to /dev/null where the caller closed them, as in `train.py >&-`.

    Otherwise the next opened file would get their number, and output would be written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def stdout_closed() -> bool:
    """Whether stdout has lost its reader, as in `... | head`, or its disk is full; further output is then discarded."""
    try:
        sys.stdout.flush()
        is_closed = _has_lost_reader(sys.stdout.fileno())
    except io.UnsupportedOperation:  # not a file descriptor
        return False
    except OSError:
        is_closed = True
    if is_closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_closed


def _has_lost_reader(file: int) -> bool:
    """Whether nobody can read a pipe any more. Windows has no poll: there the flush before this raises."""
    if not hasattr(select, "poll"):
        return False
    pipe = select.poll()
    pipe.register(file, 0)  # errors only
    return any(event & select.POLLERR for _, event in pipe.poll(0))
