"""Compilation by numba, cached on disk where that is possible."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numba


def compiled(**options: Any) -> Callable[[Callable], Any]:
    """Decorator: `numba.njit` without the GIL, cached on disk.

    Damaged files of the cache are replaced. Where no cache can be written, each process compiles for itself.
    No `parallel`: its thread pools do not survive a fork. No `fastmath`: results would depend on the machine.
    """

    def decorate(function: Callable) -> Any:
        made = numba.njit(nogil=True, **options)(function)
        with suppress(RuntimeError):  # numba finds no folder that it can write to
            made.enable_caching()
            load, save = made._cache.load_overload, made._cache.save_overload

            def load_whole(*arguments: Any) -> Any:
                try:
                    return load(*arguments)
                except Exception:  # unpickling what a crash has left raises errors of any kind
                    with suppress(OSError):
                        made._cache.flush()
                    return None

            def save_if_possible(*arguments: Any) -> None:
                with suppress(OSError):  # such as a full disk
                    save(*arguments)

            made._cache.load_overload, made._cache.save_overload = load_whole, save_if_possible
        return made

    return decorate
