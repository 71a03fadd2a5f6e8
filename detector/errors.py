"""Exceptions with messages for the user."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path


class InputError(Exception):
    """Invalid input: the message names the file, the object in it, the value, and the fix.

    The programs print the message alone on stderr and exit with status 2.
    """


class RunFailure(Exception):
    """A run cannot continue although its input is valid: the message says what happened, and what to do.

    The programs print the message alone on stderr and exit with status 1.
    """


class Stopped(BaseException):
    """The run was asked to stop, which is not an error. `signal` is the number of the signal."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


def first_few(items: list, limit: int = 5) -> str:
    """`a, b, c` or, past the limit, `a, b, c, d, e and 7 more`."""
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def require_distinct(path: Path | str, image_ids: Iterable[str]) -> None:
    """Raise InputError for a duplicate image id."""
    if twice := [id for id, count in Counter(image_ids).items() if count > 1]:
        raise InputError(
            f"{path}: image ids are listed more than once ({len(twice)}): {first_few(twice)}; remove the duplicates"
        )
