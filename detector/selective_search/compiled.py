"""Compilation settings of all numeric functions in this package."""

from typing import Any

import numba

# Without the GIL, cached on disk, and without zero checks in divisions (callers avoid zeros). No `parallel`:
# its thread pools do not survive a fork. No `fastmath`: results would depend on the machine.
compiled: Any = numba.njit(nogil=True, cache=True, error_model="numpy")
