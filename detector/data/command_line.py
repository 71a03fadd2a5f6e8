"""Command-line options of scripts for datasets and images, the counterparts of `data` settings in training."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from detector.data.dataset import DetectionDataset
from detector.data.formats.coco import read_coco
from detector.data.formats.folder import read_folder
from detector.data.formats.folder.reader import ALL, FORMATS
from detector.data.formats.voc import read_voc
from detector.data.image import ImageOptions
from detector.errors import InputError, first_few

DATASET = "root of a dataset: VOC layout, COCO with --annotations, or any other folder of annotated images"
SPLIT = "VOC: file in ImageSets/Main, without .txt; other folders: train, val, test or all (default: {})"
FORMAT = "format of the annotations, as data.format in training (default: the one that is found)"
WITHOUT_ANNOTATIONS = "--images belongs to --annotations; in VOC layout images are in JPEGImages"


def add_dataset_options(parser: argparse.ArgumentParser, required: bool = True, root: bool = True) -> None:
    """Add --data (unless not `root`), --split, --annotations, --images and --format: one dataset of any layout."""
    if root:
        parser.add_argument("--data", required=required, type=Path, help=DATASET)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--split", help=SPLIT.format(ALL))
    which.add_argument("--annotations", metavar="FILE.json", help="COCO: annotation file, from ROOT")
    parser.add_argument("--images", metavar="FOLDER", help="COCO: folder of the images, from ROOT (default: ROOT)")
    parser.add_argument("--format", choices=list(FORMATS), help=FORMAT)


def require_no_dataset_options(arguments: argparse.Namespace, needed: str) -> None:
    """Raise InputError for an option of `add_dataset_options` that is given without the dataset, `needed`."""
    for option in ("split", "annotations", "images", "format"):
        if getattr(arguments, option) is not None:
            raise InputError(f"--{option} belongs to {needed}")


def given_dataset(
    arguments: argparse.Namespace, options: ImageOptions | None = None, root: Path | None = None
) -> DetectionDataset:
    """The dataset in --data, or in `root`, by the options above; images by `options`, else by the parsed ones."""
    coco = arguments.annotations, arguments.images
    return _read(root or arguments.data, arguments.split, coco, arguments.format, options or image_options(arguments))


def add_datasets_options(parser: argparse.ArgumentParser, default_splits: str = ALL) -> None:
    """Add --data, --splits, --annotations, --images, --format and the image options: several datasets with one root."""
    parser.add_argument("--data", required=True, type=Path, help=DATASET)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--splits", nargs="+", help=SPLIT.format(default_splits))
    which.add_argument("--annotations", nargs="+", metavar="FILE.json", help="COCO: annotation files, from ROOT")
    parser.add_argument("--images", nargs="+", help="COCO: the folder of images of each, from ROOT (default: ROOT)")
    parser.add_argument("--format", choices=list(FORMATS), help=FORMAT)
    add_image_options(parser)


def given_datasets(
    arguments: argparse.Namespace, splits: Sequence[str | None], drop_empty_boxes: bool = True
) -> Iterator[DetectionDataset]:
    """The datasets in --annotations, else these splits of the one in --data, by the options above."""
    names, images, options = arguments.annotations or splits, arguments.images, image_options(arguments)
    if images and not arguments.annotations:
        raise InputError(WITHOUT_ANNOTATIONS)
    if images and len(images) != len(names):
        raise InputError(f"--images: {len(images)} for {len(names)}, {', '.join(map(str, names))}")
    for name, folder in zip(names, images or [None] * len(names), strict=True):
        coco = (name, folder) if arguments.annotations else (None, None)
        yield _read(arguments.data, name, coco, arguments.format, options, drop_empty_boxes)


def _read(
    root: Path,
    split: str | None,
    coco: tuple[str | None, str | None],
    format: str | None,
    image_options: ImageOptions,
    drop_empty_boxes: bool = True,
) -> DetectionDataset:
    """A dataset: COCO by annotations and folder of images, VOC if there is ImageSets/Main, else as `data=folder`."""
    annotations, images = coco
    if annotations:
        return read_coco(root, annotations, images, drop_empty_boxes, image_options=image_options)
    if images:
        raise InputError(WITHOUT_ANNOTATIONS)
    lists = root / "ImageSets" / "Main"
    if not lists.is_dir() or format is not None or split == ALL:
        return read_folder(root, split or ALL, format, image_options=image_options)
    if split is None:
        there = first_few(sorted(path.stem for path in lists.glob("*.txt")), 20)
        raise InputError(f"{root} is in VOC layout: name a split, of which it has {there or 'none'}, or {ALL}")
    return read_voc(root, split, image_options=image_options)


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add --exif and --max-image-pixels."""
    default = ImageOptions()
    parser.add_argument(
        "--exif", default=default.exif, choices=["apply", "ignore"], help="EXIF orientation, as data.exif in training"
    )
    most = default.max_pixels
    parser.add_argument(
        "--max-image-pixels", type=int, default=most, metavar="N", help="as data.max_image_pixels in training"
    )


def image_options(arguments: argparse.Namespace) -> ImageOptions:
    """ImageOptions from the parsed options. Raises InputError for a limit below 1."""
    if arguments.max_image_pixels < 1:
        raise InputError(f"--max-image-pixels: {arguments.max_image_pixels} must be 1 or more")
    return ImageOptions(arguments.exif, arguments.max_image_pixels)
