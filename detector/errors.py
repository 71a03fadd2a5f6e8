"""The one exception for what the user can put right."""


class InputError(Exception):
    """Wrong input: the message names the file, the object in it, the value, and the way out.

    The programs print the message alone on stderr and exit with status 2.
    """


def first_few(items: list, limit: int = 5) -> str:
    """`a, b, c` or, past the limit, `a, b, c, d, e and 7 more`."""
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
