"""A tiny run that the tests stop, corrupt and resume."""

import logging
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detector.proposals.store import write_store
from tests.helpers.processes import start_program
from tests.helpers.runs import random_proposals, run_settings
from tests.helpers.wrong_input import IDS


@pytest.fixture(autouse=True)
def one_thread():
    """Runs in this process compute with one thread, as those in processes of their own do: sums are equal then."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_pictures(without_pictures) -> None:
    """Faults of drawing are tested where it is tested."""


@pytest.fixture(scope="session")
def tiny(small_shapes, make_once) -> list[str]:
    """The settings of the run, whose proposals are random boxes."""
    folder = make_once("random_proposals", lambda folder: random_proposals(small_shapes, folder))
    return run_settings(small_shapes, folder)


@pytest.fixture(scope="session")
def whole(tiny, make_once) -> Path:
    """The folder of the run, finished and never stopped. Not to be changed."""

    def train(folder: Path) -> None:
        process = start_program(folder / "log", *tiny, f"run.dir={folder}/run")
        process.join()
        assert process.exitcode == 0, (folder / "log").read_text()

    return make_once("whole", train) / "run"


@pytest.fixture
def run_copy(whole, tmp_path):
    """A copy of the finished run, to be changed."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def begin(tiny, tmp_path) -> Callable[..., multiprocessing.Process]:
    """Begin the run in tmp_path/run: begin("workers=1") -> process; what it prints is in tmp_path/log."""
    processes = []

    def start(*overrides: str) -> multiprocessing.Process:
        processes.append(start_program(tmp_path / "log", *tiny, f"run.dir={tmp_path}/run", *overrides))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


@pytest.fixture
def folder(small_shapes, untrained_checkpoint, tmp_path, monkeypatch) -> Path:
    """The working directory of a case."""
    shutil.copytree(small_shapes, tmp_path / "T")
    shutil.copy(untrained_checkpoint, tmp_path / "best.pt")
    boxes = np.array([[10, 10, 90, 90], [5, 40, 120, 130]], np.float32)
    hws = [Image.open(tmp_path / f"T/JPEGImages/{id}.jpg").size[::-1] for id in IDS]
    write_store(tmp_path / "p.safetensors", IDS, [boxes] * len(IDS), hws, {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    return tmp_path
