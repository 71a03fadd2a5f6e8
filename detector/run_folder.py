"""The folder of a run."""

import time
from pathlib import Path

from detector.errors import InputError


def new_run_folder(path: str | None) -> Path:
    """Make the folder `path`, or runs/DATE_TIME. Raises InputError if there is something in it already."""
    if path is None:
        folder = Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S")
        number = 1
        while folder.exists():  # another run began in the same second
            number += 1
            folder = folder.with_name(f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{number}")
    else:
        folder = Path(path)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"run.dir: {folder} is not an empty folder, and nothing is overwritten: name another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run.dir: {folder} cannot be made: {error.strerror}") from None
    return folder
