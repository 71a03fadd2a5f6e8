"""Kill real training runs (-9), take each up again, and compare them with one that was left alone.

    python tests/tools/kill_runs.py --kills 30

Every third kill hits the middle of writing a checkpoint, the others any moment. Weights, momentum, best checkpoint,
metrics and their history must be equal in every bit; the program ends with 1 if they are not. Each attempt is a process
of its own, forked from this one, which has imported the program: that takes longer than such a run.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import detector.evaluator  # noqa: F401  train.py imports late what is imported here once, before the forks
import train
from detector.app.start import run_program
from detector.data.formats.shapes import annotation_xml, draw_scene
from detector.data.formats.voc import read_voc
from detector.proposals.store import write_store
from detector.runtime.files import UNFINISHED
from detector.settings import TrainSettings

SETTINGS = [
    "data=voc", "data.train_split=train", "data.short_side_px=64", "data.max_side_px=96", "model.hidden=16",
    "model.dropout=0.5", "model.pool_size=3", "train.iterations=12", "train.images_per_batch=2", "train.eval_every=4",
    "train.checkpoint_every=1", "train.log_every=1", "train.ema=0.9", "roi.rois_per_image=16",
    "detect.score_threshold=0.01", "device=cpu", "precision=float32",
]  # fmt: skip


def make_data(root: Path) -> list[str]:
    """A few scenes with random boxes as proposals, and the settings that name them."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    settings = [f"data.root={root}", f"proposals.folder={root.parent}/proposals"]
    for split, seeds in (("train", range(6)), ("test", range(100, 103))):
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{split}_{seed}\n" for seed in seeds))
        for seed in seeds:
            image, objects = draw_scene(np.random.default_rng(seed))
            Image.fromarray(image).save(root / f"JPEGImages/{split}_{seed}.jpg")
            (root / f"Annotations/{split}_{seed}.xml").write_text(
                annotation_xml(f"{split}_{seed}", image.shape, objects)
            )
        dataset, generator = read_voc(root, split), np.random.default_rng(0)
        corners = [generator.uniform(0, 150, (40, 2)) for _ in seeds]
        boxes = [np.concatenate([xy, xy + generator.uniform(20, 120, (40, 2))], axis=1) for xy in corners]
        hws = [dataset.image(index).shape[:2] for index in range(len(dataset))]
        part = "train" if split == "train" else "val"
        write_store(root.parent / f"{split}.safetensors", dataset.image_ids, boxes, hws, {})
        settings.append(f"data.{part}_proposals={root.parent}/{split}.safetensors")
    return settings


def begin(settings: list[str], folder: Path) -> multiprocessing.Process:
    """A run in `folder`, in a process of its own."""

    def run() -> None:
        with open(folder.with_suffix(".log"), "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.argv = ["train.py", *settings, f"run.dir={folder}", "resume=auto"]
        torch.set_num_threads(1)
        run_program(train.main, "train", TrainSettings)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def differences(folder: Path, expected: Path) -> list[str]:
    """What two runs left that is not the same."""
    found = []
    for name in ("last.pt", "best.pt"):
        ours, theirs = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (folder, expected))
        for content in (ours, theirs):
            for of_the_call in ("run", "resume", "workers"):
                del content["config"][of_the_call]
        if not same(ours, theirs):
            found.append(name)
    if (folder / "metrics.json").read_bytes() != (expected / "metrics.json").read_bytes():
        found.append("metrics.json")
    if history(folder) != history(expected):
        found.append("metrics.jsonl")
    return found


def same(one: object, other: object) -> bool:
    """Whether two checkpoints are equal in every bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        one, other = one.contiguous().view(-1), other.contiguous().view(-1)  # bytes, since 0.0 equals -0.0
        return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def history(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl without what a clock measured."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{tag: line[tag] for tag in line if not tag.startswith(("time/", "memory/"))} for line in lines]


def unfinished(folder: Path) -> set[tuple[str, int]]:
    """The checkpoints that are being written, or were when a run was killed, by name and inode."""
    return {(entry.name, entry.inode()) for entry in scan(folder / "checkpoints") if fnmatch(entry.name, UNFINISHED)}


def scan(folder: Path) -> list[os.DirEntry]:
    return list(os.scandir(folder)) if folder.is_dir() else []


def kill(process: multiprocessing.Process, folder: Path, longest_s: float, in_write: bool, rng: random.Random) -> bool:
    """Kill the run in the middle of a write, or after a while; False if it was done before."""
    patience = time.monotonic() + rng.uniform(0, longest_s)
    left = unfinished(folder)  # by the kill before
    while process.is_alive():
        if in_write:
            if unfinished(folder) - left and time.monotonic() > patience:
                break
        elif time.monotonic() > patience:
            break
        time.sleep(0.0005)
    done = not process.is_alive()
    process.kill()
    process.join()
    return not done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--workers", type=int, default=0, help="data workers of the runs that are killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    rng, place = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="kill_runs_"))
    settings = SETTINGS + make_data(place / "scenes")
    begun = time.monotonic()
    alone = begin([*settings, "workers=0"], place / "alone")
    alone.join()
    if alone.exitcode:
        sys.exit(f"the run that was left alone ended with {alone.exitcode}: {place}/alone.log")
    took_s = time.monotonic() - begun
    print(f"the run that was left alone took {took_s:.1f} s", flush=True)
    kills = in_writes = runs = unequal = 0
    while kills < options.kills:
        folder = place / f"run{runs}"
        runs += 1
        complete = False
        while not complete:
            left = unfinished(folder)
            process = begin([*settings, f"workers={options.workers}"], folder)
            if kills >= options.kills:
                process.join()
                complete = True
            elif kill(process, folder, took_s / 2, kills % 3 == 2, rng):
                kills += 1
                in_write = bool(unfinished(folder) - left)
                in_writes += in_write
                lines = (
                    (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").is_file() else []
                )
                print(f"kill {kills}: run {runs}, {len(lines)} lines of metrics{', in a write' * in_write}", flush=True)
            else:
                complete = True
        different = (
            differences(folder, place / "alone") if process.exitcode == 0 else [f"ended with {process.exitcode}"]
        )
        unequal += bool(different)
        print(
            f"run {runs} is complete: " + (f"DIFFERENT: {', '.join(different)}" if different else "equal"), flush=True
        )
    print(f"{kills} kills, {in_writes} of them in the middle of writing a checkpoint; {runs} runs, {unequal} unequal")
    if unequal:
        print(f"the runs lie in {place}")
    else:
        shutil.rmtree(place)
    return int(unequal > 0)


if __name__ == "__main__":
    sys.exit(main())
