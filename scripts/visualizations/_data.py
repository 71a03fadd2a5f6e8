"""The dataset of a command line, for the commands that show one."""

import argparse
from pathlib import Path

from detector.data.coco import read_coco
from detector.data.command_line import add_image_options, image_options
from detector.data.dataset import DetectionDataset
from detector.data.voc import read_voc
from detector.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", help="VOC layout: file in ImageSets/Main, without .txt")
    parser.add_argument("--annotations", metavar="FILE.json", help="COCO layout: annotation file, from DATASET")
    parser.add_argument("--images", metavar="FOLDER", help="COCO layout: folder of the images, from DATASET")
    add_image_options(parser)


def dataset_of(arguments: argparse.Namespace, root: Path) -> DetectionDataset:
    """The dataset in the folder `root`. Raises InputError if it is not clear which."""
    if (arguments.split is None) == (arguments.annotations is None):
        raise InputError(f"{root}: give --split (VOC layout) or --annotations (COCO layout)")
    if arguments.split is None:
        how = image_options(arguments)
        return read_coco(root, arguments.annotations, arguments.images, drop_empty_boxes=True, image_options=how)
    if arguments.images:
        raise InputError("--images belongs to --annotations; in VOC layout images are in JPEGImages")
    return read_voc(root, arguments.split, image_options=image_options(arguments))
