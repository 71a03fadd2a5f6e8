"""Command-line options of scripts for reading images, the counterparts of `data` settings in training."""

import argparse

from detector.data.image import ImageOptions


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add --exif and --max-image-pixels."""
    default = ImageOptions()
    parser.add_argument("--exif", default=default.exif, choices=["apply", "ignore"], help="as data.exif in training")
    parser.add_argument(
        "--max-image-pixels", type=int, default=default.max_pixels, metavar="N", help="as data.max_image_pixels"
    )


def image_options(arguments: argparse.Namespace) -> ImageOptions:
    """ImageOptions from the parsed options."""
    return ImageOptions(arguments.exif, arguments.max_image_pixels)
