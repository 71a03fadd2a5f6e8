"""See what a piece of code does to the machine: for tests that give it untrusted files."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# What reading a file never needs, among the events that Python itself reports (docs.python.org, "Audit events table").
FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.mkdir", "os.rmdir",
             "os.link", "os.symlink", "os.truncate", "os.chmod", "subprocess.Popen", "shutil.rmtree",
             "pty.spawn", "socket.connect", "socket.bind", "urllib.Request", "pickle.find_class",
             "ctypes.dlopen"}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_seen: list[str] | None = None  # events of the piece of code that is watched; None while none is


def _hook(event: str, arguments: tuple) -> None:
    if _seen is None:
        return
    if event == "open":
        path, mode, flags = arguments
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & WRITING):
            _seen.append(f"open {path!r} to write")
    elif event in FORBIDDEN or (event == "exec" and not arguments[0].co_filename.endswith(".py")):  # no import
        _seen.append(f"{event} {arguments!r:.200}")


sys.addaudithook(_hook)


@contextmanager
def nothing_happens(but: str = "") -> Iterator[None]:
    """Fail if the code inside writes or removes a file, starts a process, connects, or runs code from data.

    `but` is an event of FORBIDDEN that may happen.
    """
    global _seen
    _seen = seen = []
    try:
        yield
    finally:
        _seen = None
    seen = [event for event in seen if event.partition(" ")[0] != but]
    assert not seen, seen
