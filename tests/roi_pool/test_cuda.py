"""Runs the tests of the Triton kernels: in Triton's interpreter, and on the GPU where there is one.

In a process of their own, since whether kernels are interpreted is decided when Triton is imported.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HAS_GPU = torch.cuda.is_available()


@pytest.mark.slow
@pytest.mark.parametrize(
    "interpret", ["1", pytest.param("0", marks=pytest.mark.skipif(not HAS_GPU, reason="no CUDA device"))]
)
def test_triton_kernels(interpret):
    pytest.importorskip("triton")
    tests = Path(__file__).with_name("triton_kernels.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tests)],
        env=os.environ | {"TRITON_INTERPRET": interpret},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
