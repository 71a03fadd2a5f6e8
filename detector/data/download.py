"""Fetching archives: taken up again where it was stopped, checked, and unpacked without harm."""

import filecmp
import hashlib
import http.client
import logging
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from email.message import Message
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from detector.errors import DISK_IS_FULL, PERMISSION_ERRNOS, InputError, first_few
from detector.runtime.files import locked, write_atomically

logger = logging.getLogger(__name__)

TRIES = 5  # in a row without a single new byte
PAUSE_S = 2.0  # before a second try; each further one waits as long again
TIMEOUT_S = 60.0
CHUNK_BYTES = 1 << 20
MAX_UNPACKED_BYTES = 8 << 30  # of one archive


def download(url: str, path: Path, md5: str) -> None:
    """Fetch `url` to `path`, unless it lies there already: whole and with this checksum, or not at all.

    What has come is kept beside it as NAME.part, and a later call, or a further try after a cut connection, asks for
    the rest. A server that cannot go on, or has another file by now, has it sent from the start. Raises InputError if
    the server refuses or stays away, and for a wrong checksum, after which nothing of the file is left; one that lay
    there before is not touched.
    """
    if not url.startswith(("http://", "https://")):
        raise InputError(f"{url}: only http:// and https:// are fetched; a file you have goes to {path}")
    part, validator = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.version")
    with locked(path.with_name(f"{path.name}.lock")):
        if path.exists():
            if md5_of(path) != md5:
                raise InputError(f"{path}: its md5 is {md5_of(path)}, not {md5}: move it away to have it fetched again")
            return
        fetch_all(url, part, validator)
        found = md5_of(part)
        validator.unlink(missing_ok=True)
        if found != md5:
            part.unlink()
            raise InputError(
                f"{url}: what came has the md5 {found}, not {md5}: another file lies there now, or it was damaged on "
                "the way. Nothing of it is kept; try again, or another place with --mirror"
            )
        part.replace(path)


def md5_of(path: Path) -> str:
    """For a check against accidents; the archives' publishers give no stronger checksum."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def fetch_all(url: str, part: Path, validator: Path) -> None:
    """Fetch until the whole file is in `part`, trying again after what may pass."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if fetch_rest(url, part, validator):
                return
            problem = "the connection was cut"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise InputError(f"{url}: the server answers {error.code} {error.reason}; another: --mirror") from None
            problem = f"the server answers {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in (
                *DISK_IS_FULL,
                *PERMISSION_ERRNOS,
            ):  # ours, not the server's
                raise
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        came = part.stat().st_size if part.exists() else 0
        failures = 1 if came > before else failures + 1
        if failures == TRIES:
            raise InputError(
                f"{url}: {problem}, {TRIES} times. {came} bytes of it are kept in {part}: the same command goes on "
                "from there; another server: --mirror"
            )
        logger.warning("%s: %s; going on", url, problem)
        time.sleep(PAUSE_S * failures)


def fetch_rest(url: str, part: Path, validator: Path) -> bool:
    """Add to `part` what is missing. Returns whether it is whole now, as far as the server says."""
    begin = part.stat().st_size if part.exists() else 0
    version = validator.read_text() if validator.is_file() else ""
    headers = {"Range": f"bytes={begin}-", **({"If-Range": version} if version else {})} if begin else {}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not begin:
            raise
        if _total(error.headers) == begin:  # there is no rest
            return True
        part.unlink()  # of another file than there is now
        return False
    with answer:
        if answer.status == 206 and _first_byte(answer.headers) != begin:
            part.unlink(missing_ok=True)  # a server that sends another piece than asked for: begin anew without one
            return False
        if answer.status == 200:
            begin = 0
        etag = answer.headers.get("ETag", "")
        version = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified", "")
        write_atomically(validator, version.encode())
        length = answer.headers.get("Content-Length")
        expected = begin + int(length) if length else None
        with (
            open(part, "ab" if begin else "wb") as file,
            tqdm(desc=part.name.removesuffix(".part"), initial=begin, total=expected, unit="B", unit_scale=True,
                 disable=None) as progress,
        ):  # fmt: skip
            while chunk := answer.read(CHUNK_BYTES):
                file.write(chunk)
                progress.update(len(chunk))
    return expected is None or part.stat().st_size == expected


def _total(headers: Message) -> int | None:
    """The size of the whole file, from `Content-Range: bytes */N`."""
    match = re.search(r"/(\d+)$", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _first_byte(headers: Message) -> int | None:
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def require_safe_tar() -> None:
    """Raise InputError for a Python whose tarfile cannot be told to be careful."""
    if not hasattr(tarfile, "data_filter"):
        raise InputError("archives are unpacked safely from Python 3.11.4 on: this one is too old")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tar or .tgz into `folder`, beside what is there.

    First all of it is unpacked into a temporary folder there; then whole folders are moved to their place, or, where
    one is there already, what is in them. A file that is there already stays; another one of that name and with other
    content is an error, before anything is moved. The same call after an interruption does what is left.

    Raises InputError for a damaged archive, and for one that no honest hand has packed: with a path out of the folder,
    a link, a device, or more than 8 GiB in it. Nothing of it is left then.
    """
    require_safe_tar()
    inside = folder / f".{archive.name}.unpacking"
    with locked(archive.with_name(f"{archive.name}.lock")):
        shutil.rmtree(inside, ignore_errors=True)  # of a process that was killed
        inside.mkdir(parents=True)
        try:
            _extract(archive, inside)
            different = _clashes(inside, folder)
            if different:
                raise InputError(
                    f"{folder}: {len(different)} files of {archive.name} are there already with other content, and "
                    f"nothing is overwritten: {first_few(different)}. Move them away, or unpack elsewhere with --root"
                )
            _move_into(inside, folder)
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise InputError(f"{archive}: cannot be unpacked: {error}") from None
        finally:
            shutil.rmtree(inside)


def _extract(archive: Path, folder: Path) -> None:
    unpacked = 0
    with tarfile.open(archive) as tar, tqdm(desc=f"unpack {archive.name}", unit="file", disable=None) as progress:
        for member in tar:
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts:
                raise InputError(f"{archive}: refused, '{member.name}' in it leads out of the folder")
            if not (member.isreg() or member.isdir()):
                raise InputError(f"{archive}: refused, '{member.name}' in it is neither a file nor a folder")
            unpacked += member.size
            if unpacked > MAX_UNPACKED_BYTES:
                raise InputError(f"{archive}: refused, it holds more than {MAX_UNPACKED_BYTES} bytes")
            tar.extract(member, folder, filter="data")
            progress.update()


def _clashes(source: Path, target: Path) -> list[Path]:
    """Files below `source` in whose place below `target` lies something else."""
    found: list[Path] = []
    for entry in sorted(source.iterdir()):
        there = target / entry.name
        if entry.is_dir() and there.is_dir():
            found += _clashes(entry, there)
        elif os.path.lexists(there) and not (
            entry.is_file() and there.is_file() and filecmp.cmp(entry, there, shallow=False)
        ):
            found.append(there)
    return found


def _move_into(source: Path, target: Path) -> None:
    for entry in sorted(source.iterdir()):
        there = target / entry.name
        if not os.path.lexists(there):
            shutil.move(entry, there)
        elif entry.is_dir():
            _move_into(entry, there)
