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


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "index"), [("fp32", "i16"), ("bf16", "i16"), ("fp64", "i32")])
@pytest.mark.parametrize("variant", [False, True])  # with argmax; in fixed point
def test_the_kernels_compile_without_a_gpu(dtype, index, variant):
    """For compute capability 9.0, to machine code."""
    compiler = pytest.importorskip("triton.compiler", reason="triton is not installed")
    from detector.roi_pool import cuda

    target = pytest.importorskip("triton.backends.compiler", reason="triton is not installed").GPUTarget("cuda", 90, 32)
    real = "fp64" if dtype == "fp64" else "fp32"
    tensors = {"maps": dtype, "grad": dtype, "rois": real, "scale": real, "pooled": dtype, "argmax": index}
    tensors |= {"sums": "i64" if variant else real, "per_unit": "fp64"}
    constants = {"pooled_height": 7, "pooled_width": 7, "with_argmax": variant, "fixed_point": variant}
    constants |= {"empty": 32767, "block": 512}
    for kernel in (cuda._pool, cuda._scatter):
        names = kernel.arg_names
        signature = {
            name: f"*{tensors[name]}" if name in tensors else "constexpr" if name in constants else "i32"
            for name in names
        }
        values = {(number,): constants[name] for number, name in enumerate(names) if name in constants}
        compiled = compiler.compile(compiler.ASTSource(kernel, signature, values), target, {"num_warps": 4})
        assert len(compiled.asm["cubin"]) > 1000
