"""Exceptions with messages for the user, and exit statuses."""

import errno
import io
import os
import select
import sys
from collections.abc import Callable

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130  # exit statuses
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
PERMISSION_ERRNOS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


class InputError(Exception):
    """Invalid input: the message names the file, the object in it, the value, and the fix.

    The programs print the message alone on stderr and exit with status 2.
    """


class RunFailure(Exception):
    """A run cannot continue although its input is valid: the message says what happened, and what to do.

    The programs print the message alone on stderr and exit with status 1.
    """


def ending(error: Exception) -> tuple[str, int] | None:
    """The message and exit status for an error that ends a program; None if the error is a bug in the program."""
    if isinstance(error, InputError):
        return str(error), WRONG_INPUT
    if isinstance(error, RunFailure):
        return str(error), FAILED
    if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
        return f"the disk is full: {error}", FAILED
    if isinstance(error, OSError) and error.errno in PERMISSION_ERRNOS and error.filename is not None:
        return f"a file cannot be read or written: {error}", FAILED
    return None


def run_script(script: Callable[[], int | None], if_interrupted: str) -> int:
    """Run a program of scripts/. Returns its exit status, or that of its error, which is printed to stderr.

    `if_interrupted` says what Ctrl-C leaves behind.
    """
    status = FAILED
    try:
        status = script() or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print(f"interrupted; {if_interrupted}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        is_closed = stdout_closed()
        if isinstance(error, BrokenPipeError) and is_closed:
            return status
        if (told := ending(error)) is None:
            raise
        message, status = told
        print(f"error: {message}", file=sys.stderr)
        return status


def stdout_closed() -> bool:
    """Whether stdout has lost its reader, as in `... | head`, or its disk is full; further output is then discarded."""
    try:
        pipe = select.poll()
        pipe.register(sys.stdout.fileno(), 0)  # errors only
        sys.stdout.flush()
        is_closed = any(event & select.POLLERR for _, event in pipe.poll(0))
    except io.UnsupportedOperation:  # not a file descriptor
        return False
    except OSError:
        is_closed = True
    if is_closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_closed


def first_few(items: list, limit: int = 5) -> str:
    """`a, b, c` or, past the limit, `a, b, c, d, e and 7 more`."""
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
