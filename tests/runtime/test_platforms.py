"""What Windows, macOS and other processors lack. None of them is at hand: parts are blocked, or compiled for."""

import ast
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from detector.builders.datasets import build_dataset, build_transformed_dataset, check
from detector.errors import InputError
from detector.roi_pool import cpu, mps
from detector.runtime import device, locks, ranks
from detector.runtime.device import resolve_device
from detector.training.run_folder import FolderLock, is_empty
from tests.conftest import REPOSITORY, compose_settings
from tests.helpers import layouts

NO_POSIX = REPOSITORY / "tests/helpers/no_posix"
SOURCES = [
    path for part in ("detector", "scripts") for path in sorted((REPOSITORY / part).rglob("*.py"))
] + [REPOSITORY / "train.py", REPOSITORY / "evaluate.py"]  # fmt: skip
POSIX_ONLY = {"fcntl", "resource", "pwd", "grp", "termios", "sigwaitinfo", "pthread_sigmask", "SIGUSR1", "SIGUSR2",
              "SIGHUP", "SIGALRM", "SIGKILL", "fork", "mkfifo", "O_NOFOLLOW", "O_DIRECTORY", "killpg", "getuid",
              "geteuid", "statvfs", "sched_getaffinity", "poll"}  # fmt: skip


def names_in(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    return {node.attr} if isinstance(node, ast.Attribute) else set()


def test_only_the_runtime_knows_what_posix_alone_has():
    found = {
        str(path.relative_to(REPOSITORY))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if names_in(node) & POSIX_ONLY and not isinstance(getattr(node, "value", None), ast.Call)
    }
    allowed = {"detector/runtime/locks.py", "detector/runtime/device.py", "detector/runtime/signals.py",
               "detector/runtime/exits.py", "detector/runtime/ranks.py"}  # fmt: skip
    assert {path for path in found if not path.startswith("scripts/benchmarks/")} == allowed


def test_text_is_utf8_whatever_the_locale_says():
    """Windows' own encoding is another."""
    text_functions = {"read_text", "write_text", "open", "FileHandler", "TextIOWrapper"}
    ours = {
        "read_text(path)",
        "zipped.open",
        "Image.open",
        "tarfile.open",
        "os.open",
        "opener.open",
    }  # no text, or with an encoding
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in text_functions:
                call = ast.unparse(node)
                is_binary = any(f"'{mode}'" in call for mode in ("rb", "wb", "ab", "r+b"))
                assert is_binary or "'utf-8" in call or call.startswith(tuple(ours)), f"{path}:{node.lineno}: {call}"


def test_locks_without_fcntl(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with FolderLock() as lock:
        lock.take(tmp_path)
        with FolderLock() as other, pytest.raises(InputError, match=r"another run is writing into .*: process \d+ on"):
            other.take(tmp_path)
        assert is_empty(tmp_path)
    with FolderLock() as lock:
        lock.take(tmp_path)
    with locks.locked(tmp_path / "a"), pytest.raises(locks.Timeout), locks.FileLock(tmp_path / "a", timeout=0):
        pass


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert ranks.cores() == ranks.cores_per_process() == 2


def test_cores_without_the_affinity_of_linux(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert ranks.cores_per_process() == 6


def test_memory_without_the_module_resource(monkeypatch):
    exact = device.peak_memory_mib(torch.device("cpu"))
    monkeypatch.setattr(device, "resource", None)
    assert 0.2 * exact < device.peak_memory_mib(torch.device("cpu")) < 1.1 * exact


def test_mps_is_a_device_where_it_is_available(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("mps") == torch.device("mps")
    assert device.has_fast_bfloat16(torch.device("mps")) is False
    monkeypatch.setenv("WORLD_SIZE", "2"), monkeypatch.setenv("RANK", "0"), monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(InputError, match="2 processes cannot share 'mps'"):
        resolve_device("mps")
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"device: 'mps' is not available: .*; use device=cpu"):
        resolve_device("mps")


def test_roi_pooling_for_mps_is_that_of_the_cpu():
    """It cannot run on its device here; what it computes from the copies of its arguments can."""
    for operator in ("roi_pool", "roi_pool_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fast_rcnn::{operator}", "MPS")
    features, rois = torch.rand(2, 40, 9, 8), torch.tensor([[0.0, 1, 2, 90, 80], [1, 30, 20, 100, 100]])
    pooled, argmax = mps.forward(features, rois, (3, 2), 1 / 16, True)
    expected = cpu.forward(features, rois, (3, 2), 1 / 16, True)
    assert torch.equal(pooled, expected[0])
    assert torch.equal(argmax.int(), expected[1].int())
    grad = torch.rand_like(pooled)
    assert torch.equal(mps.backward(grad, rois, argmax, 2, 9, 8), cpu.backward(grad, rois, argmax, 2, 9, 8))


def test_data_workers_can_be_spawned(tmp_path):
    """Windows and macOS start them anew, and send them the dataset with its open proposal file."""
    layouts.roboflow_voc(tmp_path / "data")
    settings = compose_settings(
        "train", "data=folder", f"data.root={tmp_path / 'data'}", "proposals.mode=single", "device=cpu",
        f"proposals.folder={tmp_path / 'p'}",
    )  # fmt: skip
    checked = check(settings.data, build_dataset(settings.data, "train"), "train")
    samples = build_transformed_dataset(settings, checked, "train")
    sample, _ = samples[0, 0]
    copy, _ = pickle.loads(pickle.dumps(samples))[0, 0]
    assert np.array_equal(copy.image, sample.image)
    assert np.array_equal(copy.proposals, sample.proposals)
    assert len(copy.proposals) > 0


@pytest.mark.slow
def test_all_programs_run_without_what_posix_alone_has(tmp_path):
    layouts.roboflow_voc(tmp_path / "data")
    run, environment = tmp_path / "run", os.environ | {"PYTHONPATH": str(NO_POSIX)}
    checkpoint = run / "checkpoints/last.pt"
    commands = [
        ["train.py", "data=folder", f"data.root={tmp_path / 'data'}", "train.iterations=2", "model.backbone=alexnet",
         "model.hidden=16", "data.short_side_px=48", "data.max_side_px=64", "proposals.mode=single",
         "train.images_per_batch=2", "roi.rois_per_image=8", "device=cpu", "workers=1", f"run.dir={run}",
         f"proposals.folder={tmp_path / 'p'}"],
        ["evaluate.py", f"checkpoint={checkpoint}", "workers=0", f"out={tmp_path / 'out'}"],
        ["scripts/detect.py", "--checkpoint", checkpoint, "--input", tmp_path / "data/test/img 8.jpg", "--out",
         tmp_path / "found"],
    ]  # fmt: skip
    for command in commands:
        subprocess.run([sys.executable, *command], cwd=REPOSITORY, env=environment, check=True)
    assert checkpoint.is_file()
    assert (tmp_path / "out/metrics.json").is_file()
    assert (tmp_path / "found/pictures/img 8.jpg").is_file()


COMPILE = """
import re, torch, llvmlite.binding as llvm
from detector.roi_pool import kernels, roi_pool
features = torch.rand(1, 64, 9, 9, requires_grad=True)
for values in (features, features.bfloat16()):
    roi_pool(values, torch.tensor([[0, 1.0, 1, 99, 99]]), 7, 1 / 16).float().sum().backward()
llvm.initialize_all_targets(), llvm.initialize_all_asmprinters()
for triple in ("aarch64-unknown-linux-gnu", "arm64-apple-macosx"):
    machine = llvm.Target.from_triple(triple).create_target_machine()
    for kernel in (kernels.pool, kernels.scatter, kernels.plan, kernels.group_by_image):
        for text in kernel.inspect_llvm().values():
            text = re.sub('target triple = ".*"', f'target triple = "{triple}"', text)
            text = re.sub('target datalayout = ".*"', f'target datalayout = "{machine.target_data}"', text)
            module = llvm.parse_assembly(text)
            module.verify()
            print(len(machine.emit_object(module)) > 1000)
"""


@pytest.mark.slow
def test_kernels_compile_for_arm64(tmp_path):
    """The instructions that they write by hand are LLVM's own, of no processor; numba does the rest as elsewhere."""
    environment = os.environ | {"NUMBA_OPT": "0", "NUMBA_CACHE_DIR": str(tmp_path)}  # no optimisation for this machine
    result = subprocess.run([sys.executable, "-c", COMPILE], cwd=REPOSITORY, env=environment, capture_output=True)
    assert result.stdout.split() == [b"True"] * 14, result.stderr.decode()
