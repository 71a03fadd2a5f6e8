"""Cases 1 to 16 of FAULTS.md: a run is stopped, killed or spoilt, and resumed."""

import copy
import fcntl
import hashlib
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from detector.boxes import BoxCoder
from detector.builders.datasets import JoinedProposals
from detector.data.check import check_data
from detector.data.fingerprint import fingerprint_data, fingerprint_proposals
from detector.data.formats.voc import read_voc
from detector.data.loader import TrainBatchSampler, TransformedDataset, batch_loader
from detector.data.transforms import Augment, Resize
from detector.errors import InputError, RunFailure, Stopped
from detector.evaluation.report import write_report
from detector.inference.predict import evaluate
from detector.proposals.formats.records import ImageProposals
from detector.proposals.store import open_proposals, stream_store
from detector.runtime.files import replace
from detector.runtime.signals import SAME_REQUEST_S, StopRequest
from detector.schema import parse
from detector.settings import RoISampling, TrainSettings
from detector.training import checkpoint as checkpoints
from detector.training.checkpoint import (
    Checkpoints,
    load_checkpoint,
    load_state,
    load_to_resume,
    newest_valid,
    verify_integrity,
)
from detector.training.engine import TrainingConfig
from detector.training.resume import Run, check_same_run, clean_up, find_run, promote_checkpoint
from detector.training.run_folder import FolderLock
from detector.visualization.sampling import draw_sampled_rois
from tests.conftest import REPOSITORY
from tests.faults.conftest import Boxes, wait_for
from tests.helpers.processes import FORKS, children
from tests.tools.kill_runs import differences, same


@pytest.fixture
def spoilt(whole, tmp_path):
    """A copy of the finished run, to be spoilt."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def metrics_lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


@pytest.mark.slow
def test_case_01_killed_at_any_moment_and_in_a_write_the_outcome_is_equal_in_every_bit():
    command = [sys.executable, "tests/tools/kill_runs.py", "--kills", "3", "--workers", "1"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search("3 kills, [123] of them in the middle of writing", result.stdout)
    assert "0 unequal" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    [
        "train.ema=null",
        "optimizer=sgd",
        "optimizer.max_grad_norm=0.5",
        "model.delta_normalization=per_class",
        "precision=float16",
    ],
)
def test_resume_is_exact_with_other_optimizers(override, settings, tiny, tmp_path):
    folder = tmp_path / "run"
    train.main(settings("train", *tiny, override, f"run.dir={folder}"))
    whole = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    train.main(settings("train", *tiny, override, f"resume={folder}/checkpoints/previous.pt"))
    again = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    for part in ("model", "raw_model", "optimizer", "iteration", "scaler"):
        assert same(again.get(part), whole.get(part))
    assert (folder / "checkpoints/last-of-6.pt").is_file()  # so the run did resume before its end


def test_case_01_the_comparison_sees_one_bit(whole, spoilt):
    assert differences(spoilt, whole) == []
    content = torch.load(spoilt / "checkpoints/last.pt", weights_only=True)
    momentum = content["optimizer"][0]["exp_avg"]
    momentum[0, 0, 0, 0] = torch.nextafter(momentum[0, 0, 0, 0], torch.tensor(9.0))
    torch.save(content, spoilt / "checkpoints/last.pt")
    assert differences(spoilt, whole) == ["last.pt"]


def test_a_run_that_restarts_keeps_its_metrics_under_another_name(tmp_path):
    for restart in range(2):
        (tmp_path / "metrics.jsonl").write_text(f'{{"iteration": {restart + 1}}}\n')
        clean_up(tmp_path, iteration=0)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "metrics-2.jsonl": '{"iteration": 1}\n', "metrics-3.jsonl": '{"iteration": 2}\n',
    }  # fmt: skip


def test_of_two_runs_that_begin_at_once_the_second_is_told_of_the_first(tmp_path, settings, monkeypatch):
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


def test_case_02_killed_between_the_renames_and_half_written_files(tmp_path, caplog):
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
def test_case_03_a_damaged_newest_checkpoint_steps_aside_for_the_previous_one(tmp_path, caplog, damage):
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


def test_case_04_without_one_good_checkpoint_nothing_begins_anew(settings, spoilt, tiny):
    for name, damage in (("last.pt", empty), ("previous.pt", truncate), ("best.pt", flip_a_bit)):
        path = spoilt / "checkpoints" / name
        path.write_bytes(damage(path.read_bytes()))
    before = sorted(path.name for path in spoilt.rglob("*"))
    says = r"every checkpoint in .* is damaged: last\.pt: .*; previous\.pt: .*; best\.pt: .*another run\.dir"
    with pytest.raises(InputError, match=says):
        train.main(settings("train", *tiny, f"run.dir={spoilt}", "resume=auto"))
    assert sorted(path.name for path in spoilt.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)])
def test_case_05_a_signal_saves_within_a_step_and_the_run_goes_on_exactly(whole, begin, tmp_path, number, status):
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


def test_case_06_ctrl_c_during_an_evaluation_saves_and_the_evaluation_is_done_later(
    whole, tiny, settings, tmp_path, monkeypatch
):
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


def test_case_07_a_full_disk_leaves_the_old_checkpoints_and_ends_the_run_after_three(
    spoilt, settings, tiny, small_disk, caplog
):
    before = {path.name: path.read_bytes() for path in (spoilt / "checkpoints").iterdir()}
    every = ["train.iterations=12", "train.checkpoint_every=1", "train.eval_every=100"]
    says = "iteration 9 could NOT be written: .*File too large.* The earlier checkpoints are intact"
    with pytest.raises(RunFailure, match=says):
        train.main(settings("train", *tiny, *every, f"run.dir={spoilt}", "resume=auto"))
    assert [f"iteration {number} could NOT" in caplog.text for number in (7, 8)] == [True, True]
    assert {path.name: path.read_bytes() for path in (spoilt / "checkpoints").iterdir()} == before


def test_case_07_a_stop_after_a_write_that_failed_writes_again(spoilt, settings, tiny, small_disk, monkeypatch):
    def stopped_at_the_second(self, batches):
        yield next(iter(batches))
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(StopRequest, "interruptible", stopped_at_the_second)
    every = ["train.iterations=12", "train.checkpoint_every=1", "train.eval_every=100"]
    with pytest.raises(RunFailure, match="iteration 7 could NOT be written"):
        train.main(settings("train", *tiny, *every, f"run.dir={spoilt}", "resume=auto"))


def test_case_07_a_disk_that_is_full_at_an_evaluation_ends_no_run(tiny, settings, tmp_path, monkeypatch, caplog):
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


def test_case_07_a_best_checkpoint_that_was_not_written_does_not_bar_later_ones(
    tiny, settings, tmp_path, monkeypatch, caplog
):
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


def test_case_08_a_folder_that_cannot_be_written_any_more_is_never_called_saved(
    settings, tiny, tmp_path, monkeypatch, caplog
):
    """Root may write anywhere, so a file where the folder should be stands for a lost permission."""

    def spoil(*arguments):
        (tmp_path / "run/checkpoints").write_text("")
        return draw_sampled_rois(*arguments)

    monkeypatch.setattr("detector.training.trainer.draw_sampled_rois", spoil)
    with pytest.raises(RunFailure, match="iteration 1 could NOT be written"):
        train.main(settings("train", *tiny, f"run.dir={tmp_path}/run", "train.iterations=1", "train.eval_every=9"))
    assert "done:" not in caplog.text


def test_case_09_batches_after_a_resume_do_not_depend_on_the_workers(small_shapes):
    import albumentations as A

    dataset = read_voc(small_shapes, "train")
    samples = TransformedDataset(dataset, Boxes(), Resize([64], 96), Augment([A.HorizontalFlip(p=0.5)]), seed=3)
    training = TrainingConfig(RoISampling(rois_per_image=16), BoxCoder((0.1, 0.1, 0.2, 0.2)), seed=3)

    def batches(start: int, workers: int) -> list:
        """Images and sampled RoIs, bit by bit."""
        loader = batch_loader(samples, TrainBatchSampler(6, 2, 9, 3, start), workers, training.collate_with_rois)
        return [
            (batch.image_ids, batch.images.numpy().tobytes(), batch.targets.packed.numpy().tobytes(), batch.roi_counts)
            for batch in loader
        ]

    whole = batches(0, 0)
    assert batches(4, 0) == batches(4, 1) == batches(4, 2) == batches(4, 4) == whole[4:]
    assert all(sum(counts) > 0 and len(packed) == sum(counts) * 40 for _, _, packed, counts in whole)
    assert whole[0][2] != whole[3][2]


def resumable(spoilt):
    saved = load_to_resume(spoilt / "checkpoints/last.pt")
    return saved, parse(TrainSettings, saved["config"]), tuple(saved["classes"]), saved["fingerprints"]


def changed(settings: TrainSettings, group: str, **values: object) -> TrainSettings:
    return settings.with_values(**{group: settings.plain()[group] | values})


def test_case_10_another_batch_is_refused_and_another_number_of_processes_is_said(spoilt, settings, tiny, caplog):
    saved, config, classes, fingerprints = resumable(spoilt)
    with pytest.raises(InputError, match=r"train\.images_per_batch +2 +4"):
        check_same_run(saved, changed(config, "train", images_per_batch=4), classes, fingerprints)
    content = torch.load(spoilt / "checkpoints/last.pt", weights_only=True)
    torch.save(content | {"processes": 2}, spoilt / "checkpoints/last.pt")
    train.main(settings("train", *tiny, f"run.dir={spoilt}", "resume=auto", "train.iterations=7"))
    assert (
        "1 processes instead of 2: the same images at each step, but results are not bitwise identical" in caplog.text
    )


def test_case_11_other_classes_are_refused(spoilt):
    saved, config, classes, fingerprints = resumable(spoilt)
    check_same_run(saved, config, classes, fingerprints)
    for other in (classes[::-1], classes[:3], (*classes, "cat")):
        with pytest.raises(InputError, match=f"classes: ball, crate, kite, star -> {', '.join(other)}"):
            check_same_run(saved, config, other, fingerprints)


def test_case_12_what_the_weights_mean_is_fixed_and_the_rest_is_a_table(spoilt, caplog):
    saved, config, classes, fingerprints = resumable(spoilt)
    for group, key, value in (
        ("model", "backbone", "vgg16"),
        ("model", "pool_size", 5),
        ("roi", "delta_std", [1, 1, 1, 1]),
        ("optimizer", "_target_", "torch.optim.Adam"),
        ("metric", "main", "area@0.50"),
        ("metric", "iou_thresholds", [0.75]),
        ("metric", "devkit", True),
        ("detect", "nms_iou", 0.5),
    ):
        with pytest.raises(InputError, match=rf"that are fixed:\n.*\n +{group}\.{key} "):
            check_same_run(saved, changed(config, group, **{key: value}), classes, fingerprints)
    with pytest.raises(InputError, match="seed +0 +1"):
        check_same_run(saved, config.with_values(seed=1), classes, fingerprints)
    assert "changed" not in caplog.text
    more = changed(config, "train", eval_every=5, log_every=7).with_values(workers=3)
    check_same_run(saved, more, classes, fingerprints)
    table = [line.split() for line in caplog.messages[-1].splitlines()[1:]]
    assert table == [
        ["setting", "saved", "now"],
        ["train.eval_every", "4", "5"],
        ["train.log_every", "1", "7"],
        ["workers", "0", "3"],
    ]


def test_case_12_a_changed_rate_is_the_one_that_is_used(spoilt, settings, tiny):
    more = ["train.iterations=7", "schedule.warmup_iterations=0", "optimizer.lr=0.125"]
    train.main(settings("train", *tiny, f"run.dir={spoilt}", "resume=auto", *more))
    last = [json.loads(line) for line in metrics_lines(spoilt) if "train/lr" in line][-1]
    expected = 0.125 * (1 + np.cos(np.pi * 6 / 7)) / 2  # case 16: the cosine of the new length
    assert (last["iteration"], last["train/lr"]) == (7, pytest.approx(expected))


def test_case_13_other_data_or_proposals_are_refused(spoilt, make_voc):
    saved, config, classes, fingerprints = resumable(spoilt)
    for name in ("training data", "validation data", "training proposals", "validation proposals"):
        with pytest.raises(InputError, match=f"the {name}: fingerprint {fingerprints[name][:12]} -> 0123"):
            check_same_run(saved, config, classes, fingerprints | {name: "0123"})
    images = {"a": [("cat", 1, 1, 20, 20)], "b": []}

    def fingerprint_of(root: Path) -> str:
        dataset = read_voc(root, "train")
        return fingerprint_data(dataset, check_data(dataset).digests)

    one, moved = make_voc({"train": images}, "one"), make_voc({"train": images}, "moved")
    assert fingerprint_of(one) == fingerprint_of(moved)
    for number, other in enumerate(
        ({"a": [("cat", 1, 1, 20, 21)], "b": []}, {"a": [("cat", 1, 1, 20, 20, 1)], "b": []}, {"a": images["a"]})
    ):
        assert fingerprint_of(one) != fingerprint_of(make_voc({"train": other}, f"o{number}"))
    picture = one / "JPEGImages/b.jpg"
    Image.effect_noise((60, 40), 50).save(picture)
    shutil.copy(picture, moved / "JPEGImages")
    assert fingerprint_of(one) == fingerprint_of(moved)
    data = bytearray(picture.read_bytes())
    data[-10] ^= 1  # the size does not tell
    picture.write_bytes(data)
    assert fingerprint_of(one) != fingerprint_of(moved)


def test_only_a_folder_in_which_a_run_began_is_gone_on_with(spoilt, tiny, settings, tmp_path):
    shutil.copy(spoilt / "config.yaml", tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"theirs": 1}\n')
    shutil.copytree(spoilt / "checkpoints", tmp_path / "checkpoints")
    for resume in ("auto", f"{tmp_path}/checkpoints/last.pt"):
        with pytest.raises(InputError, match=rf"{tmp_path} is not the folder of a run: it has no \.lock"):
            train.main(settings("train", *tiny, f"run.dir={tmp_path}", f"resume={resume}"))
    assert (tmp_path / "metrics.jsonl").read_text() == '{"theirs": 1}\n'


def test_case_01_a_run_killed_before_its_settings_were_written_begins_anew(tmp_path):
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


def test_parts_of_another_kind_are_refused_before_a_run_is_taken_up(spoilt):
    path = spoilt / "checkpoints/last.pt"
    content = torch.load(path, weights_only=True)
    wrong = {"format": "1", "optimizer": 1, "evaluated": "x", "best": [], "fingerprints": 7, "processes": None}
    for name, value in wrong.items():
        torch.save(content | {name: value}, path)
        with pytest.raises(InputError, match=rf"last\.pt: not a checkpoint of this program: its {name} is"):
            load_to_resume(path)
    torch.save(content | {"fingerprints": {"training annotations": 7}}, path)
    with pytest.raises(InputError, match="its fingerprints are not all strings"):
        load_to_resume(path)


def test_weights_and_momentum_that_do_not_fit_are_refused_before_a_step(spoilt, settings, tiny):
    path = spoilt / "checkpoints/last.pt"
    content = torch.load(path, weights_only=True)
    key = next(iter(content["model"]))
    spoils = {
        "a weight less": {"model": {name: value for name, value in content["model"].items() if name != key}},
        "another shape": {"model": content["model"] | {key: torch.ones(2)}},
        "momentum of another shape": {"optimizer": content["optimizer"] | {0: {"exp_avg": torch.ones(2)}}},
        "momentum that is a string": {"optimizer": content["optimizer"] | {0: "x"}},
    }
    for spoil in spoils.values():
        torch.save(content | spoil, path)
        with pytest.raises(InputError, match="weights or momentum of the checkpoint do not fit this network"):
            train.main(settings("train", *tiny, f"run.dir={spoilt}", "resume=auto", "train.iterations=9"))


def test_other_versions_of_the_libraries_are_said(spoilt, settings, tiny, caplog):
    path = spoilt / "checkpoints/last.pt"
    content = torch.load(path, weights_only=True)
    assert content["versions"]["torch"] == torch.__version__
    torch.save(content | {"versions": {"torch": "1.0"}}, path)
    train.main(settings("train", *tiny, f"run.dir={spoilt}", "resume=auto", "train.iterations=7"))
    assert "started with {'torch': '1.0'}, resuming with" in caplog.text


def test_case_13_fingerprints_of_proposals(tmp_path):
    def store(boxes_of_a, boxes_of_b, score=None):
        path = tmp_path / f"{len(boxes_of_a)}{score}.safetensors"
        scores = [None if score is None else np.full(len(x), score, np.float32) for x in (boxes_of_a, boxes_of_b)]
        stream_store(path, map(ImageProposals, "ab", (boxes_of_a, boxes_of_b), scores), {})
        return open_proposals(path)

    box, none = np.array([[0, 0, 5, 5]], np.float32), np.zeros((0, 4), np.float32)
    stores = [store(box, none), store(none, box), store(box, none, 1), store(box, none, 2)]
    joined = JoinedProposals({"a": (stores[2], "a"), "b": (stores[2], "b")})
    found = [fingerprint_proposals(proposals, ["a", "b"]) for proposals in (*stores, joined)]
    assert len(set(found[:4])) == 4
    assert found[4] == found[2]


def test_case_14_checkpoints_of_other_versions_are_named(spoilt):
    path = spoilt / "checkpoints/last.pt"
    content = torch.load(path, weights_only=True)
    older = {key: content[key] for key in ("model", "config", "classes", "iteration")}
    torch.save(older, path)
    assert load_checkpoint(path)["iteration"] == 6  # good enough to evaluate
    with pytest.raises(InputError, match=r"has no best, evaluated, .*an older version.*model\.weights="):
        load_to_resume(path)
    torch.save(content | {"format": checkpoints.FORMAT + 1}, path)
    with pytest.raises(InputError, match="made by a newer version"):
        load_to_resume(path)


def test_case_16_a_finished_run_is_complete_and_left_alone(spoilt, settings, tiny, caplog):
    before = {path: path.stat().st_mtime_ns for path in spoilt.rglob("*") if path.name not in (".lock", "train.log")}
    caplog.set_level(logging.INFO)
    train.main(settings("train", *tiny, f"run.dir={spoilt}", "resume=auto"))
    assert "already complete: 6 of 6 iterations" in caplog.text
    after = {path: path.stat().st_mtime_ns for path in spoilt.rglob("*") if path.name not in (".lock", "train.log")}
    assert after == before
    assert "->" not in caplog.text  # nothing has changed, the rate that null came to neither
    with pytest.raises(InputError, match="seed +0 +1"):
        train.main(settings("train", *tiny, f"run.dir={spoilt}", "resume=auto", "seed=1"))


def test_going_back_to_an_earlier_checkpoint_loses_none_and_auto_stays_with_it(settings, tmp_path, caplog):
    folder, config = tmp_path / "checkpoints", settings("train").plain()

    def content(iteration):
        return {"model": {"x": torch.ones(1)}, "config": config, "classes": ["cat"], "iteration": iteration}

    def found():
        return {path.name: load_checkpoint(path)["iteration"] for path in folder.iterdir()}

    kept = Checkpoints(folder)
    for iteration in (3, 4, 5):
        kept.save_last(content(iteration))
    kept.save_best(content(3))
    promote_checkpoint(folder / "last.pt", 5)
    assert found() == {"last.pt": 5, "previous.pt": 4, "best.pt": 3}
    promote_checkpoint(folder / "best.pt", 3)
    assert found() == {"last-of-5.pt": 5, "previous-of-4.pt": 4, "best.pt": 3, "last.pt": 3}
    assert "last.pt is now last-of-5.pt: the run goes back to iteration 3" in caplog.text
    kept.save_last(content(4))
    promote_checkpoint(folder / "last-of-5.pt", 5)  # and forth again
    now = {"last.pt": 5, "last-of-4.pt": 4, "previous.pt": 3, "last-of-5.pt": 5, "previous-of-4.pt": 4, "best.pt": 3}
    assert found() == now
    (folder / "last.pt").write_bytes(b"no longer whole")
    kept.save_best(content(9))
    promote_checkpoint(folder / "last-of-4.pt", 4)
    assert (folder / "last-of-unknown.pt").read_bytes() == b"no longer whole"
    (folder / "last-of-unknown.pt").unlink()
    del now["best.pt"]
    assert found() == now | {"last.pt": 4, "best-of-9.pt": 9}


@pytest.mark.slow
def test_a_run_that_went_back_before_its_best_has_a_best_again(tiny, settings, tmp_path, monkeypatch):
    """Scores 0.5, 0.9, 0.2 at 2, 4, 6; from 2 on again, with 0.3 and 0.4, which are all that is left; then one more."""
    scores = iter((0.5, 0.9, 0.2, 0.3, 0.4, 0.6))

    def scored(*arguments, **more):
        metrics = write_report(*arguments, **more)
        metrics["main"]["value"] = next(scores)
        return metrics

    monkeypatch.setattr("detector.training.trainer.write_report", scored)
    overrides = [*tiny, "train.eval_every=2", "train.checkpoint_every=2"]
    run = tmp_path / "run"
    train.main(settings("train", *overrides, "train.iterations=2", f"run.dir={run}"))
    shutil.copy(run / "checkpoints/last.pt", tmp_path / "early.pt")
    train.main(settings("train", *overrides, f"run.dir={run}", "resume=auto"))
    shutil.copy(tmp_path / "early.pt", run / "checkpoints/early.pt")
    train.main(settings("train", *overrides, f"resume={run}/checkpoints/early.pt"))
    found = {path.name: load_checkpoint(path)["best"] for path in (run / "checkpoints").iterdir()}
    assert found == {"best-of-4.pt": 0.9, "last-of-6.pt": 0.9, "best.pt": 0.4, "last.pt": 0.4, "previous.pt": 0.3,
                     "previous-of-4.pt": 0.9, "early.pt": 0.5}  # fmt: skip
    train.main(settings("train", *overrides, "train.iterations=8", f"resume={run}/checkpoints/last-of-6.pt"))
    best = load_checkpoint(run / "checkpoints/best.pt")
    assert (best["iteration"], best["best"]) == (8, 0.6)  # more than the 0.4 of the file there, less than the 0.9 aside


def test_going_back_on_a_full_disk_changes_nothing(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path)
    for iteration in (3, 4):
        kept.save_last({"iteration": iteration})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("detector.training.resume.write_atomically", full)
    with pytest.raises(RunFailure, match=r"previous\.pt cannot be made last\.pt: \[Errno 28\]"):
        promote_checkpoint(tmp_path / "previous.pt", 3)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adafactor])
def test_the_state_of_any_optimizer_is_taken_up(kind):
    def step():
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 4, 5)
        optimizer = kind(model.parameters(), lr=0.1)
        model(torch.ones(1, 3, 8, 8)).sum().backward()
        return model, optimizer

    model, optimizer = step()
    optimizer.step()
    content = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()["state"]})
    other, its_optimizer = step()
    load_state(content, other, its_optimizer)
    for one in (optimizer, its_optimizer):
        one.step()
    assert torch.equal(other.weight, model.weight)


def test_resume_names_the_checkpoint_that_auto_then_goes_on_with(spoilt, settings, tiny):
    """The run's last checkpoint is of iteration 6, `previous.pt` of 4."""
    previous = spoilt / "checkpoints/previous.pt"
    train.main(settings("train", *tiny, f"resume={previous}", "train.iterations=5"))
    kept = {path.name: load_checkpoint(path)["iteration"] for path in previous.parent.iterdir()}
    assert (kept["last.pt"], kept["previous.pt"], kept["last-of-6.pt"]) == (5, 4, 6)


def test_which_run_is_meant(spoilt, tmp_path, whole, monkeypatch):
    def find(*arguments):
        with FolderLock() as lock:
            return find_run(*arguments, lock)

    last = spoilt / "checkpoints/last.pt"
    assert find("auto", str(spoilt)) == (spoilt, last)
    assert find(str(last), None) == (spoilt, last)
    assert find(str(last), str(spoilt)) == (spoilt, last)
    assert find("auto", str(tmp_path / "new")) == (None, None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("")
    for arguments, says in (
        (("auto", None), r"needs run\.dir"),
        (("auto", str(tmp_path / "mine")), "not the folder of a run"),
        ((str(last), str(whole)), "is not in"),
        ((str(spoilt), None), "is a folder: in a sweep, resume=auto run.dir="),
        ((str(spoilt / "config.yaml"), None), "cannot be read: damaged: File is not a zip file"),
        (("nowhere.pt", None), r"resume=nowhere\.pt: no such file; it is auto, null, the folder of a run, or"),
    ):
        with pytest.raises(InputError, match=says):
            find(*arguments)
    shutil.rmtree(spoilt / "checkpoints")
    assert find("auto", str(spoilt)) == (spoilt, None)  # killed before the first checkpoint


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


def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(spoilt, settings, tiny):
    for path in (spoilt / "checkpoints").iterdir():
        path.unlink()
    (spoilt / "checkpoints/last.pt").symlink_to("/nowhere/last.pt")
    before = {path: path.read_bytes() for path in spoilt.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(InputError, match=r"has results up to iteration 6, but no checkpoint"):
        train.main(settings("train", *tiny, f"run.dir={spoilt}", "resume=auto", "train.iterations=7"))
    (spoilt / "metrics.json").unlink()
    for more in ([], ["train.checkpoint_every=9"]):  # 6 steps are more than checkpoint_every=2, and were evaluated
        with pytest.raises(InputError, match="but no checkpoint"):
            train.main(settings("train", *tiny, f"run.dir={spoilt}", "resume=auto", "train.iterations=7", *more))
    del before[spoilt / "metrics.json"]
    assert {path: path.read_bytes() for path in before} == before
