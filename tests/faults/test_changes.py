"""What changes while a program runs: images, checkpoints, and the clock."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.data import dataset
from detector.errors import InputError
from detector.proposals.store import ProposalStore, write_store
from detector.training import checkpoint
from tests.helpers.runs import SETTINGS
from tests.helpers.wrong_input import run

SAME = ("loss/train", "loss/train_cls", "loss/train_box", "roi/foreground_fraction")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def train(folder: Path, *overrides: str) -> tuple[int, Path]:
    """The exit status of a tiny run in folder/run, with proposals in folder/p."""
    command = ["train", *SETTINGS, "proposals.mode=single", "train.eval_every=6", f"run.dir={folder}/run",
               f"proposals.folder={folder}/p", *overrides]  # fmt: skip
    return run(" ".join(command)), folder / "run"


def history(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in SAME} for line in lines if "loss/train" in line]


@pytest.mark.parametrize(
    ("change", "says"),
    [(Path.unlink, "there is no such file"), (cut, "damaged image"), (pipe, "not a regular file")],
    ids=["deleted", "truncated", "a-pipe"],
)
def test_an_image_that_changes_during_a_run_is_named(small_shapes, tmp_path, monkeypatch, capfd, change, says):
    images = Path(shutil.copytree(small_shapes, tmp_path / "T")) / "JPEGImages"
    read, count = dataset.read_image, 0

    def read_and_change(*arguments: object) -> object:
        nonlocal count
        count += 1
        image = read(*arguments)
        if count == 9 + 6:  # once for the proposals, and in three steps of two images
            for path in images.glob("train_*"):
                change(path)
        return image

    monkeypatch.setattr(dataset, "read_image", read_and_change)
    status, folder = train(tmp_path, f"data.root={tmp_path}/T")
    out, err = capfd.readouterr()
    assert (status, err.count("\n")) == (2, 1), out + err
    assert f"{images}/train_" in err
    assert says in err
    assert checkpoint.load_checkpoint(folder / "checkpoints/last.pt")["iteration"] == 2


def overwrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))


@pytest.mark.parametrize("change", [cut, overwrite])
def test_a_store_that_is_overwritten_while_in_use_is_named(tmp_path, change):
    path = tmp_path / "p.safetensors"
    write_store(path, ["a"], [np.ones((1000, 4), np.float32)], [(9, 9)], {})
    os.utime(path, (0, 0))  # not the time of the change below, which some clocks do not tell apart
    store = ProposalStore(path)
    path.rename(tmp_path / "q.safetensors")
    path.write_bytes(b"another")  # under the same name
    assert store["a"].sum() == 4000
    change(tmp_path / "q.safetensors")
    with pytest.raises(InputError, match=r"p\.safetensors: was overwritten while in use: restore it, and start again"):
        store["a"]


@pytest.mark.slow
def test_annotations_deleted_during_a_run_change_nothing(small_shapes, tmp_path, monkeypatch):
    root, read = Path(shutil.copytree(small_shapes, tmp_path / "T")), dataset.read_image

    def read_and_delete(*arguments: object) -> object:
        if (tmp_path / "run/metrics.jsonl").is_file():
            for folder in (root / "Annotations", root / "ImageSets", tmp_path / "p"):
                shutil.rmtree(folder, ignore_errors=True)
        return read(*arguments)

    monkeypatch.setattr(dataset, "read_image", read_and_delete)
    status, folder = train(tmp_path, f"data.root={root}")
    assert (status, (root / "Annotations").exists(), len(history(folder))) == (0, False, 6)


@pytest.mark.slow
def test_a_clock_that_jumps_changes_no_result(small_shapes, tmp_path, monkeypatch):
    root = f"data.root={small_shapes}"
    (tmp_path / "a").mkdir()
    status, whole = train(tmp_path / "a", root)
    assert status == 0
    now, jumps = time.time, iter([*([0, 3e8, -1e9, 1e7] * 10_000)])
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))  # by years, in both directions
    status, folder = train(tmp_path, root)
    assert status == 0
    assert history(folder) == history(whole)
    assert len(history(folder)) == 6


def test_a_checkpoint_overwritten_while_it_is_read_is_damaged(untrained_checkpoint, tmp_path, monkeypatch):
    path = Path(shutil.copy(untrained_checkpoint, tmp_path / "c.pt"))
    load = torch.load

    def load_and_overwrite(*arguments: object, **options: object) -> object:
        content = load(*arguments, **options)
        path.write_bytes(path.read_bytes()[:-1000])
        return content

    monkeypatch.setattr(torch, "load", load_and_overwrite)
    with pytest.raises(InputError, match=r"c\.pt: damaged"):
        checkpoint.load_checkpoint(path)
