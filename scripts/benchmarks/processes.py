"""Training with one process and with several: images per second, time spent waiting for data, and memory.

    python scripts/benchmark.py processes --processes 1 2 --settings data.short_side_px=320 train.images_per_batch=4

Each row is a run of train.py of 40 steps, started by torchrun, in which the processes share the cores or have a GPU
each. The first ten steps do not count; the others are averaged as they are logged. The batch is the same in every row.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts._measure import at_least_one, machine, show
from scripts.benchmarks.recipes import TRAIN_PY

COLUMNS = {"s per step": "time/step_s", "s waiting for data": "time/data_s", "peak MiB": "memory/peak_mib"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", nargs="+", type=at_least_one, default=[1, 2])
    parser.add_argument("--settings", nargs="*", default=[], metavar="SETTING", help="of train.py")


def run(arguments: argparse.Namespace) -> None:
    print(machine(), "\n")
    rows: list[dict[str, object]] = []
    for processes in arguments.processes:
        lines = [line for line in log_of(processes, arguments.settings) if "time/step_s" in line][1:]
        means = {name: statistics.mean(line[key] for line in lines) for name, key in COLUMNS.items()}
        rate = statistics.mean(line["time/images_per_s"] for line in lines)
        rows.append({"processes": processes, "images/s": rate} | means)
    first = rows[0]["images/s"]
    show([row | {"times as fast": row["images/s"] / first} for row in rows])


def log_of(processes: int, settings: list[str]) -> list[dict]:
    """The lines of metrics.jsonl of a run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
            str(TRAIN_PY), "train.iterations=40", "train.eval_every=40", "train.log_every=10", *settings,
            f"run.dir={folder}/run",
        ]  # fmt: skip
        threads = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // processes, 1))}
        result = subprocess.run(command, env=os.environ | threads, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        if result.returncode:
            sys.exit(1)  # train.py has said why
        text = Path(folder, "run/metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
