"""Kill real training runs (-9), resume each, and compare them with one that was not killed.

    python tests/tools/kill_runs.py --kills 30

Every third kill hits the middle of writing a checkpoint, the others any moment. Weights, momentum, best checkpoint,
metrics and their history must be bitwise identical; the program ends with 1 if they are not. Each attempt is a process
of its own, forked from this one, which has imported the program: that takes longer than such a run.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path

import torch

import detector.evaluator  # noqa: F401  train.py imports late what is imported here once, before the forks
import train
from detector.app.start import run_program
from detector.runtime.files import UNFINISHED
from detector.settings import TrainSettings
from tests.helpers.runs import differences, random_proposals, run_settings, write_shapes


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
    write_shapes(place / "scenes")
    random_proposals(place / "scenes", place)
    settings = [*run_settings(place / "scenes", place), "train.iterations=12", "train.checkpoint_every=1"]
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
