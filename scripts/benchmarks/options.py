"""Options: AP and seconds per image of the base run and of each option alone, over seeds.

    python scripts/benchmark.py options --data raccoon=/data/raccoon --data bccd=/data/bccd --iterations 600 \\
        --folder runs/options

Every trained row is a run of train.py as in the benchmark `recipes`; every row has an evaluation of the run's last.pt
by evaluate.py, in the run's folder. Rows of inference options evaluate the base run. Existing runs and evaluations are
reused, so the table can be computed in several sessions. It has the mean, minimum and range over the seeds of the
11-point mAP at IoU 0.5, and the seconds per image that evaluate.py logs: reading, network and NMS, without start-up and
proposals, but with the start of the workers.

The short side is 320 px, so multi-scale training uses 256, 320 and 384, and the pyramid 240 to 480.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from scripts.benchmarks import recipes
from scripts.benchmarks.selective_search import machine

TRAINED = {
    "base": [],
    "res5 head": ["model.head=res5"],
    "resnet18_fpn": ["model.backbone=resnet18_fpn"],
    "roi_align": ["model.pooling=roi_align"],
    "multi-scale training": ["data.short_side_px=[256,320,384]"],
    "per-class normalisation": ["model.delta_normalization=per_class"],
    "strong augmentation": ["augment=strong"],
    "GIoU": ["loss.box=giou"],
    "OHEM": ["roi.ohem=true"],
}
EVALUATED = {  # with the networks of the base run
    "5-scale test": ["detect.pyramid_px=[240,280,320,400,480]"],
    "soft-NMS": ["detect.nms=soft"],
    "test-time flip": ["detect.flip=true"],
}
ROWS = [*TRAINED, *EVALUATED]
EVALUATE_PY = Path(__file__).resolve().parents[2] / "evaluate.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    recipes.add_study_arguments(parser, Path("runs/options"))
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS, metavar="ROW", help=", ".join(ROWS))


def run(arguments: argparse.Namespace) -> None:
    recipes.require_data(arguments.data)
    print(machine(), "\n")
    print("| data | row | iterations | seeds | mean | min | range | s per image |\n|---|---|---|---|---|---|---|---|")
    for data in arguments.data:
        name, _, root = data.partition("=")
        overrides = [] if name == "shapes" else recipes.data_overrides(name, Path(root), arguments)
        for row in arguments.rows:
            changes = [*overrides, *TRAINED.get(row, [])]
            for iterations in arguments.iterations:
                scores, seconds = [], []
                for seed in arguments.seeds:
                    prefix = arguments.folder / f"{name}-{'base' if row in EVALUATED else row.replace(' ', '-')}"
                    folder = recipes.trained(prefix, changes, iterations, seed)
                    score, each = evaluated(folder, row, EVALUATED.get(row, []))
                    scores.append(score)
                    seconds.append(each)
                print(
                    f"| {name} | {row} | {iterations} | {len(scores)} | {statistics.mean(scores):.3f} | "
                    f"{min(scores):.3f} | {max(scores) - min(scores):.3f} | {statistics.mean(seconds):.3f} |",
                    flush=True,
                )


def evaluated(run_folder: Path, row: str, overrides: list[str]) -> tuple[float, float]:
    """The main metric of the run's last.pt with these settings, and seconds per image."""
    out = run_folder / f"options-{row.replace(' ', '-')}"
    if not (out / "seconds.json").exists():
        command = [
            sys.executable, str(EVALUATE_PY), f"checkpoint={run_folder}/checkpoints/last.pt", *overrides,
            "metric.coco=false", f"out={out}",
        ]  # fmt: skip
        shutil.rmtree(out, ignore_errors=True)  # of an evaluation that was stopped
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        found = re.search(r"images in .*: ([\d.]+) s per image", result.stdout + result.stderr)
        if result.returncode or not found:
            sys.exit(result.stderr or f"error: {EVALUATE_PY.name} logged no time")
        (out / "seconds.json").write_text(found[1], encoding="utf-8")
    metrics, seconds = ((out / name).read_text(encoding="utf-8") for name in ("metrics.json", "seconds.json"))
    return json.loads(metrics)["main"]["value"], float(seconds)
