"""Compare evaluated runs on one page: AP with confidence intervals, training curves, settings, and objects found.

    python scripts/compare.py runs/a runs/b --out comparison.html

RUN is the folder of a run of train.py, whose last evaluation is compared, or a folder that evaluate.py wrote. All must
have the same images, annotations and classes. The others are compared with the first one.

Exit status: 0 done, 1 a write failed, 2 invalid input, 130 or 143 interrupted.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from detector.errors import InputError
from detector.runtime.exits import exit_status

if TYPE_CHECKING:  # imported late: --help needs no torch
    from detector.data.dataset import DetectionDataset
    from detector.evaluation.matching import Matches
    from detector.evaluation.pages.pictures import Picture
    from detector.structures import Detections

PICTURES = 8  # of each pair of runs and direction
COMPARED = ("boxes", "labels", "difficult", "crowd", "areas")  # of the annotations of an image
NOT_COMPARED = ("run", "out", "checkpoint", "detections")  # differ between any two runs


def main(command_line: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder written by train.py or evaluate.py")
    parser.add_argument("--out", required=True, type=Path, help="the page to write, a new .html file")
    parser.add_argument(
        "--metric", help="such as area@0.50 or 11point@0.50:0.95 (default: the main metric of the first run)"
    )
    arguments = parser.parse_args(command_line)
    return exit_status(lambda: run(arguments), "the page is not written")


@dataclass(frozen=True)
class Run:
    """A folder with an evaluation."""

    folder: Path
    config: dict[str, Any]  # config.yaml
    metrics: dict[str, Any]  # metrics.json

    @property
    def classes(self) -> list[str]:
        return list(next(iter(self.metrics["voc"].values()))["AP"])


def run(arguments: argparse.Namespace) -> None:
    from detector.evaluation.comparison import compare
    from detector.evaluation.matching import match
    from detector.evaluation.pages.comparison_page import MAX_RUNS, ap_rows, comparison_page, difference_rows
    from detector.evaluation.tables import text_table
    from detector.runtime.files import require_new_file, write_atomically

    folders = arguments.runs
    if len({folder.resolve() for folder in folders}) < max(len(folders), 2):
        raise InputError("give at least two runs, each once: python scripts/compare.py RUN RUN --out FILE.html")
    require_new_file("--out", arguments.out, ".html")
    if len(folders) > MAX_RUNS:
        raise InputError(f"at most {MAX_RUNS} runs can be compared: {len(folders)} are given")
    runs = dict(zip(names_of(folders), map(read_run, folders), strict=True))
    metric = metric_of(arguments.metric, runs)
    dataset, detections = read_all(runs)
    truths = [dataset.ground_truth(index) for index in range(len(dataset))]
    matches = {name: match(truths, found, len(dataset.classes)) for name, found in detections.items()}
    devkit = devkit_of(runs)
    compared = compare(matches, dataset.classes, metric, devkit, len(dataset))
    histories = {name: read_history(one) for name, one in runs.items()}
    settings = {
        name: flat({key: one.config[key] for key in one.config if key not in NOT_COMPARED})
        for name, one in runs.items()
    }
    pictures = pictures_of(matches, dataset, metric, devkit)
    page = comparison_page(metric, compared, histories, settings, pictures)
    write_atomically(arguments.out, page.encode())
    print(f"{metric}, {len(dataset)} images of {dataset.name}, with 95 % intervals\n")
    print(text_table(ap_rows(compared)))
    for name in list(runs)[1:]:
        print(f"\n{name} minus {next(iter(runs))}\n\n{text_table(difference_rows(compared, name))}")
    print(f"\n{arguments.out}")


def names_of(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or the complete paths if two of these are equal."""
    names = [folder.resolve().name for folder in folders]
    return names if len({*names}) == len(names) else [str(folder) for folder in folders]


def read_run(folder: Path) -> Run:
    """The evaluation in a folder. Raises InputError, which says what to do, if there is none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder}: is not the folder of a run: it has no config.yaml")
    if not (folder / "metrics.json").is_file():
        raise InputError(
            f"{folder}: has no evaluation (metrics.json): give the folder that this writes: "
            f"python evaluate.py checkpoint={folder}/checkpoints/last.pt"
        )
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        one = Run(folder, config, metrics)
        valid = bool(one.classes) and bool(config["metric"].keys()) and bool(metrics["main"]["metric"])
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, yaml.YAMLError):
        valid = False
    if not valid:
        raise InputError(f"{folder}: its config.yaml or metrics.json is not of this program: evaluate it again")
    return one


def metric_of(given: str | None, runs: Mapping[str, Run]) -> str:
    """The metric to compare, one that every run was scored with. COCO's has no resamples, and is replaced."""
    known = [set(one.metrics["voc"]) for one in runs.values()]
    everywhere = sorted(set.intersection(*known))
    main = next(iter(runs.values())).metrics["main"]["metric"]
    metric = given or ("area@0.50:0.95" if main == "coco" else main)
    if metric not in everywhere:
        raise InputError(f"--metric: {metric} is not in every run; these are: {', '.join(everywhere)}")
    return metric


def devkit_of(runs: Mapping[str, Run]) -> bool:
    """metric.devkit of the runs. Raises InputError if it is not the same in all."""
    found = {str(one.folder): bool(one.config["metric"].get("devkit")) for one in runs.values()}
    if len({*found.values()}) > 1:
        listed = ", ".join(f"{str(devkit).lower()} in {folder}" for folder, devkit in found.items())
        raise InputError(f"metric.devkit differs: {listed}: evaluate them again with the same value, with evaluate.py")
    return next(iter(found.values()))


def read_all(runs: Mapping[str, Run]) -> "tuple[DetectionDataset, dict[str, list[Detections]]]":
    """The dataset, and the detections of each run. Raises InputError if they are of different images or classes."""
    first = next(iter(runs.values()))
    datasets: dict[str, DetectionDataset] = {}
    shared, detections = None, {}
    for name, one in runs.items():
        if {*one.classes} != {*first.classes}:
            only = ", ".join(sorted({*one.classes} ^ {*first.classes}))
            raise InputError(f"{one.folder}: other classes than {first.folder}: {only} in one of them only")
        key = json.dumps([one.config["data"], one.config.get("detections") is None], sort_keys=True, default=str)
        if key not in datasets:
            datasets[key] = read_dataset_of(one).with_classes(tuple(first.classes))
        if shared is None:
            shared = datasets[key]
        require_same(shared, datasets[key], f"{one.folder}: was evaluated on other data than {first.folder}")
        detections[name] = read_detections_of(one, shared)
    assert shared is not None
    return shared, detections


def read_dataset_of(one: Run) -> "DetectionDataset":
    from detector.builders import datasets
    from detector.schema import parse
    from detector.settings import Data, GivenData

    data = one.config["data"]
    if one.config.get("detections") is not None:
        data = {
            key: value for key, value in parse(GivenData, data, str(one.folder)).plain().items() if value is not None
        }
    return datasets.build_dataset(parse(Data, {"root": None} | data, f"{one.folder}/config.yaml"), "val")


def read_detections_of(one: Run, dataset: "DetectionDataset") -> "list[Detections]":
    """The detections that were scored. For saved ones, the settings of rescoring apply again."""
    from detector.evaluation.results import read_result_files
    from detector.evaluator import read_detections
    from detector.schema import parse
    from detector.settings import EvaluateSettings

    if one.config.get("detections") is None:
        if not (one.folder / "detections").is_dir():
            raise InputError(f"{one.folder}: has no folder detections: evaluate it again")
        return read_result_files(one.folder / "detections", dataset.image_ids, dataset.classes)
    own, found = read_detections(parse(EvaluateSettings, one.config, f"{one.folder}/config.yaml"))
    if own.classes != dataset.classes:
        raise InputError(f"{one.folder}: its classes have another order than the first run's: set data.classes")
    return found


def require_same(one: "DetectionDataset", other: "DetectionDataset", message: str) -> None:
    if one is other:
        return
    if one.image_ids != other.image_ids:
        different = sorted({*one.image_ids} ^ {*other.image_ids})
        raise InputError(
            f"{message}: {len(other)} images of {other.name}, and {len(one)} of {one.name}"
            + (f"; {different[0]} is in one of them only" if different else ", in another order")
        )
    for index, image_id in enumerate(one.image_ids):
        a, b = one.ground_truth(index), other.ground_truth(index)
        if not all((getattr(a, key).tolist() == getattr(b, key).tolist()) for key in COMPARED):
            raise InputError(f"{message}: the annotations of {image_id} differ")


def read_history(one: Run) -> list[dict]:
    """The lines of metrics.jsonl of the run, or of the run whose checkpoint was evaluated; empty without.

    As when a run resumes, a line that is truncated or has no iteration is skipped.
    """
    path = one.folder / "metrics.jsonl"
    if not path.is_file() and one.config.get("checkpoint"):
        path = Path(one.config["checkpoint"]).resolve().parent.parent / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text("utf-8", "replace").splitlines():
        with suppress(ValueError, RecursionError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("iteration"), int)]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names, such as `data.root`, as saved, also by another version."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def pictures_of(
    matches: "Mapping[str, Matches]", dataset: "DetectionDataset", metric: str, devkit: bool
) -> "dict[str, list[Picture]]":
    """Objects that the first run finds and another misses, and the other way round, each from another image."""
    from detector.evaluation.comparison import found_by_one
    from detector.evaluation.pages.pictures import cut_out, marks_of

    (base, first), *others = matches.items()
    iou_threshold = float(metric.partition("@")[2].partition(":")[0])
    pictures: dict[str, list[Picture]] = {}
    for name, other in others:
        for (one, ours), (another, theirs) in (((name, other), (base, first)), ((base, first), (name, other))):
            found = found_by_one(ours, theirs, iou_threshold, devkit)
            by_image: dict[int, tuple[int, int]] = {}
            for target, detection in found:
                by_image.setdefault(int(ours.images[detection]), (target, detection))
            heading = f"{one} finds, {another} misses: {len(found)} object{'s' * (len(found) != 1)}"
            pictures[heading] = []
            for number, (target, detection) in list(by_image.items())[:PICTURES]:
                label, score = dataset.classes[ours.labels[detection] - 1], ours.scores[detection]
                caption = f"{dataset.image_ids[number]}: {label} {score:.2f}"
                pictures[heading].append(cut_out(dataset.image, number, caption, marks_of(ours, detection, target)))
    return pictures


if __name__ == "__main__":
    sys.exit(main())
