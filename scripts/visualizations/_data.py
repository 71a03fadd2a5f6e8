"""Read the dataset of a command line."""

import argparse
from pathlib import Path

from detector.data.command_line import add_image_options, add_split_options, given_dataset, image_options
from detector.data.dataset import DetectionDataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_split_options(parser)
    add_image_options(parser)


def dataset_of(arguments: argparse.Namespace, root: Path) -> DetectionDataset:
    """The dataset in the folder `root`, of any layout."""
    return given_dataset(arguments, image_options(arguments), root)
