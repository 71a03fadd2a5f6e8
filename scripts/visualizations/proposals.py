"""Proposals on an image or on images of a dataset: by rank, the best of each object, recall.

For an image file, writes proposals.png, and hierarchy.png, which shows how the regions of selective search grow. For a
dataset of any layout, writes a picture of each of its first --drawn images, and recall.png over the first --count.
Proposals come from a file or from selective search. Each .png has an .svg beside it.
"""

import argparse
from pathlib import Path
from typing import get_args

from detector.data.command_line import (
    add_dataset_options,
    add_image_options,
    given_dataset,
    image_options,
    require_no_dataset_options,
)
from detector.data.dataset import DetectionDataset, image_dataset
from detector.errors import InputError
from detector.evaluation.recall import score_recall
from detector.runtime.files import find_files
from detector.runtime.ranks import cores
from detector.settings import SearchMode
from detector.visualization.proposals import draw_hierarchy, draw_proposals, draw_recall
from detector.visualization.style import save_figure
from scripts.visualizations._sources import Given, Searched

HIERARCHY_BOXES = 25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="IMAGE|DATASET", help="an image file, or the folder of a dataset")
    add_dataset_options(parser, root=False)
    add_image_options(parser)
    parser.add_argument("--proposals", type=Path, help="file of proposals (default: selective search)")
    parser.add_argument(
        "--mode", choices=get_args(SearchMode), default="fast", help="mode of selective search (default: %(default)s)"
    )
    parser.add_argument("--shown", type=int, default=100, help="proposals drawn in an image (default: %(default)s)")
    parser.add_argument("--drawn", type=int, default=4, help="images of a dataset to draw (default: %(default)s)")
    parser.add_argument("--count", type=int, default=20, help="images of a dataset for recall (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    for name in ("shown", "drawn", "count"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name}: {getattr(arguments, name)} must be 1 or more")
    if arguments.source.is_dir():
        dataset = given_dataset(arguments, root=arguments.source)
        draw_dataset(arguments, dataset.subset(range(min(arguments.count, len(dataset)))))
        return
    dataset = image_dataset(find_files(str(arguments.source)), (), image_options(arguments))
    require_no_dataset_options(arguments, "DATASET, a folder")
    image, boxes = dataset.image(0), proposals_of(arguments, dataset)[dataset.image_ids[0]]
    save_figure(arguments.out, "proposals", draw_proposals(image, boxes, arguments.shown)[0])
    save_figure(arguments.out, "hierarchy", draw_hierarchy(image, boxes, HIERARCHY_BOXES)[0])


def proposals_of(arguments: argparse.Namespace, dataset: DetectionDataset) -> Given | Searched:
    if arguments.proposals:
        return Given(arguments.proposals, dataset)
    return Searched(dataset, arguments.mode, cores())


def draw_dataset(arguments: argparse.Namespace, dataset: DetectionDataset) -> None:
    proposals = proposals_of(arguments, dataset)
    truths, boxes = [], []
    for index, image_id in enumerate(dataset.image_ids):
        truths.append(dataset.ground_truth(index))
        boxes.append(proposals[image_id])
    for index in range(min(arguments.drawn, len(dataset))):
        truth = truths[index]
        figure, _ = draw_proposals(
            dataset.image(index), boxes[index], arguments.shown, truth.boxes, truth.labels, dataset.classes
        )
        save_figure(arguments.out, truth.image_id.replace("/", "_"), figure)
    save_figure(arguments.out, "recall", draw_recall(score_recall(truths, boxes, dataset.classes)))
