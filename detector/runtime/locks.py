"""Exclusive locks on files, which end with the process that holds them: POSIX locks, or on Windows those of
filelock.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

HELD = ".held"  # suffix of filelock's own file, which nobody else can read while it is locked


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; other processes that request it wait.

    The file is removed afterwards, unless the process is killed or the lock is filelock's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        with FileLock(path):
            yield
        return
    while True:
        with open(path, "w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # The process that held the lock before may have removed this file, which then excludes nobody.
            if not _is_still(path, file):
                continue
            try:
                yield
            finally:
                if _is_still(path, file):  # not if the folder was cleared
                    path.unlink(missing_ok=True)
            return


@contextmanager
def held(path: Path, holder: str) -> Iterator[None]:
    """Hold the lock file `path`, which stays, with `holder` in it.

    Raises BlockingIOError with the content of the file if another process holds it.
    """
    with open(path, "a+", encoding="utf-8") as file:
        try:
            if fcntl is None:
                lock = FileLock(path.with_name(path.name + HELD), timeout=0)
                lock.acquire()
            else:
                # Not flock: data workers would inherit it, and hold it for a while after the run is killed.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, Timeout):
            file.seek(0)
            raise BlockingIOError(file.read().strip()) from None
        file.truncate(0)
        file.write(holder)
        file.flush()
        try:
            yield
        finally:
            if fcntl is None:
                lock.release()


def _is_still(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
