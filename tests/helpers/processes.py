"""Programs in processes of their own: started as a user does, or forked from one that has imported them already."""

import multiprocessing
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.helpers.pictures import draw_nothing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["train", "detector.evaluator", "tests.conftest"])  # the programs import these late


def program(name: str, *overrides: str, code: int) -> subprocess.CompletedProcess:
    """Run a program as a user does, and check how it ends."""
    result = subprocess.run([sys.executable, name, *overrides], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == code, result.stdout + result.stderr
    return result


def start_program(log: Path, *overrides: str) -> multiprocessing.Process:
    """`python train.py OVERRIDES` without its figures; what it prints is in the file `log`."""
    process = FORKS.Process(target=run_train, args=(log, overrides))
    process.start()
    return process


def run_train(log: Path, overrides: tuple[str, ...]) -> None:
    import train
    from detector.app.start import run_program
    from detector.settings import TrainSettings

    print_to(log)
    draw_nothing(pytest.MonkeyPatch())
    multiprocessing.set_start_method("fork", force=True)  # of data workers, as in a program that was started as usual
    sys.argv = ["train.py", *overrides]
    torch.set_num_threads(1)
    run_program(train.main, "train", TrainSettings)


def start_ranks(
    function: Callable, world_size: int, folder: Path, *arguments: object, timeout_s: int = 60
) -> list[multiprocessing.Process]:
    """`function(folder, *arguments)` in connected processes; what each prints goes to `folder`/rankN.log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        FORKS.Process(target=_rank, args=(function, rank, world_size, port, timeout_s, folder, arguments))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    return ranks


def _rank(
    function: Callable, rank: int, world_size: int, port: int, timeout_s: int, folder: Path, arguments: tuple
) -> None:
    from detector.runtime.distributed import process_group

    print_to(folder / f"rank{rank}.log")
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with process_group(timeout_s):
            function(folder, *arguments)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # of a thread that has ended meanwhile
            found += map(int, path.read_text().split())
    return found


def print_to(log: Path) -> None:
    os.chdir(REPOSITORY)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def wait_for(condition: Callable[[], object], limit_s: float = 120) -> None:
    """Wait until the condition holds; fail after the limit."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
