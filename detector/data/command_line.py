"""Command-line options of scripts for datasets and images, the counterparts of `data` settings in training."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from detector.data.dataset import DetectionDataset
from detector.data.formats.coco import read_coco
from detector.data.formats.folder import read_folder
from detector.data.formats.folder.reader import ALL, FORMATS
from detector.data.formats.voc import read_voc
from detector.data.image import UPRIGHT_IMAGES, ImageOptions
from detector.errors import InputError, first_few

DATASET = "root of a dataset: VOC layout, COCO with --annotations, or any other folder of annotated images"
SPLIT = "VOC: file in ImageSets/Main, without .txt; other folders: train, val, test or all (default: all)"


def add_dataset_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add --data, and what `add_split_options` adds, for one dataset of any layout."""
    parser.add_argument("--data", required=required, type=Path, help=DATASET)
    add_split_options(parser)


def add_split_options(parser: argparse.ArgumentParser) -> None:
    """Add --split, --annotations, --images and --format."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--split", help=SPLIT)
    which.add_argument("--annotations", metavar="FILE.json", help="COCO: annotation file, from ROOT")
    parser.add_argument("--images", metavar="FOLDER", help="COCO: folder of the images, from ROOT (default: ROOT)")
    add_format_option(parser)


def add_format_option(parser: argparse.ArgumentParser) -> None:
    """Add --format."""
    parser.add_argument(
        "--format",
        choices=list(FORMATS),
        help="format of the annotations, as data.format in training (default: the one that is found)",
    )


def given_dataset(
    arguments: argparse.Namespace, options: ImageOptions = UPRIGHT_IMAGES, root: Path | None = None
) -> DetectionDataset:
    """The dataset in --data, or in `root`, by the options of `add_split_options`."""
    which = arguments.split, arguments.annotations, arguments.images, arguments.format
    return read_any(root or arguments.data, *which, image_options=options)


def read_any(
    root: Path,
    split: str | None,
    annotations: str | None = None,
    images: str | None = None,
    format: str | None = None,
    drop_empty_boxes: bool = True,
    classes: Sequence[str] | None = None,
    image_options: ImageOptions = UPRIGHT_IMAGES,
) -> DetectionDataset:
    """A dataset of any layout: COCO with `annotations`, VOC if there is ImageSets/Main, else as `data=folder`."""
    if annotations:
        return read_coco(root, annotations, images, drop_empty_boxes, classes, image_options)
    if images:
        raise InputError("--images belongs to --annotations; in VOC layout images are in JPEGImages")
    lists = root / "ImageSets" / "Main"
    if not lists.is_dir() or format is not None or split == ALL:
        return read_folder(root, split or ALL, format, classes=classes, image_options=image_options)
    if split is None:
        there = first_few(sorted(path.stem for path in lists.glob("*.txt")), 20)
        raise InputError(f"{root} is in VOC layout: name a split, of which it has {there or 'none'}, or {ALL}")
    return read_voc(root, split, classes, image_options)


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add --exif and --max-image-pixels."""
    default = ImageOptions()
    parser.add_argument(
        "--exif", default=default.exif, choices=["apply", "ignore"], help="EXIF orientation, as data.exif in training"
    )
    parser.add_argument(
        "--max-image-pixels",
        type=int,
        default=default.max_pixels,
        metavar="N",
        help="as data.max_image_pixels in training",
    )


def image_options(arguments: argparse.Namespace) -> ImageOptions:
    """ImageOptions from the parsed options."""
    return ImageOptions(arguments.exif, arguments.max_image_pixels)
