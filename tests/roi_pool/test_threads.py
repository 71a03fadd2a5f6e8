"""Threads, processes and imports: what a program that uses the layer may do."""

import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from detector.roi_pool import roi_pool, threads


@pytest.fixture(autouse=True)
def _restore_threads():
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def problem(seed=0):
    """Enough work for several tasks, forward and backward, of three images."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(3, 64, 14, 18, generator=generator)
    corners = torch.rand(600, 2, 2, generator=generator).sort(1).values.flatten(1)
    rois = torch.cat([torch.randint(3, (600, 1), generator=generator), corners * 280], 1)
    return features, rois, torch.randn(600, 64, 7, 7, generator=generator)


def pool_and_differentiate(features, rois, grad):
    features = features.clone().requires_grad_()
    pooled = roi_pool(features, rois, 7, 1 / 16)
    pooled.backward(grad)
    return pooled.detach(), features.grad


def test_same_bits_with_any_number_of_threads():
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        results.append(pool_and_differentiate(*problem()))
    for pooled, grad in results[1:]:
        assert torch.equal(pooled, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("count", [1, 2])
def test_as_many_threads_as_torch_uses(count, monkeypatch):
    monkeypatch.setattr(threads, "_executor", ThreadPoolExecutor(4))
    torch.set_num_threads(count)
    meeting = threading.Barrier(count, timeout=20)  # all of them are here at once
    seen, counters = [], []

    def kernel(task, taken):
        seen.append(threading.get_ident())
        counters.append(taken)
        meeting.wait()
        assert task == "what is to be done"

    threads.run(kernel, "what is to be done")
    assert len(seen) == len(set(seen)) == count
    assert threading.get_ident() in seen
    assert all(taken is counters[0] for taken in counters)
    assert counters[0].tolist() == [0]


def test_error_in_a_helper_thread_is_raised():
    failed = threading.Event()

    def kernel(taken):
        if threading.current_thread() is not threading.main_thread():
            failed.set()
            raise ValueError("no such task")
        assert failed.wait(20)

    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="no such task"):
        threads.run(kernel)


def test_two_python_threads_at_once():
    torch.set_num_threads(2)
    expected = {seed: pool_and_differentiate(*problem(seed)) for seed in range(4)}
    with ThreadPoolExecutor(4) as callers:
        seeds = list(range(4)) * 5
        for seed, found in zip(
            seeds, callers.map(lambda seed: pool_and_differentiate(*problem(seed)), seeds), strict=True
        ):
            assert torch.equal(found[0], expected[seed][0])
            assert torch.equal(found[1], expected[seed][1])


def run_python(code, seconds=300):
    code = textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_children_after_their_parent():
    output = run_python(
        """
        import os, torch
        from torch.utils.data import DataLoader, Dataset
        from detector.roi_pool import roi_pool

        torch.set_num_threads(2)
        features = torch.randn(1, 64, 20, 20).contiguous(memory_format=torch.channels_last)
        rois = torch.tensor([[0.0, 0, 0, 300, 300]]).repeat(500, 1)
        expected = roi_pool(features, rois, 7, 1 / 16)
        child = os.fork()
        if child == 0:
            maps = features.requires_grad_()
            pooled = roi_pool(maps, rois, 7, 1 / 16)
            pooled.backward(expected)
            os._exit(not (torch.equal(pooled, expected) and maps.grad.abs().sum() > 0))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

        class Pooled(Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, index):
                return roi_pool(features.abs().sign() * index, rois, 2, 1 / 16).sum()

        print(*[int(total) for total in DataLoader(Pooled(), batch_size=None, num_workers=2)])
        print(torch.equal(roi_pool(features, rois, 7, 1 / 16), expected))
        """
    )
    assert output == ["0", *[str(index * 64 * 500 * 4) for index in range(4)], "True"]


@pytest.mark.slow
def test_importing_is_quick_and_the_first_call_loads_no_compiler():
    output = run_python(
        """
        import sys, torch
        import detector
        from detector.roi_pool import RoIPool, roi_pool

        print("numba" in sys.modules, "triton" in sys.modules)
        features = torch.ones(1, 1, 4, 4, requires_grad=True)
        roi_pool(features, torch.zeros(1, 5), 2).sum().backward()
        print("numba" in sys.modules, "triton" in sys.modules, "torch._dynamo" in sys.modules)
        """
    )
    assert output == ["False", "False", "True", "False", "False"]
