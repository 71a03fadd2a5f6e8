"""Recipes: AP of training from scratch, over datasets, recipes and seeds.

    python scripts/benchmark.py recipes --data raccoon=/data/raccoon --data bccd=/data/bccd --data shapes \\
        --recipes default sgd --seeds 0 1 2 --iterations 300 600 --folder runs/recipes

Every run is one call of train.py on half-size images (short side 320 px; shapes at their own size), and its last.pt is
scored. By default the images of trainval are split three to one into training and validation, so that the test split
influences no choice; --test trains on trainval and scores the test split. One table: mean, minimum and range over the
seeds of the 11-point mAP at IoU 0.5, and seconds per step. Existing runs are reused.

--recipes takes names of RECIPES, or NAME=OVERRIDES in quotes: "low-rate=optimizer.lr=0.0001 train.ema=0.9".
"""

import argparse
import hashlib
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from detector.errors import InputError
from scripts._measure import at_least_one, machine

RECIPES = {
    "default": [],
    "ema": ["train.ema=0.99"],
    "no-clipping": ["optimizer.max_grad_norm=null"],
    "lr-third": ["optimizer.lr=0.0001"],
    "lr-triple": ["optimizer.lr=0.0009"],
    "sgd": ["optimizer=sgd"],
    "sgd-lr-0.005": ["optimizer=sgd", "optimizer.lr=0.005"],
    "photometric": ["augment=photometric"],
    "scale": ["augment=scale"],
    "uniform-foreground": ["roi.balance_objects=false"],
    "background-from-0.1": ["roi.background_iou_low=0.1"],
}
VAL_PART = 4  # one in VAL_PART images of trainval is for validation
TRAIN_PY = Path(__file__).resolve().parents[2] / "train.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study_arguments(parser, Path("runs/recipes"))
    parser.add_argument("--recipes", nargs="+", default=["default"], metavar="RECIPE", help=", ".join(RECIPES))


def add_study_arguments(parser: argparse.ArgumentParser, folder: Path) -> None:
    """The arguments of a study of several runs, kept in `folder` by default."""
    parser.add_argument("--data", action="append", required=True, metavar="NAME=ROOT", help="in VOC layout, or shapes")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", nargs="+", type=at_least_one, default=[600])
    parser.add_argument("--test", action="store_true", help="train on trainval and score the test split")
    parser.add_argument("--folder", type=Path, default=folder, help="of the runs (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    recipes = dict(chosen("recipes", recipe, RECIPES) for recipe in arguments.recipes)
    study(arguments, recipes, lambda folder, _: (main_metric(folder), seconds_per_step(folder)), "step")


def chosen(option: str, given: str, known: dict[str, list[str]]) -> tuple[str, list[str]]:
    """The name and the overrides of NAME=OVERRIDES, or of one of `known`."""
    name, equals, overrides = given.partition("=")
    if not equals and name not in known:
        raise InputError(f"--{option}: {given}: must be NAME=OVERRIDES or one of {', '.join(known)}")
    return name, overrides.split() if equals else known[name]


def study(
    arguments: argparse.Namespace,
    recipes: dict[str, list[str]],
    result: Callable[[Path, str], tuple[float, float]],
    unit: str,
) -> None:
    """Train each recipe, and print a table of `result` of the run's folder and the recipe: a score, and seconds."""
    require_data(arguments.data)
    print(machine(), "\n")
    print(f"| data | recipe | iterations | seeds | mean | min | range | s per {unit} |\n|{'---|' * 8}")
    for data in arguments.data:
        name, _, root = data.partition("=")
        overrides = [] if name == "shapes" else data_overrides(name, Path(root), arguments)
        for recipe, changes in recipes.items():
            prefix = arguments.folder / f"{name}-{recipe.replace(' ', '-') if changes else 'default'}"
            for iterations in arguments.iterations:
                results = [
                    result(trained(prefix, [*overrides, *changes], iterations, seed), recipe)
                    for seed in arguments.seeds
                ]
                scores, seconds = zip(*results, strict=True)
                print(
                    f"| {name} | {recipe} | {iterations} | {len(scores)} | {statistics.mean(scores):.3f} | "
                    f"{min(scores):.3f} | {max(scores) - min(scores):.3f} | {statistics.mean(seconds):.3f} |",
                    flush=True,
                )


def require_data(given: list[str]) -> None:
    """Raise InputError for anything but shapes and datasets in VOC layout."""
    for data in given:
        name, _, root = data.partition("=")
        if name != "shapes" and not Path(root, "ImageSets/Main/trainval.txt").is_file():
            raise InputError(
                f"--data: {data}: must be shapes or NAME=ROOT, and ROOT must have ImageSets/Main/trainval.txt"
            )


def data_overrides(name: str, root: Path, arguments: argparse.Namespace) -> list[str]:
    settings = ["data=voc", "model.weights=null", "data.short_side_px=320", "data.val_max_proposals=2000"]
    if arguments.test:
        return [*settings, f"data.root={root.resolve()}"]
    divided = arguments.folder / f"data-{name}-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]}"
    if not divided.exists():
        divide(root.resolve(), divided)
    return [*settings, f"data.root={divided.resolve()}", "data.train_split=train", "data.val_split=val"]


def divide(root: Path, divided: Path) -> None:
    """Make a dataset with the images of `root`, its trainval divided into the splits `train` and `val`."""
    ids = (root / "ImageSets/Main/trainval.txt").read_text(encoding="utf-8").split()
    (divided / "ImageSets/Main").mkdir(parents=True)
    for folder in ("JPEGImages", "Annotations"):
        (divided / folder).symlink_to(root / folder)
    random.Random(0).shuffle(ids)
    count = len(ids) // VAL_PART
    for split, part in (("val", ids[:count]), ("train", ids[count:])):
        (divided / f"ImageSets/Main/{split}.txt").write_text(
            "".join(f"{image_id}\n" for image_id in sorted(part)), encoding="utf-8"
        )


def trained(prefix: Path, overrides: list[str], iterations: int, seed: int) -> Path:
    """The folder of the run, trained unless it is there already. Its name depends on all of this."""
    digest = hashlib.sha256(" ".join(overrides).encode()).hexdigest()[:8]
    folder = prefix.with_name(f"{prefix.name}-{digest}-{iterations}-{seed}")
    if not (folder / "report.html").exists():
        command = [
            sys.executable, str(TRAIN_PY), *overrides, f"train.iterations={iterations}", f"seed={seed}",
            f"train.eval_every={iterations}", f"run.dir={folder}", "resume=auto",
        ]  # fmt: skip
        if subprocess.run(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL).returncode:
            sys.exit(1)  # train.py has said why
    return folder


def main_metric(folder: Path) -> float:
    """Of a run or an evaluation."""
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["main"]["value"]


def seconds_per_step(folder: Path) -> float:
    """The median of the run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return statistics.median(line["time/step_s"] for line in lines if "time/step_s" in line)
