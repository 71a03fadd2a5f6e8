"""Options: AP and seconds per image of the default recipe and of each option alone, over seeds.

    python scripts/benchmark.py options --data raccoon=/data/raccoon --iterations 600 --folder runs/options

Every trained row is a run of train.py as in the benchmark `recipes`, which shares runs in the same --folder. Every row
has an evaluation of the run's last.pt by evaluate.py, in the run's folder; rows of inference options evaluate the
default's run. Existing runs and evaluations are reused, and an interrupted run is resumed: the table can be computed
in several sessions, and by one process per dataset. It has the mean, minimum and range over the seeds of the 11-point
mAP at IoU 0.5, and the seconds per image that evaluate.py logs: reading, network and NMS in one process, without
start-up and proposals. To measure these again, remove the folders options-* in the runs.

--rows takes names of ROWS, or NAME=OVERRIDES in quotes: "both=augment=strong detect.flip=true".
The short side is 320 px, so multi-scale training uses 256, 320 and 384, and the pyramid 240 to 480.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.benchmarks import recipes

TRAINED = {
    "res5 head": ["model.head=res5"],
    "resnet18_fpn": ["model.backbone=resnet18_fpn"],
    "roi_align": ["model.pooling=roi_align"],
    "multi-scale training": ["data.short_side_px=[256,320,384]"],
    "per-class normalisation": ["model.delta_normalization=per_class"],
    "strong augmentation": ["augment=strong"],
    "GIoU": ["loss.box=giou"],
    "OHEM": ["roi.ohem=true"],
}
EVALUATED = {  # with the networks of the default
    "5-scale test": ["detect.pyramid_px=[240,280,320,400,480]"],
    "soft-NMS": ["detect.nms=soft"],
    "test-time flip": ["detect.flip=true"],
}
ROWS = {"default": [], **{row: [] for row in EVALUATED}, **TRAINED}  # to what is trained
EVALUATE_PY = Path(__file__).resolve().parents[2] / "evaluate.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    recipes.add_study_arguments(parser, Path("runs/options"))
    parser.add_argument("--rows", nargs="+", default=[*ROWS], metavar="ROW", help=", ".join(ROWS))


def run(arguments: argparse.Namespace) -> None:
    rows = dict(recipes.chosen("rows", row, ROWS) for row in arguments.rows)
    recipes.study(arguments, rows, evaluated, "image")


def evaluated(run_folder: Path, row: str) -> tuple[float, float]:
    """The main metric of the run's last.pt with the settings of the row, and seconds per image."""
    out = run_folder / f"options-{row.replace(' ', '-')}"
    if not (out / "seconds.json").exists():
        command = [
            sys.executable, str(EVALUATE_PY), f"checkpoint={run_folder}/checkpoints/last.pt", *EVALUATED.get(row, []),
            "metric.coco=false", "workers=0", f"out={out}",
        ]  # fmt: skip
        shutil.rmtree(out, ignore_errors=True)  # of an evaluation that was stopped
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        found = re.search(r"images in .*: ([\d.]+) s per image", result.stdout + result.stderr)
        if result.returncode or not found:
            sys.exit(result.stderr or f"error: {EVALUATE_PY.name} logged no time")
        (out / "seconds.json").write_text(found[1], encoding="utf-8")
    return recipes.main_metric(out), float((out / "seconds.json").read_text(encoding="utf-8"))
