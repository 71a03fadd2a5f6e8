"""Names of classes: what may be one, an object of an unknown one, and objects that are left out by theirs."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from detector.data.loader import DetectionDataset
from detector.errors import InputError, first_few
from detector.structures import GroundTruth


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


def labels_by_name(classes: Sequence[str], where: Path) -> dict[str, int]:
    """The label 1..K of each name. Raises InputError for a name given twice, or one that is no part of a file's name.

    `where` is the data set, for the message.
    """
    return {name: number for number, name in enumerate(check_classes(where, classes), start=1)}


def require_none_unknown(unknown: Mapping[str, int], first: Mapping[str, object], classes: Sequence[str]) -> None:
    """Raise InputError if there are names in `unknown`: the number of objects by the name of a class without a label.

    `first` says where the first object of each is.
    """
    if not unknown:
        return
    names = sorted(unknown, key=lambda name: (-unknown[name], name))
    lines = [
        f"{first[name]}: unknown class '{name}'{_did_you_mean(name, classes)}, {unknown[name]} objects of it"
        for name in names[:20]
    ]
    raise InputError(
        f"{len(unknown)} classes in the annotations are not among {', '.join(classes)}; mend the names, or leave "
        f"objects out on purpose with data.exclude_classes=[{','.join(names)}]:\n  " + "\n  ".join(lines)
    )


def require_unlike(names: Collection[str], where: str) -> None:
    """Raise InputError for names that differ in upper case and spaces alone: they are most likely one class.

    `where` they stand, for the message.
    """
    alike: dict[str, list[str]] = {}
    for name in sorted(names):
        alike.setdefault(_plain(name), []).append(name)
    pairs = [" and ".join(f"'{name}'" for name in group) for group in alike.values() if len(group) > 1]
    if pairs:
        raise InputError(
            f"{where}: class names that differ in upper case or spaces alone: {first_few(pairs, 20)}; write each "
            "class in one way there, leave one of them out with data.exclude_classes=[...], or, if they are meant to "
            "be classes of their own, list all classes in data.classes=[...]"
        )


def require_known(excluded: Sequence[str], known: Collection[str]) -> None:
    """Raise InputError for a name to exclude that is not `known` from the data: it is a slip of the pen."""
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
    """The name without what people write now one way, now another: upper case and spaces."""
    return "".join(name.lower().split())


class WithoutClasses:
    """The data set `reader` without its objects of the classes `excluded`; every image stays. A reader itself.

    `known` are the classes of `reader`, left out or not. An excluded class may be among `classes`, as when a network
    that knows it is scored: it has no object then.
    """

    def __init__(
        self, reader: DetectionDataset, excluded: Sequence[str], classes: tuple[str, ...] | None = None
    ) -> None:
        self.excluded = tuple(excluded)
        self.known = reader.classes
        self.image_ids = reader.image_ids
        self.image_options = reader.image_options
        self.classes = classes or tuple(name for name in reader.classes if name not in excluded)
        # The reader must know a label for every object it has, also for those that are left out here.
        self.reader = reader.with_classes([*self.classes, *(name for name in excluded if name not in self.classes)])
        self._left_out = [label for label, name in enumerate(self.reader.classes, start=1) if name in excluded]

    def with_classes(self, classes: Sequence[str]) -> "WithoutClasses":
        return WithoutClasses(self.reader, self.excluded, tuple(classes))

    @property
    def name(self) -> str:
        return self.reader.name

    def __len__(self) -> int:
        return len(self.image_ids)

    def image(self, index: int) -> np.ndarray:
        return self.reader.image(index)

    def image_path(self, index: int) -> Path:
        return self.reader.image_path(index)

    def annotation_path(self, index: int) -> Path:
        return self.reader.annotation_path(index)

    def annotated_hw(self, index: int) -> tuple[int, int] | None:
        return self.reader.annotated_hw(index)

    def left_out(self, index: int) -> Sequence[str]:
        return self.reader.left_out(index)

    def ground_truth(self, index: int) -> GroundTruth:
        truth = self.reader.ground_truth(index)
        keep = ~np.isin(truth.labels, self._left_out)
        return GroundTruth(
            image_id=truth.image_id,
            boxes=truth.boxes[keep],
            labels=truth.labels[keep],
            difficult=truth.difficult[keep],
            crowd=truth.crowd[keep],
            areas=truth.areas[keep],
        )
