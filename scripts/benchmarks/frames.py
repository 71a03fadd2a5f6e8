"""From image files to detections: frames per second, recall and mAP by mode and number of proposals.

    python scripts/benchmark.py frames --checkpoint RUN/checkpoints/best.pt --data ROOT --split test

Decoding, selective search, the network and post-processing are included, with one image per core at a time; no picture
is drawn. Recall is that of the proposals at IoU 0.5, and mAP is area@0.50. The first round does not count.
"""

import argparse
import statistics
from pathlib import Path

import detector
from detector.data.command_line import add_dataset_options, given_dataset
from detector.data.dataset import DetectionDataset
from detector.data.image import image_options
from detector.evaluation.recall import score_recall
from detector.proposals.search import search_image
from detector.runtime.ranks import cores
from scripts._measure import at_least_one, detect_and_score, for_classes_of, machine, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, type=Path)
    add_dataset_options(parser)
    parser.add_argument("--modes", nargs="+", default=["single", "fast"], help="of selective search")
    parser.add_argument(
        "--proposals", nargs="+", type=at_least_one, default=[300, 1000, 2000], help="at most, of an image"
    )
    parser.add_argument("--rounds", type=at_least_one, default=3)
    parser.add_argument("--device", default="auto")


def run(arguments: argparse.Namespace) -> None:
    models = {mode: detector.load(arguments.checkpoint, arguments.device, mode) for mode in arguments.modes}
    first = models[arguments.modes[0]]
    dataset = for_classes_of(first, given_dataset(arguments, image_options(first.settings.data)))
    print(f"{len(dataset)} images of {dataset.name}; {machine()}\n")
    settings = [(mode, count) for mode in models for count in arguments.proposals]
    rates: dict[tuple[str, int], list[float]] = {setting: [] for setting in settings}
    scores: dict[tuple[str, int], float | None] = {}
    for _ in range(arguments.rounds + 1):
        for mode, count in settings:
            scores[mode, count], rate = detect_and_score(models[mode], dataset, count)
            rates[mode, count].append(rate)
    recalls = {mode: recall_of_first(dataset, mode, arguments.proposals) for mode in models}
    rows = []
    for mode, count in settings:
        rate, recall = statistics.median(rates[mode, count][1:]), recalls[mode][count]
        rows.append({"mode": mode, "proposals": count, "frames/s": rate, "recall": recall, "mAP": scores[mode, count]})
    show(rows)


def recall_of_first(dataset: DetectionDataset, mode: str, counts: list[int]) -> dict[int, float]:
    """Recall at IoU 0.5 of the first proposals of each image."""
    indices = range(len(dataset))
    truths = [dataset.ground_truth(index) for index in indices]
    boxes = [search_image(dataset.image(index), mode, cores())[0] for index in indices]
    return {
        count: score_recall(truths, [found[:count] for found in boxes], dataset.classes)["groups"]["all"]["recall"][
            "all"
        ][0]
        for count in counts
    }
