"""Cases 55 and 56 of FAULTS.md: TensorBoard and metrics.jsonl."""

import json
import resource
import threading
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detector.training.tracking import Tracker
from tests.helpers.processes import FORKS, print_to


def test_case_55_when_tensorboard_cannot_write_the_run_goes_on(tmp_path, caplog):
    tracker = Tracker(tmp_path)
    tracker.scalars(1, {"loss/train": 0.5})

    def fails(*arguments):
        raise OSError(28, "No space left on device")

    tracker.writer.add_scalar = fails
    for iteration in (2, 3):
        tracker.scalars(iteration, {"loss/train": 0.25})
    tracker.text("config", "a")
    tracker.close()
    assert caplog.text.count("no more TensorBoard events: [Errno 28] No space left") == 1
    assert [json.loads(line)["iteration"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
    ]


def track_on_a_full_disk(folder: Path) -> None:
    """Thirty lines, of which the eleventh to the twentieth do not fit on the disk; then an error in another thread."""
    print_to(folder / "log")
    tracker = Tracker(folder)
    for iteration in range(1, 31):
        tracker.scalars(iteration, {f"loss/train{number}": 0.5 for number in range(20)})
        if iteration == 10:
            tracker.flush()
            end = (folder / "metrics.jsonl").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (end + 100, resource.RLIM_INFINITY))
        if iteration == 15:
            tracker.writer and tracker.writer.flush()
            time.sleep(0.5)  # TensorBoard's thread meets the limit, and the next write hears of it
        if iteration == 20:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    tracker.close()
    threading.Thread(target=lambda: 1 / 0).start()


def test_case_55_a_disk_that_is_full_for_a_while(tmp_path):
    """No line is half, and only the error of the other thread has a traceback."""
    process = FORKS.Process(target=track_on_a_full_disk, args=(tmp_path,))
    process.start()
    process.join()
    log = (tmp_path / "log").read_text()
    assert process.exitcode == 0, log
    lines = [json.loads(line)["iteration"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [*range(1, 11), *range(21, 31)]
    assert log.count("no more TensorBoard events: [Errno 27] File too large") == 1
    assert log.count("metrics.jsonl cannot be written") == 1
    assert log.count("Traceback") == 1
    assert "ZeroDivisionError" in log


def test_case_55_at_the_start_it_is_an_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(FileExistsError, match=r"File exists: '.*/run'"):
        Tracker(tmp_path / "run")


def test_case_55_metrics_that_cannot_be_written_are_one_warning(tmp_path, caplog):
    tracker = Tracker(tmp_path)
    tracker.lines.close()
    tracker.lines = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    for iteration in (1, 2):
        tracker.scalars(iteration, {"loss/train": 0.5})
    tracker.close()
    assert caplog.text.count("metrics.jsonl cannot be written") == 1
    assert len(EventAccumulator(str(tmp_path)).Reload().Scalars("loss/train")) == 2


def test_case_56_curves_go_on_without_overlap(tmp_path):
    for start, value in ((0, 1.0), (2, 2.0)):
        tracker = Tracker(tmp_path, start)
        for iteration in range(start + 1, start + 4):
            tracker.scalars(iteration, {"loss/train": value})
        tracker.close()
        time.sleep(1.1)  # the names of event files count seconds
    scalars = EventAccumulator(str(tmp_path)).Reload().Scalars("loss/train")
    assert [(event.step, event.value) for event in scalars] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]
