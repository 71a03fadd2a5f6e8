"""Compilation by numba, cached on disk where that is possible."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numba
from numba.core.caching import FunctionCache


class _Cache(FunctionCache):
    """A cache whose damaged files, as a crash leaves them, are replaced."""

    def load_overload(self, *arguments: Any) -> Any:
        try:
            return super().load_overload(*arguments)
        except Exception:  # unpickling them raises errors of any kind
            with suppress(OSError):
                self.flush()


def compiled(function: Callable) -> Any:
    """Compile without the GIL and without zero checks in divisions: callers avoid zeros.

    No `parallel`: its thread pools do not survive a fork. No `fastmath`: results would depend on the machine.
    """
    made: Any = numba.njit(nogil=True, error_model="numpy")(function)
    with suppress(RuntimeError):  # numba finds no folder for a cache: each process compiles for itself
        made._cache = _Cache(function)
    return made
