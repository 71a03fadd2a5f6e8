"""Cases 1 to 8 of FAULTS.md: a run is killed or stopped, its checkpoints are damaged, or its disk is full."""

import fcntl
import hashlib
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

import train
from detector.errors import InputError, RunFailure, Stopped
from detector.evaluation.report import write_report
from detector.inference.predict import evaluate
from detector.runtime.files import replace
from detector.runtime.signals import SAME_REQUEST_S, StopRequest
from detector.training import checkpoint as checkpoints
from detector.training.checkpoint import (
    Checkpoints,
    load_checkpoint,
    load_to_resume,
    newest_valid,
    verify_integrity,
)
from detector.training.resume import Run, clean_up, find_run
from detector.training.run_folder import FolderLock
from detector.visualization.sampling import draw_sampled_rois
from tests.conftest import REPOSITORY
from tests.helpers.processes import FORKS, children, wait_for
from tests.helpers.runs import differences


def metrics_lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


@pytest.mark.slow
def test_case_01_a_killed_run_resumes_bitwise_identically():
    command = [sys.executable, "tests/tools/kill_runs.py", "--kills", "3", "--workers", "1"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search("3 kills, [123] of them in the middle of writing", result.stdout)
    assert "0 unequal" in result.stdout


def test_case_01_the_comparison_sees_one_bit(whole, run_copy):
    assert differences(run_copy, whole) == []
    content = torch.load(run_copy / "checkpoints/last.pt", weights_only=True)
    momentum = content["optimizer"][0]["exp_avg"]
    momentum[0, 0, 0, 0] = torch.nextafter(momentum[0, 0, 0, 0], torch.tensor(9.0))
    torch.save(content, run_copy / "checkpoints/last.pt")
    assert differences(run_copy, whole) == ["last.pt"]


def test_a_run_that_restarts_keeps_its_earlier_metrics(tmp_path):
    for restart in range(2):
        (tmp_path / "metrics.jsonl").write_text(f'{{"iteration": {restart + 1}}}\n')
        clean_up(tmp_path, iteration=0)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "metrics-2.jsonl": '{"iteration": 1}\n', "metrics-3.jsonl": '{"iteration": 2}\n',
    }  # fmt: skip


def test_of_two_runs_that_start_at_once_the_second_is_refused(tmp_path, settings, monkeypatch):
    """Both found no folder: a process has made and locked it in the meantime."""

    def held(*_) -> None:
        raise BlockingIOError

    run, folder = Run(FolderLock(), None, None, None), tmp_path / "run"
    folder.mkdir()
    monkeypatch.setattr(fcntl, "lockf", held)
    (folder / ".lock").write_text("process 7 on here")
    with pytest.raises(InputError, match="another run is writing into .*run: process 7 on here"):
        run.prepare_folder(settings("train", "data=shapes", f"run.dir={folder}"))
    monkeypatch.undo()
    (folder / "train.log").write_text("of a run that has ended")
    with pytest.raises(InputError, match="is not an empty folder"):
        run.prepare_folder(settings("train", "data=shapes", f"run.dir={folder}"))


def test_case_02_killed_between_two_renames_with_partial_files(tmp_path, caplog):
    """The worst moment: the old one is `previous.pt` already, the new one has not its name yet."""
    folder = tmp_path / "checkpoints"
    Checkpoints(folder).save_last({"iteration": 1})
    os.replace(folder / "last.pt", folder / "previous.pt")
    (folder / ".next.pt.unfinished").write_bytes(b"half")
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1}\n{"iteration": 2}\n{"iterat')
    assert newest_valid(folder) == folder / "previous.pt"
    caplog.set_level(logging.INFO)
    clean_up(tmp_path, iteration=1)
    assert [path.name for path in folder.iterdir()] == ["previous.pt"]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"iteration": 1}\n'
    assert ".next.pt.unfinished, which was not finished" in caplog.text
    assert "removed 2 lines of metrics.jsonl, whose steps are repeated" in caplog.text
    Checkpoints(folder).save_last({"iteration": 2})  # and the good one is not lost by the next
    assert [torch.load(folder / name)["iteration"] for name in ("last.pt", "previous.pt")] == [2, 1]


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def empty(data: bytes) -> bytes:
    return b""


def flip_a_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit])
def test_case_03_the_previous_checkpoint_replaces_a_damaged_one(tmp_path, caplog, damage):
    for iteration in (1, 2):
        Checkpoints(tmp_path).save_last({"iteration": iteration, "weights": torch.arange(5000.0)})
    bad = damage((tmp_path / "last.pt").read_bytes())
    (tmp_path / "last.pt").write_bytes(bad)
    assert newest_valid(tmp_path) == tmp_path / "previous.pt"
    assert "last.pt is damaged" in caplog.text
    assert "previous.pt is used" in caplog.text
    assert (tmp_path / "last.pt.damaged").read_bytes() == bad


def test_case_03_a_changed_bit_is_found_wherever_it_is(tmp_path):
    """The zip's own checksums leave out names, sizes and kinds: one such bit makes torch read memory of others."""
    Checkpoints(tmp_path).save_last({"iteration": 1, "weights": torch.arange(20.0)})
    path = tmp_path / "last.pt"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        if verify_integrity(path) is None:  # only in the mark of the digest and its length, which nobody reads
            assert torch.equal(torch.load(path, weights_only=True)["weights"], torch.arange(20.0))
            assert place >= len(whole) - checkpoints.SEAL_BYTES - 2


def test_case_04_without_a_valid_checkpoint_no_run_is_restarted(settings, run_copy, tiny):
    for name, damage in (("last.pt", empty), ("previous.pt", truncate), ("best.pt", flip_a_bit)):
        path = run_copy / "checkpoints" / name
        path.write_bytes(damage(path.read_bytes()))
    before = sorted(path.name for path in run_copy.rglob("*"))
    says = r"every checkpoint in .* is damaged: last\.pt: .*; previous\.pt: .*; best\.pt: .*another run\.dir"
    with pytest.raises(InputError, match=says):
        train.main(settings("train", *tiny, f"run.dir={run_copy}", "resume=auto"))
    assert sorted(path.name for path in run_copy.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)])
def test_case_05_a_signal_saves_within_a_step_resume_is_exact(whole, begin, tmp_path, number, status):
    run = begin("workers=1", "train.checkpoint_every=100")
    wait_for(lambda: len(metrics_lines(tmp_path / "run")) >= 2)
    os.kill(run.pid, signal.SIGSTOP)  # so that nothing moves between the look and the signal
    steps = len(metrics_lines(tmp_path / "run"))
    for pid in (run.pid, *children(run.pid)):  # to workers too, as from a terminal or a batch system
        os.kill(pid, number)
    os.kill(run.pid, signal.SIGCONT)
    run.join()
    assert run.exitcode == status
    assert f"{number.name}: stopping" in (tmp_path / "log").read_text()
    saved = load_to_resume(tmp_path / "run/checkpoints/last.pt")["iteration"]
    assert steps <= saved <= steps + 1
    again = begin("workers=4", "resume=auto", "train.checkpoint_every=100")  # case 9, from end to end
    again.join()
    assert again.exitcode == 0, (tmp_path / "log").read_text()
    for name in ("last.pt", "best.pt"):
        ours, theirs = (load_checkpoint(folder / "checkpoints" / name) for folder in (tmp_path / "run", whole))
        assert all(torch.equal(ours["model"][key], theirs["model"][key]) for key in theirs["model"])
    assert (tmp_path / "run/metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()


def take_a_long_step(ready) -> None:
    """In one call that does not come back to Python: signal handlers wait for its end."""
    with StopRequest():
        ready.set()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_case_06_a_second_signal_stops_at_once(number):
    ready = FORKS.Event()
    process = FORKS.Process(target=take_a_long_step, args=(ready,))
    process.start()
    assert ready.wait(60)
    for _ in range(2):  # the second one at the same time, as from torchrun: the same request
        os.kill(process.pid, number)
        time.sleep(0.2)
    time.sleep(SAME_REQUEST_S)
    assert process.is_alive()
    os.kill(process.pid, number)
    process.join(20)
    assert process.exitcode == 128 + number


def test_case_06_ctrl_c_during_an_evaluation_postpones_it(whole, tiny, settings, tmp_path, monkeypatch):
    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*arguments)

    config = settings("train", *tiny, f"run.dir={tmp_path}/run", "resume=auto")
    monkeypatch.setattr("detector.training.trainer.evaluate", interrupted)
    with pytest.raises(Stopped) as stopped:
        train.main(config)
    assert stopped.value.signal == signal.SIGINT
    saved = load_to_resume(tmp_path / "run/checkpoints/last.pt")
    assert (saved["iteration"], saved["evaluated"]) == (4, 0)
    monkeypatch.setattr("detector.training.trainer.evaluate", evaluate)
    train.main(config)
    assert differences(tmp_path / "run", whole) == []


@pytest.fixture
def small_disk():
    """Files of this process cannot grow beyond 8 MB, and a checkpoint has more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_case_07_a_full_disk_ends_the_run_after_three_attempts(run_copy, settings, tiny, small_disk, caplog):
    before = {path.name: path.read_bytes() for path in (run_copy / "checkpoints").iterdir()}
    every = ["train.iterations=12", "train.checkpoint_every=1", "train.eval_every=100"]
    says = "iteration 9 could NOT be written: .*File too large.* The earlier checkpoints are intact"
    with pytest.raises(RunFailure, match=says):
        train.main(settings("train", *tiny, *every, f"run.dir={run_copy}", "resume=auto"))
    assert [f"iteration {number} could NOT" in caplog.text for number in (7, 8)] == [True, True]
    assert {path.name: path.read_bytes() for path in (run_copy / "checkpoints").iterdir()} == before


def test_case_07_a_stop_after_a_write_that_failed_writes_again(run_copy, settings, tiny, small_disk, monkeypatch):
    def stopped_at_the_second(self, batches):
        yield next(iter(batches))
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(StopRequest, "interruptible", stopped_at_the_second)
    every = ["train.iterations=12", "train.checkpoint_every=1", "train.eval_every=100"]
    with pytest.raises(RunFailure, match="iteration 7 could NOT be written"):
        train.main(settings("train", *tiny, *every, f"run.dir={run_copy}", "resume=auto"))


def test_case_07_a_full_disk_at_an_evaluation_ends_no_run(tiny, settings, tmp_path, monkeypatch, caplog):
    """The second of three evaluations cannot be written: an error in the log, and the next one can."""
    reports = []

    def full(*arguments, **more):
        reports.append(1)
        if len(reports) == 2:
            raise OSError(28, "No space left on device")
        return write_report(*arguments, **more)

    monkeypatch.setattr("detector.training.trainer.write_report", full)
    train.main(settings("train", *tiny, f"run.dir={tmp_path}/run", "train.eval_every=2"))
    assert "the evaluation of iteration 4 could NOT be written: [Errno 28] No space left" in caplog.text
    assert json.loads((tmp_path / "run/metrics.json").read_text())["source"]["iteration"] == 6

    reports.clear()
    with pytest.raises(RunFailure, match="the evaluation of iteration 4 could NOT be written"):  # the last one
        train.main(settings("train", *tiny, f"run.dir={tmp_path}/b", "train.eval_every=2", "train.iterations=4"))


def test_case_07_after_a_best_checkpoint_that_was_not_written(tiny, settings, tmp_path, monkeypatch, caplog):
    """Scores 0.1, 0.9, 0.5; the second cannot be written, so the third is the best there is."""
    scores, written = iter((0.1, 0.9, 0.5)), []

    def scored(*arguments, **more):
        metrics = write_report(*arguments, **more)
        metrics["main"]["value"] = next(scores)
        return metrics

    def replace_(source, target):
        if target.name == "best.pt":
            written.append(1)
            if len(written) == 2:
                raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("detector.training.trainer.write_report", scored)
    monkeypatch.setattr(checkpoints, "replace", replace_)
    train.main(settings("train", *tiny, f"run.dir={tmp_path}/run", "train.eval_every=2"))
    assert "the checkpoint of iteration 4 could NOT be written" in caplog.text
    best = load_to_resume(tmp_path / "run/checkpoints/best.pt")
    assert (best["iteration"], best["best"]) == (6, 0.5)


def test_case_08_what_could_not_be_written_is_never_called_saved(settings, tiny, tmp_path, monkeypatch, caplog):
    """Root may write anywhere, so a file where the folder should be stands for a lost permission."""

    def spoil(*arguments):
        (tmp_path / "run/checkpoints").write_text("")
        return draw_sampled_rois(*arguments)

    monkeypatch.setattr("detector.training.trainer.draw_sampled_rois", spoil)
    with pytest.raises(RunFailure, match="iteration 1 could NOT be written"):
        train.main(settings("train", *tiny, f"run.dir={tmp_path}/run", "train.iterations=1", "train.eval_every=9"))
    assert "done:" not in caplog.text


def test_case_01_a_run_killed_before_its_settings_were_written(tmp_path):
    with FolderLock() as lock:
        lock.take(tmp_path)
    (tmp_path / "train.log").write_text("of the run before\n")
    with FolderLock() as lock:
        assert find_run("auto", str(tmp_path), lock) == (tmp_path, None)


def test_a_folder_that_cannot_be_locked_is_one_error(tmp_path):
    (tmp_path / ".lock").mkdir()
    with (
        FolderLock() as lock,
        pytest.raises(InputError, match=r"\.lock cannot be created and locked \(Is a directory\)"),
    ):
        lock.take(tmp_path)


def test_a_checkpoint_that_cannot_be_read_back_is_not_kept(tmp_path, monkeypatch, caplog):
    Checkpoints(tmp_path).save_best({"iteration": 1})
    before = (tmp_path / "best.pt").read_bytes()
    monkeypatch.setattr(checkpoints, "verify_integrity", lambda path: "a bad disk")
    Checkpoints(tmp_path).save_best({"iteration": 2})
    assert "iteration 2 could NOT be written" in caplog.text
    assert "the written file failed verification: a bad disk" in caplog.text
    with pytest.raises(RunFailure, match="iteration 3 could NOT"):
        Checkpoints(tmp_path).save_last({"iteration": 3}, final=True)
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]
    assert (tmp_path / "best.pt").read_bytes() == before
    assert verify_integrity(tmp_path / "best.pt") is None
