"""Imported by Python itself where this folder is in PYTHONPATH: the modules of Windows, on a POSIX system.

Other packages ask for the platform and need what it promises, so only this project's modules see less.
"""

import builtins
import multiprocessing
import os
import select
import signal
from types import ModuleType

OURS = {"detector", "scripts", "train", "evaluate", "__main__", "__mp_main__"}
MODULES = {"fcntl", "resource", "pwd", "grp", "termios"}
ATTRIBUTES = {
    os: ("fork", "forkpty", "register_at_fork", "O_NOFOLLOW", "O_DIRECTORY", "mkfifo", "nice", "killpg",
         "getuid", "geteuid", "statvfs", "sched_getaffinity"),
    signal: ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "SIGKILL", "sigwait", "sigwaitinfo", "pthread_sigmask"),
    select: ("poll",),
}  # fmt: skip
_import, _without = builtins.__import__, {}
for module, names in ATTRIBUTES.items():
    _without[module.__name__] = ModuleType(module.__name__)
    vars(_without[module.__name__]).update({key: value for key, value in vars(module).items() if key not in names})


def import_of_windows(name, globals=None, locals=None, fromlist=(), level=0):
    if ((globals or {}).get("__name__") or "").partition(".")[0] in OURS:
        if name in MODULES:
            raise ImportError(f"blocked: {name}")
        if name in _without:
            return _without[name]
    return _import(name, globals, locals, fromlist, level)


builtins.__import__ = import_of_windows
multiprocessing.set_start_method("spawn")
