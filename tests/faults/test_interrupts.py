"""SIGTERM and Ctrl-C while a program waits for an image that never comes: it ends at once, and keeps its work."""

import importlib
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.processes import FORKS, print_to, run_train, wait_for
from tests.helpers.runs import differences

WITHIN_S = 10  # one second, on a machine that has nothing else to do


def _slow(log: Path, command: list[str], gate: Path, free: int) -> None:
    """The program; while `gate` exists, an image is read or searched only `free` times, and the next ones wait."""
    from detector.data import check, dataset
    from detector.inference import inputs
    from detector.proposals import generate

    def slow(function: Callable) -> Callable:
        calls = itertools.count(1)

        def call(*arguments: object, **options: object) -> object:
            number = next(calls)
            while number > free and gate.exists():
                gate.with_name("waits").touch()
                time.sleep(0.02)
            return function(*arguments, **options)

        return call

    dataset.read_image, inputs.read_image = slow(dataset.read_image), slow(inputs.read_image)
    generate.search_image = slow(generate.search_image)
    if command[0] == "scripts.check_data":
        check.digest_of = slow(check.digest_of)
    if command[0] == "train":
        run_train(log, tuple(command[1:]))
        return
    print_to(log)
    sys.argv = command
    program = importlib.import_module(command[0])
    sys.exit(program.command() if command[0] == "evaluate" else program.main())


@pytest.fixture
def begin(tmp_path):
    """begin("train", "seed=1") -> process, whose text goes to tmp_path/log."""
    processes = []

    def start(*command: str, free: int = 10**9) -> multiprocessing.Process:
        (tmp_path / "gate").touch()
        arguments = (tmp_path / "log", [*command], tmp_path / "gate", free)
        processes.append(FORKS.Process(target=_slow, args=arguments))
        processes[-1].start()
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


def interrupt(process: multiprocessing.Process, folder: Path, number: int) -> None:
    """Signal the process as soon as it waits; it ends in time."""
    wait_for((folder / "waits").exists)
    time.sleep(0.2)
    os.kill(process.pid, number)
    process.join(WITHIN_S)
    assert process.exitcode == 128 + number


def last_line(log: Path) -> str:
    return log.read_text().splitlines()[-1]


@pytest.mark.parametrize(
    ("workers", "number"), [(0, signal.SIGTERM), pytest.param(2, signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_run_is_stopped_while_a_batch_is_made(begin, tiny, whole, tmp_path, workers, number):
    run = [*tiny, f"run.dir={tmp_path}/run", f"workers={workers}"]
    first = begin("train", *run, free=4)
    interrupt(first, tmp_path, number)
    assert last_line(tmp_path / "log") == f"stopped by {number.name}; what was saved before is kept"
    assert f"to continue this run: resume={tmp_path}/run" in (tmp_path / "log").read_text()
    again = begin("train", *run, "resume=auto")
    again.join()
    assert again.exitcode == 0, (tmp_path / "log").read_text()
    assert differences(tmp_path / "run", whole) == []


def test_an_evaluation_is_stopped_while_an_image_is_read(begin, small_shapes, untrained_checkpoint, tmp_path):
    first = begin(
        "evaluate", f"checkpoint={untrained_checkpoint}", "device=cpu", "workers=0", f"data.root={small_shapes}",
        f"out={tmp_path}/out", f"proposals.folder={tmp_path}", free=1,
    )  # fmt: skip
    interrupt(first, tmp_path, signal.SIGTERM)
    assert last_line(tmp_path / "log") == "stopped by SIGTERM; what was saved before is kept"
    assert not (tmp_path / "out/metrics.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_generation_keeps_finished_images(begin, small_shapes, tmp_path, number):
    command = ["scripts.proposals", "generate", "--data", str(small_shapes), "--split", "train", "--mode", "single",
               "--workers", "1", "--out"]  # fmt: skip
    first = begin(*command, f"{tmp_path}/a.safetensors", free=2)
    interrupt(first, tmp_path, number)
    says = f"stopped by {number.name}; no partial file is left, and generate resumes where it stopped"
    assert last_line(tmp_path / "log") == says
    assert not [*tmp_path.glob("*.lock"), *tmp_path.glob("a.safetensors")]
    for name in ("a", "b"):
        again = begin(*command, f"{tmp_path}/{name}.safetensors")
        again.join()
        assert again.exitcode == 0
    assert "4 of 6 images left" in (tmp_path / "log").read_text()
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_detection_keeps_finished_images(begin, small_shapes, untrained_checkpoint, tmp_path):
    first = begin(
        "scripts.detect", "--checkpoint", str(untrained_checkpoint), "--device", "cpu", "--mode", "single",
        "--input", f"{small_shapes}/JPEGImages", "--out", f"{tmp_path}/out", free=3,
    )  # fmt: skip
    interrupt(first, tmp_path, signal.SIGTERM)
    assert last_line(tmp_path / "log") == "stopped by SIGTERM; there is no detections.json"
    assert [path.name for path in tmp_path.glob("out/*")] == ["pictures"]
    assert [*tmp_path.glob("out/pictures/*.jpg")]


def test_a_check_of_data_is_stopped(begin, small_shapes, tmp_path):
    first = begin("scripts.check_data", "--data", str(small_shapes), "--splits", "train", free=1)
    interrupt(first, tmp_path, signal.SIGINT)
    assert last_line(tmp_path / "log") == "stopped by SIGINT; nothing was written"
