"""A tiny run that the tests stop, corrupt and resume."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.data.formats.voc import read_voc
from detector.proposals.store import write_store
from tests.helpers.processes import start_program

TINY = [
    "data=voc", "data.train_split=train", "data.short_side_px=64", "data.max_side_px=96", "model.hidden=16",
    "model.dropout=0.5", "model.pool_size=3", "train.iterations=6", "train.images_per_batch=2", "train.eval_every=4",
    "train.checkpoint_every=2", "train.log_every=1", "train.ema=0.9", "roi.rois_per_image=16",
    "detect.score_threshold=0.01", "workers=0", "device=cpu", "precision=float32",
]  # fmt: skip


class Boxes(dict):
    """The same proposals for every image; the last image has none."""

    def __missing__(self, image_id):
        if image_id.endswith("5"):
            return torch.zeros(0, 4).numpy()
        x, y = torch.meshgrid(torch.arange(0, 40, 5.0), torch.arange(0, 20, 5.0), indexing="ij")
        corners = torch.stack([x, y], dim=-1).reshape(-1, 2)
        return torch.cat([corners, corners + 20], dim=1).numpy()


@pytest.fixture(autouse=True)
def one_thread():
    """Runs in this process compute with one thread, as those in processes of their own do: sums are equal then."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(small_shapes, tmp_path_factory) -> list[str]:
    """The settings of the run, whose proposals are random boxes."""
    folder, settings = tmp_path_factory.mktemp("proposals"), [*TINY, f"data.root={small_shapes}"]
    for split, part in (("train", "train"), ("test", "val")):
        dataset, generator = read_voc(small_shapes, split), np.random.default_rng(0)
        corners = [generator.uniform(0, 150, (40, 2)) for _ in dataset.image_ids]
        boxes = [np.concatenate([xy, xy + generator.uniform(20, 120, (40, 2))], axis=1) for xy in corners]
        hws = [dataset.image(index).shape[:2] for index in range(len(dataset))]
        write_store(folder / f"{split}.safetensors", dataset.image_ids, boxes, hws, {})
        settings.append(f"data.{part}_proposals={folder}/{split}.safetensors")
    return [*settings, f"proposals.folder={folder}"]


@pytest.fixture(scope="session")
def whole(tiny, tmp_path_factory) -> Path:
    """The folder of the run, finished and never stopped. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    process = start_program(folder.with_suffix(".log"), *tiny, f"run.dir={folder}")
    process.join()
    assert process.exitcode == 0, folder.with_suffix(".log").read_text()
    return folder


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


def wait_for(condition: Callable[[], object], limit_s: float = 120) -> None:
    """Wait until the condition holds; fail after the limit."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
