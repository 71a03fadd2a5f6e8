"""The exceptions that speak to the user, and how programs end."""

import errno
import os
import sys
from collections.abc import Callable

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130  # exit statuses
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
DISK_SAYS_NO = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


class InputError(Exception):
    """Wrong input: the message names the file, the object in it, the value, and the way out.

    The programs print the message alone on stderr and exit with status 2.
    """


class RunFailure(Exception):
    """A run cannot go on, though its input was right: the message says what happened, and what to do.

    The programs print the message alone on stderr and exit with status 1.
    """


def ending(error: Exception) -> tuple[str, int] | None:
    """What to tell the user of the error that ends a program, and its exit status; None if it is a defect of ours."""
    if isinstance(error, InputError):
        return str(error), WRONG_INPUT
    if isinstance(error, RunFailure):
        return str(error), FAILED
    if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
        return f"the disk is full: {error}", FAILED
    if isinstance(error, OSError) and error.errno in DISK_SAYS_NO:
        return f"a file cannot be read or written: {error}", FAILED
    return None


def run_script(script: Callable[[], int | None], if_interrupted: str) -> int:
    """Run what a program in scripts/ does; returns the exit status, its own or that of the one error on stderr.

    `if_interrupted` says what Ctrl-C leaves behind.
    """
    try:
        return script() or 0
    except BrokenPipeError:  # as in `... | head`; what is still to be flushed has nowhere to go either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        print(f"interrupted; {if_interrupted}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if (told := ending(error)) is None:
            raise
        message, status = told
        print(f"error: {message}", file=sys.stderr)
        return status


def first_few(items: list, limit: int = 5) -> str:
    """`a, b, c` or, past the limit, `a, b, c, d, e and 7 more`."""
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
