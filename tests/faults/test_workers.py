"""Case 51 of FAULTS.md: data workers that die, and what killed runs leave behind."""

import multiprocessing
import os
import re
import signal
from pathlib import Path

import pytest

from detector.data.formats.voc import read_voc
from detector.data.loader import TransformedDataset, eval_loader, explain_workers
from detector.data.transforms import Resize
from detector.errors import InputError, RunFailure
from tests.helpers.batches import Boxes
from tests.helpers.processes import children, wait_for


def test_case_51_a_data_worker_that_dies_is_explained(begin, tmp_path):
    run = begin("workers=1", "train.iterations=500")
    wait_for(lambda: (tmp_path / "run/metrics.jsonl").is_file() and (tmp_path / "run/metrics.jsonl").read_text())
    workers = children(run.pid)
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    run.join(60)
    assert run.exitcode == 1
    log = (tmp_path / "log").read_text()
    assert "error: a process that reads images died (" in log
    assert "--shm-size" in log
    assert "The last images that arrived: train_" in log
    assert "Traceback" not in log


def test_case_51_a_batch_that_a_dead_worker_did_not_send():
    with pytest.raises(RunFailure, match=r"died \(Connection reset"), explain_workers([]):
        raise ConnectionResetError("Connection reset by peer")
    died = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    with pytest.raises(RunFailure, match=r"died \(DataLoader worker \(pid 7\)"), explain_workers([]):
        raise SystemError("a function returned a result with an exception set") from died
    for error in RuntimeError("another matter"), SystemError("another matter"):
        with pytest.raises(type(error), match="another matter"), explain_workers([]):
            raise error


def test_case_51_a_batch_that_cannot_be_sent_is_explained(small_shapes, tmp_path, monkeypatch):
    """Without the folder of its socket, as on a full disk, multiprocessing alone loses the batch and waits forever."""
    monkeypatch.setitem(multiprocessing.process.current_process()._config, "tempdir", str(tmp_path / "gone"))
    samples = TransformedDataset(read_voc(small_shapes, "train"), Boxes(), Resize([40], 60))
    says = (
        r"^a data worker cannot send its batch: \[Errno 2\] No such file or directory\. It needs a socket in TMPDIR or "
        r"/tmp, shared memory in /dev/shm, and file descriptors \(ulimit -n\): free these, or use workers=0$"
    )
    with pytest.raises(RunFailure, match=says), explain_workers([]):
        list(eval_loader(samples, workers=1))


@pytest.mark.parametrize("says", ["x.jpg: damaged image", "x.safetensors: an old store: generate it with\n  a command"])
def test_case_51_invalid_input_in_a_worker_is_its_message(small_shapes, says):
    samples = TransformedDataset(read_voc(small_shapes, "train"), Boxes(), Resize([40], 60))
    object.__setattr__(samples.dataset, "image", BrokenImage(says))
    with pytest.raises(InputError, match=f"^{re.escape(says)}$"), explain_workers([]):
        list(eval_loader(samples, workers=1))
    with pytest.raises(InputError, match=r"^of this process:\n  in two lines$"), explain_workers([]):
        raise InputError("of this process:\n  in two lines")


class BrokenImage:
    def __init__(self, says):
        self.says = says

    def __call__(self, index):
        raise InputError(self.says)


@pytest.mark.slow
def test_killed_runs_leave_no_process_behind(begin, tmp_path):
    run = begin("workers=2", "train.iterations=500")
    wait_for(lambda: (tmp_path / "run/metrics.jsonl").is_file() and (tmp_path / "run/metrics.jsonl").read_text())
    wait_for(lambda: len(children(run.pid)) >= 2)
    workers = children(run.pid)
    run.kill()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 30)
