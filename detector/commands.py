"""The console commands of an installed package: fast-rcnn-train, fast-rcnn-evaluate and fast-rcnn-detect.

They are train.py, evaluate.py and scripts/detect.py. In a checkout these are beside detector/, in a wheel inside it.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType


def train() -> None:
    """Run train.py."""
    _program("train").command()


def evaluate() -> None:
    """Run evaluate.py."""
    _program("evaluate").command()


def detect() -> None:
    """Run scripts/detect.py."""
    sys.exit(_program("scripts.detect").main())


def _program(name: str) -> ModuleType:
    is_wheel = (Path(__file__).parent / "programs").is_dir()
    return importlib.import_module(f"detector.programs.{name}" if is_wheel else name)
