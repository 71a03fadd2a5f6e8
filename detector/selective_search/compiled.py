"""How every numeric function here is compiled."""

from typing import Any

import numba

# Without the GIL, kept on disk between runs, and without a check for zero in each division (callers see to
# it). No `parallel`: its thread pools do not survive a fork. No `fastmath`: results would depend on the
# machine.
compiled: Any = numba.njit(nogil=True, cache=True, error_model="numpy")
