"""Fast R-CNN (Girshick, 2015): one pass of the backbone, RoI pooling, a head with two output layers, one loss.

`detector.load(path)` loads a trained detector for use from Python: see api.py and docs/api.md.
"""

import os
from typing import TYPE_CHECKING, Any

if os.path.expanduser("~") == "~":  # a user without a home, as in a container: numba would make a folder named ~
    os.environ.setdefault("XDG_CACHE_HOME", os.devnull)

if TYPE_CHECKING:
    from detector.api import Detector, Result, Tiles, load

__all__ = ["Detector", "Result", "Tiles", "load"]


def __getattr__(name: str) -> Any:
    """The Python interface, imported when it is first used, so that `import detector` is fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from detector import api

    return getattr(api, name)
