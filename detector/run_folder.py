"""The folder of a run."""

import itertools
import time
from pathlib import Path

from detector.errors import InputError


def run_folder(path: str | None) -> Path:
    """The folder `path`, or a new name runs/DATE_TIME. Raises InputError if there is something in it already."""
    if path is None:
        folder = first = Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S")
        for number in itertools.count(2):
            if not folder.exists():
                break
            folder = first.with_name(f"{first.name}-{number}")  # another run began in the same second
        return folder
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"run.dir: {folder} is not an empty folder, and nothing is overwritten: name another")
    return folder


def make_run_folder(folder: Path) -> None:
    """Make it on the disk. Raises InputError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run.dir: {folder} cannot be made: {error.strerror}") from None
