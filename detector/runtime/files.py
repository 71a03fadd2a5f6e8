"""Files: find them, read them with clear errors, and write them so that a reader never sees a partial file."""

import csv
import glob
import hashlib
import io
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, BinaryIO

from detector.errors import InputError

MAX_BYTES = 2**32  # of a file; those of proposals and detections may have any size
UNFINISHED = ".*.unfinished"  # names of partial files that a killed program has left
_numbers = itertools.count()  # several threads write at once


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, renamed to `path` at the end; if writing is interrupted, `path` is unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{os.getpid()}-{next(_numbers)}.unfinished")  # `path.name` may have 255 bytes already
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        replace(unfinished, path)
    except OSError as error:
        if error.errno is not None:  # else the text of the error would be lost
            error.filename = error.filename or str(path)  # a failed write does not name its file
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path`; if the program or the machine stops on the way, `path` is unchanged."""
    with open_atomically(path) as file:
        file.write(data)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """The content of a CSV file with these rows."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


@contextmanager
def reading(path: Path, fault: str, max_bytes: int = MAX_BYTES) -> Iterator[None]:
    """The context in which every user file is read.

    Raises InputError, which names the file, unless it is a regular file of at most `max_bytes`, and in place of any
    exception inside the context. `fault`, such as "broken JSON", describes an exception that is not an error of the
    system.
    """
    try:
        stat = path.stat()
        if not S_ISREG(stat.st_mode):  # reading a pipe or a device could take forever
            raise InputError(f"{path}: {'a folder' if S_ISDIR(stat.st_mode) else 'not a regular file'}")
        if stat.st_size > max_bytes:
            raise InputError(f"{path}: has {stat.st_size} bytes; the limit is {max_bytes}")
        if not os.access(path, os.R_OK):  # some libraries report a missing right as damage
            raise InputError(f"{path}: cannot be read: Permission denied")
        yield
    except InputError:
        raise
    except MemoryError as error:  # the file, or a size that it claims, is too large
        raise InputError(f"{path}: needs more memory than is free") from error
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        raise InputError(f"{path}: {fault}: {' '.join(str(error).split()) or type(error).__name__:.300}") from error


def read_json(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """The content of a JSON file. Raises InputError as `reading` does."""
    with reading(path, "broken JSON", max_bytes):
        return json.loads(path.read_bytes())


def digest_of(path: Path) -> str:
    """SHA-256 of a file's contents, cached while the file is unchanged. Raises InputError as `reading` does."""
    with reading(path, "cannot be read", sys.maxsize):
        stat = path.stat()
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
    """Raise InputError if an image id, which may be untrusted, leads out of the folder where it names a file."""
    for image_id in image_ids:
        if not (folder / image_id).resolve().is_relative_to(folder.resolve()):
            raise InputError(f"image {image_id!r}: its id leads out of {folder}, where it would name a file")


def require_writable(setting: str, folder: Path) -> None:
    """Raise InputError, naming the setting, unless the folder can be created and written to. Creates nothing."""
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"{setting}: {folder} cannot be written: {there} is not a folder, or you may not write to it")


def require_new(setting: str, folder: Path) -> None:
    """Raise InputError, naming the setting, if the folder cannot be written to or is not empty."""
    require_writable(setting, folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{setting}: {folder} is not an empty folder, and nothing is overwritten: name another")


def require_new_file(setting: str, path: Path, *suffixes: str) -> None:
    """Raise InputError, naming the setting, unless a new file, with one of the suffixes if given, can be made."""
    if suffixes and path.suffix not in suffixes:
        raise InputError(f"{setting}: {path} must end in {' or '.join(suffixes)}")
    if path.exists():
        raise InputError(f"{setting}: {path} already exists and is not overwritten: name another file")
    require_writable(setting, path.parent)


def find_files(where: str) -> dict[str, Path]:
    """Files of an image path, a folder or a glob pattern, by id, sorted by path.

    A folder stands for its files that are not hidden, without subfolders; a pattern may contain *, ?, [] and **. The id
    is the path relative to the common parent folder: the file name if all are in one folder. Raises InputError if there
    is no file.
    """
    path = Path(where)
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    else:
        found = sorted(Path(name) for name in glob.glob(where, recursive=True) if Path(name).is_file())
    if not found:
        hint = f"; its subfolders are not searched, but those of '{where}/**/*' are" if path.is_dir() else ""
        raise InputError(f"{where}: there is no file (current directory: {Path.cwd()}){hint}")
    common = Path(os.path.commonpath([file.parent for file in found]))
    return {file.relative_to(common).as_posix(): file for file in found}
