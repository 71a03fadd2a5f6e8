"""The folder of a run."""

import os
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from detector.errors import InputError
from detector.runtime.files import numbered, require_writable
from detector.runtime.locks import HELD, held

LOCK, HOLDER = ".lock", "process"


class FolderLock(ExitStack):
    """Ensures that one run at a time writes to a folder. The lock ends with the context, or with the process."""

    def take(self, folder: Path) -> Path:
        """Lock the folder and return it. Raises InputError if another process holds the lock."""
        holder = f"{HOLDER} {os.getpid()} on {socket.gethostname()}\n"
        try:
            self.enter_context(held(folder / LOCK, holder))
        except BlockingIOError as error:
            raise InputError(f"run.dir: another run is writing into {folder}: {error}") from None
        except OSError as error:
            raise InputError(
                f"run.dir: {folder / LOCK} cannot be created and locked ({error.strerror}): use another disk"
            ) from None
        return folder


def is_empty(folder: Path) -> bool:
    """Whether the folder is empty, apart from a lock, or does not exist."""
    locks = (LOCK, LOCK + HELD)
    return not folder.exists() or (folder.is_dir() and all(path.name in locks for path in folder.iterdir()))


def require_run(folder: Path) -> None:
    """Raise InputError unless a run was started in the folder: its lock file, made first, remains there."""
    lock = folder / LOCK
    if not lock.is_file() or not lock.read_bytes().startswith(HOLDER.encode()):
        raise InputError(f"resume: {folder} is not the folder of a run: it has no {LOCK} of this program")


def check_run_folder(path: str | None) -> None:
    """Raise InputError if the named folder is not empty; nothing is ever overwritten."""
    folder = Path(path or "")
    if path is not None and not is_empty(folder):
        raise InputError(
            f"run.dir: {folder} is not an empty folder, and nothing is overwritten: name another, or, to resume "
            "the run in it, resume=auto"
        )
    require_writable("run.dir", folder if path is not None else Path("runs"))


def make_run_folder(path: str | None) -> Path:
    """Create the folder `path`, or runs/DATE_TIME with an unused name."""
    if path is None:
        return make_new_folder(Path("runs"), time.strftime("%Y-%m-%d_%H-%M-%S"))
    Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def make_new_folder(parent: Path, name: str) -> Path:
    """Create the folder `name` in `parent`, or NAME-2, NAME-3 ... if it exists."""
    parent.mkdir(parents=True, exist_ok=True)
    for folder in numbered(parent / name):
        with suppress(FileExistsError):
            folder.mkdir()
            break
    return folder
