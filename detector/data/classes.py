"""Class names: valid names, and messages about unknown ones."""

import difflib
from collections.abc import Collection, Mapping, Sequence

from detector.errors import InputError, first_few


def check_classes(source: object, classes: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple. Raises InputError, naming the source, unless all are distinct and valid in file names."""
    for name in classes:
        if (
            not isinstance(name, str)
            or not name.strip()
            or len(name.encode(errors="replace")) > 100
            or any(character in name for character in "/\\\0\n\r")
        ):
            raise InputError(
                f"{source}: {name!r} cannot be a class: its name must be valid in a file name, with at most 100 bytes"
            )
    if len(set(classes)) != len(classes):
        raise InputError(f"{source}: {list(classes)} names a class twice")
    return tuple(classes)


def require_none_unknown(unknown: Mapping[str, int], first: Mapping[str, object], classes: Sequence[str]) -> None:
    """Raise InputError if `unknown` is not empty.

    `unknown` maps each class without a label to its number of objects, `first` to the place of its first object.
    """
    if not unknown:
        return
    names = sorted(unknown, key=lambda name: (-unknown[name], name))
    lines = [
        f"{first[name]}: unknown class '{name}'{_did_you_mean(name, classes)}, {unknown[name]} objects of it"
        for name in names[:20]
    ]
    raise InputError(
        f"{len(unknown)} classes in the annotations are not among {', '.join(classes)}; correct data.classes or the "
        f"names, or exclude these objects with data.exclude_classes=[{','.join(names)}]:\n  " + "\n  ".join(lines)
    )


def require_unlike(names: Collection[str], where: str) -> None:
    """Raise InputError for names that differ only in case or spaces: they most likely mean one class.

    `where` is their source, for the message.
    """
    alike: dict[str, list[str]] = {}
    for name in sorted(names):
        alike.setdefault(_plain(name), []).append(name)
    pairs = [" and ".join(f"'{name}'" for name in group) for group in alike.values() if len(group) > 1]
    if pairs:
        raise InputError(
            f"{where}: class names that differ only in case or spaces: {first_few(pairs, 20)}; write each "
            "class in one way there, exclude one of them with data.exclude_classes=[...], or, if they are meant to "
            "be separate classes, list all classes in data.classes=[...]"
        )


def require_known(excluded: Sequence[str], known: Collection[str]) -> None:
    """Raise InputError for an excluded name that is not among the `known` classes of the data: it is a typo."""
    for name in excluded:
        if name not in known:
            raise InputError(
                f"data.exclude_classes: the data has no class '{name}'{_did_you_mean(name, known)}; it has "
                f"{', '.join(sorted(known))}"
            )


def _did_you_mean(name: str, classes: Collection[str]) -> str:
    plain = {_plain(other): other for other in classes}
    near = difflib.get_close_matches(_plain(name), plain, n=1)
    return f" (did you mean '{plain[near[0]]}'?)" if near else ""


def _plain(name: str) -> str:
    """The name in lower case, without spaces."""
    return "".join(name.lower().split())
