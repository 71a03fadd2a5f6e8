"""Write files so that a reader never sees a partial one."""

import hashlib
import itertools
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO

from detector.errors import InputError

# Errors that corrupt bytes in a zip file cause; RuntimeError covers unknown compression methods and encryption.
ZIP_DAMAGE = (OSError, ValueError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
UNFINISHED = ".*.unfinished"  # names of partial files that a killed program has left


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, renamed to `path` at the end; if writing is interrupted, `path` is unchanged."""
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
    """Write `data` to `path`; if the program or the machine stops on the way, `path` is unchanged."""
    with open_atomically(path) as file:
        file.write(data)


def digest_of(path: Path) -> str:
    """SHA-256 of a file's contents, cached while the file is unchanged."""
    stat = path.stat()
    if not (S_ISREG(stat.st_mode) or S_ISDIR(stat.st_mode)):  # reading a pipe or a device could take forever
        raise InputError(f"{path}: not a regular file")
    known = stat.st_dev, stat.st_ino, stat.st_size, stat.st_ctime_ns  # ctime cannot be set back, unlike mtime
    if known not in _digests:
        with open(path, "rb") as file:
            _digests[known] = hashlib.file_digest(file, "sha256").digest()
    return _digests[known].hex()


# A dataset is read several times: to validate it, and to identify it in proposal files.
_digests: dict[tuple[int, ...], bytes] = {}


def replace(source: Path, target: Path) -> None:
    """Rename `source` to `target`, replacing an existing file, and wait until this is on disk."""
    os.replace(source, target)
    try:
        folder = os.open(target.parent, os.O_RDONLY)
    except PermissionError:  # Windows opens no folder
        return
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def numbered(path: Path, suffix: str = "") -> Iterator[Path]:
    """Candidates for an unused name: `path`, then NAME-2, NAME-3 ... beside it, numbered before the suffix."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.name.removesuffix(suffix)}-{number}{suffix}")


def require_inside(folder: Path, image_ids: Iterable[str]) -> None:
    """Raise InputError if an id, of an untrusted dataset, leads out of the folder where it becomes a file's name."""
    for image_id in image_ids:
        if not (folder / image_id).resolve().is_relative_to(folder.resolve()):
            raise InputError(f"image {image_id!r}: its id leads out of {folder}, where files are named by it")
