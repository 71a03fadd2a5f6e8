"""Names of classes: what may be one, an object of an unknown one, and objects that are left out by theirs."""

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from detector.data.loader import Reader
from detector.errors import InputError
from detector.structures import GroundTruth


def labels_by_name(classes: Sequence[str], where: Path) -> dict[str, int]:
    """The label 1..K of each name. Raises InputError for a name given twice, or one that is no part of a file's name.

    `where` is the data set, for the message.
    """
    if len(set(classes)) != len(classes):
        raise InputError(f"data.classes: {list(classes)} names a class twice")
    for name in classes:
        if not 0 < len(name.encode()) <= 100 or any(character in name for character in "/\\\0\n"):
            raise InputError(f"{where}: {name!r} cannot be a class: its name must do as part of a file's name")
    return {name: number for number, name in enumerate(classes, start=1)}


def unknown_class(what: str, name: str, classes: Sequence[str]) -> InputError:
    """The error for an object, `what`, of a class that is not among `classes`."""
    return InputError(
        f"{what} is of the unknown class '{name}'{_did_you_mean(name, classes)}; the classes asked for are "
        f"{', '.join(classes)}, and all in the data must be among them: to leave such objects out, give "
        f"data.exclude_classes=[{name}]"
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
    near = difflib.get_close_matches(name, classes, n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


class WithoutClasses:
    """The data set `reader` without its objects of the classes `excluded`; every image stays. A reader itself.

    `known` are the classes of `reader`, left out or not. An excluded class may be among `classes`, as when a network
    that knows it is scored: it has no object then.
    """

    def __init__(self, reader: Reader, excluded: Sequence[str], classes: tuple[str, ...] | None = None) -> None:
        self.excluded = tuple(excluded)
        self.known = reader.classes
        self.image_ids = reader.image_ids
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
