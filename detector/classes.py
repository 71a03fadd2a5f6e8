"""Class names: they come from annotations, settings and strangers' files, and become parts of file names."""

from collections.abc import Sequence

from detector.errors import InputError


def check_classes(source: object, classes: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple. Raises InputError, naming the source, unless they differ and suit a file's name."""
    for name in classes:
        if (
            not isinstance(name, str)
            or not name.strip()
            or len(name.encode(errors="replace")) > 100
            or any(character in name for character in "/\\\0\n\r")
        ):
            raise InputError(
                f"{source}: {name!r} cannot be a class: its name must do as part of a file's name, in 100 bytes"
            )
    if len(set(classes)) != len(classes):
        raise InputError(f"{source}: {list(classes)} names a class twice")
    return tuple(classes)
