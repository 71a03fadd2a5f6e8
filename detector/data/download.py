"""Download of archives: resumable, verified by checksum, and unpacked safely."""

import filecmp
import hashlib
import http.client
import logging
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from detector.errors import InputError, first_few
from detector.runtime.exits import DISK_IS_FULL
from detector.runtime.files import write_atomically
from detector.runtime.locks import locked

logger = logging.getLogger(__name__)

TRIES = 5  # in a row without a single new byte
PAUSE_S = 2.0  # before the second try; increases by this for each further one
TIMEOUT_S = 60.0
CHUNK_BYTES = 1 << 20
MAX_UNPACKED_BYTES = 8 << 30  # of one archive


def download(url: str, path: Path, md5: str) -> None:
    """Download `url` to `path`, complete and with this checksum, unless the file exists.

    Received bytes are kept beside it as NAME.part; a later call, or a retry after a broken connection, requests the
    rest. If the server cannot resume, or has another file by then, the download restarts. Raises InputError if the
    server refuses or is unreachable, and for a wrong checksum, after which the downloaded bytes are deleted. An
    existing file is not changed.
    """
    if not url.startswith(("http://", "https://")):
        raise InputError(f"{url}: only http:// and https:// are supported; put a file that you have at {path}")
    part, validator = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.version")
    with locked(path.with_name(f"{path.name}.lock")):
        if path.exists():
            if md5_of(path) != md5:
                raise InputError(
                    f"{path}: its md5 is {md5_of(path)}, not {md5}: delete or move it to download it again"
                )
            return
        fetch_all(url, part, validator)
        found = md5_of(part)
        validator.unlink(missing_ok=True)
        if found != md5:
            part.unlink()
            raise InputError(
                f"{url}: the download has the md5 {found}, not {md5}: the file on the server has changed, or the "
                "download is damaged. It was deleted; try again, or use another server with --mirror"
            )
        part.replace(path)


def md5_of(path: Path) -> str:
    """MD5 of a file, against accidental damage; the publishers of the archives give no stronger checksum."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def fetch_all(url: str, part: Path, validator: Path) -> None:
    """Download until `part` is complete, and retry after temporary errors."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if fetch_rest(url, part, validator):
                return
            problem = "the connection was cut"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise InputError(
                    f"{url}: the server answers {error.code} {error.reason}; use another server with --mirror"
                ) from None
            problem = f"the server answers {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and (error.errno in DISK_IS_FULL or error.filename is not None):
                raise  # an error of a local file, not of the server
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        came = part.stat().st_size if part.exists() else 0
        failures = 1 if came > before else failures + 1
        if failures == TRIES:
            raise InputError(
                f"{url}: {problem}, {TRIES} times. {came} bytes of it are kept in {part}: run the same command to "
                "resume from there, or use another server with --mirror"
            )
        logger.warning("%s: %s; resuming", url, problem)
        time.sleep(PAUSE_S * failures)


def fetch_rest(url: str, part: Path, validator: Path) -> bool:
    """Append the missing bytes to `part`. Returns whether it is now complete, as far as the server reports a size."""
    begin = part.stat().st_size if part.exists() else 0
    version = validator.read_text(encoding="utf-8") if validator.is_file() else ""
    headers = {"Range": f"bytes={begin}-", **({"If-Range": version} if version else {})} if begin else {}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not begin:
            raise
        if error.headers.get("Content-Range", "").endswith(f"/{begin}"):  # already complete
            return True
        part.unlink()  # the file on the server has changed
        return False
    with answer:
        if answer.status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {begin}-"):
            part.unlink(missing_ok=True)  # the server sends another range than requested: restart without one
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


def require_safe_tar() -> None:
    """Raise InputError if this Python's tarfile has no extraction filters."""
    if not hasattr(tarfile, "data_filter"):
        raise InputError("unpacking archives safely needs Python 3.11.4 or newer")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tar or .tgz into `folder`, and keep existing files.

    The archive is first unpacked into a temporary folder in `folder`; then folders are moved to their place, or merged
    with existing ones. An existing file with the same content is kept; one with other content is an error, raised
    before anything is moved. After an interruption, the same call completes the work.

    Raises InputError for a damaged archive, and for a malicious one: with a path outside the folder, a link, a device,
    or more than 8 GiB of content. Then nothing of it is kept.
    """
    require_safe_tar()
    inside = folder / f".{archive.name}.unpacking"
    with locked(archive.with_name(f"{archive.name}.lock")):
        shutil.rmtree(inside, ignore_errors=True)  # left by a killed process
        inside.mkdir(parents=True)
        try:
            _extract(archive, inside)
            different = _clashes(inside, folder)
            if different:
                raise InputError(
                    f"{folder}: {len(different)} files of {archive.name} are there already with other content, and "
                    f"nothing is overwritten: {first_few(different)}. Move them, or unpack elsewhere with --root"
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
    """Paths below `target` that exist with other content than the files below `source`."""
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
