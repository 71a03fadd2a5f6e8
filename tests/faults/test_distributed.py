"""Cases 52 to 54 and 58 of FAULTS.md: several processes as one run, devices, and one writer for a folder."""

import contextlib
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import train
from detector import evaluator
from detector.app import start
from detector.boxes import BoxCoder
from detector.builders.training import build_training
from detector.data.epoch_order import EpochOrder
from detector.data.formats.voc import read_voc
from detector.data.loader import TrainBatchSampler, TransformedDataset, batch_loader, eval_loader
from detector.data.transforms import Resize
from detector.errors import InputError, RunFailure, Stopped
from detector.evaluation.matching import match
from detector.evaluation.voc_ap import score_voc
from detector.inference.predict import DetectorConfig, evaluate
from detector.models.backbones import Backbone
from detector.models.fast_rcnn import FastRCNN
from detector.models.heads import FcHead
from detector.roi_pool import RoIPool
from detector.runtime import distributed
from detector.runtime.device import resolve_compute, resolve_device
from detector.runtime.distributed import (
    all_reduce_max,
    broadcast_from_main,
    first_host,
    gather,
    gather_interleaved,
    shared_errors,
    wrap_ddp,
)
from detector.runtime.logs import log_to_file
from detector.runtime.ranks import RankInfo, rank_info
from detector.runtime.signals import StopRequest
from detector.settings import Detect, EvaluateSettings, RoISampling, TrainSettings
from detector.training.engine import TrainingConfig, training_steps
from detector.training.losses import multi_task_loss
from detector.training.run_folder import FolderLock
from tests.conftest import REPOSITORY, compose_settings
from tests.helpers.batches import Boxes
from tests.helpers.processes import FORKS, children, start_ranks, wait_for

CODER = BoxCoder((0.1, 0.1, 0.2, 0.2))
COMPUTE = resolve_compute("cpu", "float32")

TRAINING = TrainingConfig(RoISampling(rois_per_image=8), CODER, seed=0, max_grad_norm=0.5)

DETECTOR = DetectorConfig(CODER, Detect(score_threshold=0.01, nms_iou=0.3, max_detections=20))


class TinyBody(Backbone):
    """Without batch norm, whose statistics would be of one process's images."""

    out_channels, stride = 4, 16

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 16, stride=16)

    def forward(self, images):
        return self.convolution(images).relu()


def tiny_model() -> FastRCNN:
    torch.manual_seed(3)
    return FastRCNN(TinyBody(), RoIPool(2, spatial_scale=1 / 16), FcHead(4, 2, hidden=8, dropout=0.0), num_classes=2)


def six_images(root: Path) -> TransformedDataset:
    return TransformedDataset(read_voc(root, "train", ["cat", "dog"]), Boxes(), Resize([40], 60))


@pytest.fixture
def root(make_voc) -> Path:
    """Six images: two with a cat, one with a dog, three with nothing to find, of which one has no proposals either."""
    objects = [[("cat", 6, 6, 26, 26)], [], [("dog", 11, 6, 31, 24)], [("cat", 1, 1, 22, 22)], [], []]
    return make_voc({"train": {f"i{number}": boxes for number, boxes in enumerate(objects)}})


def train_a_little(root: Path, model: FastRCNN) -> list[float]:
    """Nine steps of two images; some have no foreground, some no RoI at all in one of two processes."""
    here = rank_info()
    order = TrainBatchSampler(EpochOrder(6, 0), 2, 9, 0, here.rank, here.world_size)
    learner, optimizer = wrap_ddp(model, COMPUTE.device), torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    assert here.world_size == 1 or learner.gradient_as_bucket_view
    batches = batch_loader(six_images(root), order, 0, TRAINING.collate_with_rois)
    steps = training_steps(learner, batches, optimizer, lambda _: 1.0, TRAINING, COMPUTE)
    return [float(step.values["loss/train"]) for step in steps]


def score(root: Path, model: FastRCNN) -> dict:
    here, samples = rank_info(), six_images(root)
    detections, losses = evaluate(model, eval_loader(samples, 0, here.rank, here.world_size), DETECTOR, COMPUTE,
                                  TRAINING.sample_targets, multi_task_loss)  # fmt: skip
    truths = [samples.dataset.ground_truth(index) for index in range(6)]
    assert [item.image_id for item in detections] == samples.dataset.image_ids
    return score_voc(match(truths, detections, 2), ("cat", "dog"), [0.5])[0] | {"losses": losses}


def fail_in_the_last(here: RankInfo) -> None:
    if here.rank == here.world_size - 1:
        raise InputError("no such folder")


def as_one(folder: Path, root: Path) -> None:
    """What several processes do together; the first one writes down what came out."""
    here, model = rank_info(), tiny_model()
    outcome = {"score": score(root, model), "loss": train_a_little(root, model)}

    assert gather_interleaved(list(range(here.rank, 7, here.world_size))) == list(range(7))
    assert broadcast_from_main(lambda: f"made by {here.rank}") == "made by 0"
    assert all_reduce_max(here.rank) == here.world_size - 1
    with pytest.raises(InputError if here.rank == 0 else SystemExit, match="no such folder|2"), shared_errors():
        fail_in_the_last(here)

    with StopRequest() as stop:  # one is asked, all stop
        if here.rank == here.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_for(lambda: stop.signal)
        assert stop.agreed() == signal.SIGTERM
        with pytest.raises(Stopped):
            list(stop.cut_short(range(3)))

    spoilt = tiny_model()
    images = batch_loader(
        six_images(root),
        TrainBatchSampler(EpochOrder(6, 0), 6, 1, 0, here.rank, here.world_size),
        0,
        TRAINING.collate_with_rois,
    )
    if here.rank == here.world_size - 1:  # not finite in one, stopped in all
        images = list(images)
        spoilt.bbox_pred.register_forward_hook(lambda *arguments: arguments[-1] * torch.nan)
        spoilt.cls_score.register_forward_hook(lambda *arguments: arguments[-1] * torch.nan)
    before = {key: value.clone() for key, value in spoilt.state_dict().items()}
    optimizer = torch.optim.SGD(spoilt.parameters(), 0.5)
    failure = None
    try:
        list(training_steps(wrap_ddp(spoilt, COMPUTE.device), images, optimizer, lambda _: 1.0, TRAINING, COMPUTE))
    except RunFailure as error:
        failure = str(error)
    except SystemExit as end:  # only the first one speaks
        failure = f"status {end.code}"
    assert all(torch.equal(value, before[key]) for key, value in spoilt.state_dict().items())
    (folder / f"failure{here.rank}").write_text(failure)

    if here.rank == 0:
        torch.save(model.state_dict(), folder / "weights.pt")
        (folder / "outcome.json").write_text(json.dumps(outcome))


@pytest.mark.parametrize("processes", [2, 3])
def test_case_53_several_processes_train_and_score_as_one(root, tmp_path, processes):
    """Also cases 17 and 19 with several processes. Three cannot share batches of two: they only score."""
    ranks = start_ranks(as_one if processes == 2 else score_alone, processes, tmp_path, root)
    alone = tiny_model()
    scored, losses = score(root, alone), train_a_little(root, alone)
    for rank, process in enumerate(ranks):
        process.join(200)
        assert process.exitcode == 0, (tmp_path / f"rank{rank}.log").read_text()
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["score"] == scored
    assert scored["area@0.50"]["mAP"] > 0
    if processes == 2:
        assert outcome["loss"] == pytest.approx(losses, rel=1e-5)
        together = torch.load(tmp_path / "weights.pt")
        assert all(torch.allclose(together[key], value, atol=1e-6) for key, value in alone.state_dict().items())
        failure = (tmp_path / "failure0").read_text()
        order = TrainBatchSampler(EpochOrder(6, 0), 6, 1, 0, 1, 2)
        guilty = next(iter(batch_loader(six_images(root), order, 0))).image_ids
        assert [f"  {name} (" in failure for name in [f"i{number}" for number in range(6)]] == [
            f"i{number}" in guilty for number in range(6)
        ]
        assert (tmp_path / "failure1").read_text() == "status 1"


def fail_in_the_data(folder: Path) -> None:
    """Every process meets the same error; the first one raises it, the others end with its status."""
    main = rank_info().rank == 0
    with pytest.raises(InputError if main else SystemExit, match="no folder /nowhere" if main else "2"):
        build_training(compose_settings("train", "data=voc", "data.root=/nowhere"), None)
    (folder / f"ended{rank_info().rank}").touch()


def test_wrong_data_ends_all_processes_with_one_message(tmp_path):
    for rank, process in enumerate(start_ranks(fail_in_the_data, 2, tmp_path)):
        process.join(100)
        assert (process.exitcode, (tmp_path / f"ended{rank}").exists()) == (0, True), (
            tmp_path / f"rank{rank}.log"
        ).read_text()


def score_alone(folder: Path, root: Path) -> None:
    outcome = {"score": score(root, tiny_model())}
    if rank_info().rank == 0:
        (folder / "outcome.json").write_text(json.dumps(outcome))


def test_the_images_of_a_step_do_not_depend_on_the_processes():
    whole = list(TrainBatchSampler(EpochOrder(7, 1), 6, 5))
    for processes in (2, 3):
        parts = [list(TrainBatchSampler(EpochOrder(7, 1), 6, 5, 0, rank, processes)) for rank in range(processes)]
        assert [list(itertools.chain(*step)) for step in zip(*parts, strict=True)] == whole


def wait_for_the_other(folder: Path) -> None:
    (folder / f"ready{rank_info().rank}").write_text("")
    for _ in range(10_000):
        all_reduce_max(0)
        time.sleep(0.01)


def test_case_52_when_a_process_dies_the_others_say_so_and_end(tmp_path):
    ranks = start_ranks(wait_for_the_other, 2, tmp_path)
    wait_for(lambda: all((tmp_path / f"ready{rank}").exists() for rank in range(2)))
    begun = time.monotonic()
    ranks[1].kill()
    ranks[0].join(60)
    assert ranks[0].exitcode == 1
    assert time.monotonic() - begun < 30
    assert "process 0 of 2 stops: another process of this run ended" in (tmp_path / "rank0.log").read_text()


def stop_in_the_middle(folder: Path) -> None:
    if rank_info().rank == 1:
        time.sleep(6)  # longer than the timeout: slow is not hanging
    gather(None)
    if rank_info().rank == 1:
        (folder / "stopped").touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    gather(None)


@pytest.mark.slow
def test_case_52_when_a_process_hangs_the_others_say_so_and_end(tmp_path):
    ranks = start_ranks(stop_in_the_middle, 3, tmp_path, timeout_s=4)
    try:
        wait_for(lambda: (tmp_path / "stopped").exists())
        for rank in (0, 2):
            ranks[rank].join(40)
            assert ranks[rank].exitcode == 1
            says = f"error: process {rank} of 3 stops: process 1 hangs, or its machine is gone: no sign of it for 4 s"
            assert says in (tmp_path / f"rank{rank}.log").read_text()
    finally:
        for process in ranks:
            process.kill()
            process.join()


def wait_long(folder: Path) -> None:
    (folder / f"ready{rank_info().rank}").touch()
    while not (folder / "go").exists():
        time.sleep(0.1)


@pytest.mark.slow
def test_a_run_that_was_paused_as_a_whole_goes_on(tmp_path):
    """As by Ctrl-Z and fg, or a batch system: for longer than the timeout, and not all woken at once."""
    ranks = start_ranks(wait_long, 2, tmp_path, timeout_s=4)
    wait_for(lambda: all((tmp_path / f"ready{rank}").exists() for rank in range(2)))
    time.sleep(1)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in ranks:
            os.kill(process.pid, number)
            time.sleep(0.3)
        time.sleep(6)
    (tmp_path / "go").touch()
    for rank, process in enumerate(ranks):
        process.join(60)
        assert process.exitcode == 0, (tmp_path / f"rank{rank}.log").read_text()


@pytest.mark.slow
def test_case_52_torchrun_takes_the_run_up_again(tiny, tmp_path):
    """One folder, one writer; a process is killed, torchrun starts both anew, resume=auto finishes the run."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    overrides = [*tiny, f"run.dir={run}", "resume=auto", "train.checkpoint_every=1"]
    with open(log, "w") as file:
        program = subprocess.Popen(
            [*command, "train.py", *overrides],
            cwd=REPOSITORY,
            stdout=file,
            stderr=file,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        seconds: list[int] = []

        def begun() -> bool:
            seconds[:] = [pid for pid in children(program.pid) if b"RANK=1" in environment(pid).split(b"\0")]
            return bool(seconds) or program.poll() is not None

        try:
            wait_for(begun, 900)
            wait_for(lambda: (run / "checkpoints/last.pt").exists() or program.poll() is not None, 900)
            [victim] = seconds
            os.kill(victim, signal.SIGKILL)
            assert program.wait(900) == 0, log.read_text()
        finally:
            program.terminate()
            program.wait(60)
    assert "resuming after iteration" in log.read_text()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "loss/train" in line] == [1, 2, 3, 4, 5, 6]
    assert json.loads((run / "metrics.json").read_text())["source"]["images"] == 3
    assert torch.load(run / "checkpoints/last.pt", weights_only=True)["processes"] == 2


def test_evaluate_gives_with_two_processes_the_numbers_of_one(whole, settings, tmp_path):
    overrides = [f"checkpoint={whole}/checkpoints/last.pt", "workers=0", f"out={tmp_path}/out"]
    ranks = start_ranks(score_checkpoint, 2, tmp_path, settings("evaluate", *overrides))
    for number, process in enumerate(ranks):
        process.join(120)
        assert process.exitcode == 0, (tmp_path / f"rank{number}.log").read_text()
    in_training, apart = (json.loads((folder / "metrics.json").read_text()) for folder in (whole, tmp_path / "out"))
    assert apart["voc"] == in_training["voc"]
    assert apart["loss"] == pytest.approx(in_training["loss"], abs=1e-6)
    assert "mAP" in (tmp_path / "rank0.log").read_text()
    assert "mAP" not in (tmp_path / "rank1.log").read_text()


def score_checkpoint(folder: Path, settings: EvaluateSettings) -> None:
    evaluator.score_checkpoint(settings)


def test_an_invalid_timeout_of_an_evaluation_is_named(settings):
    with pytest.raises(InputError, match="distributed.timeout_s=abc: must be an integer above 0"):
        settings("evaluate", "checkpoint=x.pt", "distributed.timeout_s=abc")


def test_settings_that_are_wrong_in_all_processes_are_said_once(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["train.py", "train.iterations=-1"])
    for rank, says in (("0", "error: train.iterations=-1: must be an integer above 0\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit, match="2"):
            start.run_program(train.main, "train", TrainSettings)
        assert capsys.readouterr().err == says


def environment(pid: int) -> bytes:
    with contextlib.suppress(OSError):  # it has ended
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def hold(folder: Path, held) -> None:
    with FolderLock() as lock:
        lock.take(folder)
        held.set()
        time.sleep(60)


def test_case_54_two_runs_in_one_folder(whole, settings, tiny, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    held = FORKS.Event()
    other = FORKS.Process(target=hold, args=(tmp_path / "run", held))
    other.start()
    assert held.wait(60)
    config = settings("train", *tiny, f"run.dir={tmp_path}/run", "resume=auto", "train.iterations=9")
    with pytest.raises(InputError, match=rf"another run is writing into .*/run: process {other.pid} on "):
        train.main(config)
    other.kill()
    other.join()
    with FolderLock() as lock:  # the lock ended with the process
        lock.take(tmp_path / "run")


def test_case_58_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"device: 'cuda' is not available: torch sees \d GPUs; use device=cpu"):
        resolve_device("cuda")
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="'cuda:1' is not available: torch sees 1 GPUs"):
        resolve_device("auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda:1")
    with pytest.raises(InputError, match="2 processes cannot share 'cuda:0'"):
        resolve_device("cuda:0")


def test_who_is_who(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")  # as in a batch script without srun
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert rank_info() == RankInfo(0, 1, 0)
    for name, value in (("STEP_NUM_TASKS", "8"), ("PROCID", "5"), ("LOCALID", "1"), ("JOB_ID", "1234567"),
                        ("STEP_NODELIST", "gpu[03-05,9],cpu1")):  # fmt: skip
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert rank_info() == RankInfo(5, 8, 1)
    assert distributed._rendezvous() == {"MASTER_ADDR": "gpu03", "MASTER_PORT": str(20000 + 1234567 % 20000)}
    assert [first_host(text) for text in ("n1", "n1,n2", "a-[7,9]-x")] == ["n1", "n1", "a-7-x"]
    monkeypatch.setenv("RANK", "1")  # torchrun within srun
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert rank_info() == RankInfo(1, 2, 0)


def test_a_batch_that_cannot_be_shared_is_refused(settings, tiny, monkeypatch):
    import train

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(
        InputError, match=r"train\.images_per_batch=2: must be a multiple of the number of processes, 3"
    ):
        train.main(settings("train", *tiny))


@pytest.mark.parametrize(
    ("override", "says"),
    [("resume=3", "resume=3: must be null, auto"), ("distributed.timeout_s=0", "timeout_s=0: must")],
)
def test_invalid_values_are_named(settings, override, says):
    with pytest.raises(InputError, match=says):
        settings("train", override)


def test_the_timeout_is_that_of_the_connection(settings, tiny, monkeypatch):
    import train

    class Connected(Exception):
        pass

    def connect(backend, store, rank, world_size, timeout):
        raise Connected(rank, world_size, timeout.total_seconds())

    monkeypatch.setattr(
        distributed.dist, "rendezvous", lambda *where, timeout: iter([(torch.distributed.HashStore(), 0, 0)])
    )
    monkeypatch.setattr(distributed.dist, "init_process_group", connect)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(Connected) as connected:
        train.main(settings("train", *tiny, "distributed.timeout_s=7"))
    assert connected.value.args == (1, 2, 7)


def test_only_the_first_process_logs_to_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    handlers = list(logging.getLogger().handlers)
    log_to_file(tmp_path / "train.log")
    assert logging.getLogger().handlers == handlers
