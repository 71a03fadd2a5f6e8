"""What surrounds a process on Linux, changed for a forked one: rights, read-only, full and tiny disks."""

import ctypes
import os
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path

CLONE_NEWNS, MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 1, 32, 4096, 16384, 1 << 18


def no_rights(*names: str) -> Callable[[], None]:
    """Become a user without rights to these files and folders, nor to write into the current folder, nor a home.

    The user is still root, who owns the interpreter, but with no capability of root's.
    """

    def drop() -> None:
        for name in names:
            os.chmod(name, 0)
        os.chmod(".", 0o555)
        os.environ["HOME"] = "/proc/nowhere"
        os.environ.pop("XDG_CACHE_HOME", None)
        version, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(version, sets):
            raise OSError(ctypes.get_errno(), "capset")

    return drop


def allow(folder: Path) -> None:
    """Give the owner all rights to what is in the folder."""
    folder.chmod(0o755)
    for parent, names, files in os.walk(folder):
        for name in [*names, *files]:
            path = Path(parent, name)
            if path.exists() and not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o700)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(*texts, ctypes.c_ulong(flags), options and options.encode()):
        raise OSError(ctypes.get_errno(), f"mount {target}")


def _own_mounts() -> None:
    """What this process mounts from now on, no other process sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    _mount("none", "/", None, MS_REC | MS_PRIVATE)


def read_only() -> None:
    """Make the disk of the current folder read-only."""
    _own_mounts()
    here = os.getcwd()
    _mount(here, here, None, MS_BIND)
    _mount(None, here, None, MS_REMOUNT | MS_BIND | MS_RDONLY)
    os.chdir(here)


def disk(path: str, kib: int, options: str = "nr_inodes=1000") -> Callable[[], None]:
    """Mount a disk of this size at a folder, which is made."""

    def mount() -> None:
        _own_mounts()
        os.makedirs(path, exist_ok=True)
        _mount("none", os.path.abspath(path), "tmpfs", 0, f"size={kib}k,{options}")

    return mount


def in_fork(function: Callable[[], int]) -> int:
    """The exit status of a function in a copy of this process."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = function()
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@cache
def can_mount() -> bool:
    """Whether this process has the rights to mount disks: in a container, root can lack them."""

    def attempt() -> int:
        _own_mounts()
        return 0

    return in_fork(attempt) == 0
