"""Checkpoints: one file with the weights and all that is needed to build the network around them, and to go on.

A run keeps three: `last.pt`, `previous.pt` and `best.pt`. A new one is written beside them under another name, synced,
read back and compared with its checksums; only then do `last.pt` and it change names. So whenever a run is killed, one
of the first two is whole. The checksums are those of the zip archive that torch.save writes: a file of their own
could not be replaced together with it.
"""

import io
import logging
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from detector.errors import InputError, RunFailure
from detector.files import replace, write_atomically
from detector.models.weights import read_state

logger = logging.getLogger(__name__)

FORMAT = 1  # of what a run is taken up from; a checkpoint without a number is older, and has weights only
TO_EVALUATE = {"model", "config", "classes", "iteration"}
TO_RESUME = TO_EVALUATE | {"optimizer", "evaluated", "best", "made_of", "processes"}
MAX_FAILED = 3  # writes, one after the other
NEWEST_FIRST = ("last.pt", "previous.pt", "best.pt")


class Checkpoints:
    """The checkpoints of a run, in one folder.

    One that cannot be written leaves those before as they are and is an error in the log. Raises RunFailure at the
    third in a row, and where it was the run's final one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failed = 0

    def save_last(self, content: dict, final: bool = False) -> None:
        """Write `last.pt`; the one that was `last.pt` becomes `previous.pt`."""
        last = self.folder / "last.pt"
        with self._failing_gently(content, final):
            staged = _stage(self.folder, content)
            if last.exists():
                replace(last, self.folder / "previous.pt")
            replace(staged, last)

    def save_best(self, content: dict, final: bool = False) -> None:
        """Write `best.pt`."""
        with self._failing_gently(content, final):
            replace(_stage(self.folder, content), self.folder / "best.pt")

    @contextmanager
    def _failing_gently(self, content: dict, final: bool) -> Iterator[None]:
        try:
            yield
            self.failed = 0
        except OSError as error:
            self.failed += 1
            message = (
                f"the checkpoint of iteration {content['iteration']} could NOT be written: {error}. "
                "Those before are intact"
            )
            if final or self.failed == MAX_FAILED:
                raise RunFailure(message) from error
            logger.error(message)


def _stage(folder: Path, content: dict) -> Path:
    """A new file with the content, known to be whole."""
    data = io.BytesIO()
    torch.save({"format": FORMAT, **content}, data)
    staged = folder / ".next.pt.unfinished"
    write_atomically(staged, data.getbuffer())
    if damage := find_damage(staged):
        staged.unlink()
        raise OSError(f"{folder}: what was written did not come back: {damage}")
    return staged


def find_damage(path: Path) -> str | None:
    """What is wrong with the file, None if it is whole: truncated, empty, and changed bytes are all found."""
    try:
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
        return f"checksum of {changed} does not match" if changed else None
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        return f"{error or type(error).__name__} ({path.stat().st_size} bytes)" if path.is_file() else "no such file"


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint to evaluate it; tensors and plain values only, so that a stranger's file can run nothing.

    Raises InputError if the file is not there, is damaged, or is no checkpoint of this program.
    """
    content = read_state(path)
    if missing := TO_EVALUATE - content.keys():
        raise InputError(f"{path}: not a checkpoint of this program: it has no {', '.join(sorted(missing))}")
    return content


def load_to_resume(path: Path) -> dict:
    """Read a checkpoint to go on from it. Raises InputError as above, and for one of another version."""
    content = load_checkpoint(path)
    if content.get("format", 0) > FORMAT:
        raise InputError(f"{path}: made by a newer version of this program (format {content['format']}, not {FORMAT})")
    if missing := TO_RESUME - content.keys():
        raise InputError(
            f"{path}: cannot be taken up again: it has no {', '.join(sorted(missing))}, perhaps because an older "
            f"version made it. A new run from its weights: model.weights={path} run.dir=ANOTHER"
        )
    return content


def load_state(checkpoint: dict, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill the model, and the optimizer's momentum; its rates and the like are as they are set now."""
    model.load_state_dict(checkpoint["model"])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": checkpoint["optimizer"], "param_groups": groups})


def newest_valid(folder: Path) -> Path | None:
    """The newest whole checkpoint in the folder, None if there is none at all; damaged ones are reported and kept.

    A damaged file steps aside, to NAME.damaged, so that it never takes the place of a whole one. Raises InputError if
    every one is damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for path in (folder / name for name in NEWEST_FIRST):
        if not path.exists():
            continue
        damage = find_damage(path)
        if damage is None:
            for bad, reason in damaged:
                aside = bad.with_name(bad.name + ".damaged")
                replace(bad, aside)
                logger.warning("%s is damaged (%s); it is now %s, and %s is used", bad, reason, aside.name, path.name)
            return path
        damaged.append((path, damage))
    if damaged:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in damaged)
        raise InputError(f"resume: every checkpoint in {folder} is damaged: {reasons}. A new run needs another run.dir")
    return None
