"""The folder of a run."""

import itertools
import os
import time
from pathlib import Path

from detector.errors import InputError


def require_writable(setting: str, folder: Path) -> None:
    """Raise InputError, naming the setting, unless the folder can be made and written to. Makes nothing."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"{setting}: {folder} cannot be written: {there} is no folder, or not yours to write")


def check_run_folder(path: str | None) -> None:
    """Raise InputError if there is something in the folder that was named; nothing is ever overwritten."""
    folder = Path(path or "")
    if path is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"run.dir: {folder} is not an empty folder, and nothing is overwritten: name another")
    require_writable("run.dir", folder if path is not None else Path("runs"))


def make_run_folder(path: str | None) -> Path:
    """Make the folder `path`, or runs/DATE_TIME under a name that no other run has. Raises InputError as above."""
    try:
        if path is not None:
            Path(path).mkdir(parents=True, exist_ok=True)
            check_run_folder(path)
            return Path(path)
        name = time.strftime("%Y-%m-%d_%H-%M-%S")
        for number in itertools.count(1):
            folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
            folder.parent.mkdir(exist_ok=True)
            try:
                folder.mkdir()
                return folder
            except FileExistsError:  # another run began in the same second
                continue
    except OSError as error:
        raise InputError(f"run.dir: {path or 'runs'} cannot be made: {error.strerror}") from None
    raise AssertionError("unreachable")
