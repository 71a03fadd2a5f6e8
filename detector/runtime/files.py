"""Writing files so that a reader never meets half of one."""

import fcntl
import hashlib
import itertools
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

# What changed bytes in a zip file lead to; RuntimeError covers methods of packing and encryption not known here.
ZIP_DAMAGE = (OSError, ValueError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
UNFINISHED = ".*.unfinished"  # names of files that a killed program has left half written


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` at the end: whole, or, if anything stops on the way, not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path`: whole, or, if the program or the machine stops on the way, not at all."""
    with open_atomically(path) as file:
        file.write(data)


def digest_of(path: Path) -> str:
    """SHA-256 of a file's contents; of one that has not changed since this program read it, as it was."""
    stat = path.stat()
    known = stat.st_dev, stat.st_ino, stat.st_size, stat.st_ctime_ns  # which nobody can set back, as mtime
    if known not in _digests:
        with open(path, "rb") as file:
            _digests[known] = hashlib.file_digest(file, "sha256").digest()
    return _digests[known].hex()


# A data set is read several times: checked, and named in files of proposals.
_digests: dict[tuple[int, ...], bytes] = {}


def replace(source: Path, target: Path) -> None:
    """Rename `source` to `target`, over what is there, and wait until the disk knows."""
    os.replace(source, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def numbered(path: Path, suffix: str = "") -> Iterator[Path]:
    """`path`, then NAME-2, NAME-3 ... beside it, before the suffix, for who looks for a name that is not taken."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.name.removesuffix(suffix)}-{number}{suffix}")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; another process that wants it waits. It ends with the process, whatever ends that.

    The file is gone afterwards, unless the process was killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Who waited may now hold the file that the one before has removed: that is no lock for those who come.
            if not _is_still(path, file):
                continue
            try:
                yield
            finally:
                if _is_still(path, file):  # not if somebody has cleared the folder
                    path.unlink(missing_ok=True)
            return


def _is_still(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
