"""The exceptions that speak to the user."""


class InputError(Exception):
    """Wrong input: the message names the file, the object in it, the value, and the way out.

    The programs print the message alone on stderr and exit with status 2.
    """


class RunFailure(Exception):
    """A run cannot go on, though its input was right: the message says what happened, and what to do.

    The programs print the message alone on stderr and exit with status 1.
    """


def first_few(items: list, limit: int = 5) -> str:
    """`a, b, c` or, past the limit, `a, b, c, d, e and 7 more`."""
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
