"""Transforms from the original frame to the network frame: resize, then augmentation. Boxes follow the image."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

from detector.errors import InputError
from detector.settings import Data
from detector.structures import Sample

if TYPE_CHECKING:
    import albumentations

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # disables the online version check on import

# Padding has the mean colour, which the network subtracts: it is zero after normalization.
PADDING_RGB = (124, 116, 104)
# Minimum height and width of a batch, so that every backbone gives at least one feature cell.
MIN_SIDE_PX = 32


class Augment:
    """Apply Albumentations transforms to the image, the ground truth and the proposals in one call.

    Boxes are clipped to the image; those without area are then dropped. The result depends only on the seed, not on the
    worker or on earlier samples. Raises InputError if a transform fails on the sample, or if its output is not an RGB
    image.
    """

    def __init__(self, transforms: Sequence["albumentations.BasicTransform"]) -> None:
        self.compose = None
        if transforms:
            import albumentations as A  # takes a second, which detection and evaluation do not need

            boxes = A.BboxParams("pascal_voc", label_fields=["index"], clip=True, filter_invalid_bboxes=True)
            with as_input_error(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Got processor for bboxes, but no transform to process it")
                self.compose = A.Compose(list(transforms), bbox_params=boxes)

    def __call__(self, sample: Sample, seed: int) -> Sample:
        if self.compose is None:
            return sample
        count = len(sample.gt_boxes)
        boxes = np.concatenate([sample.gt_boxes, sample.proposals])
        self.compose.set_random_seed(seed)
        where = f" on image {sample.image_id} of {sample.image.shape[1]}x{sample.image.shape[0]}"
        # CoarseDropout divides by the area of a box in whole pixels, which can be 0: such a box is dropped.
        with as_input_error(where), np.errstate(invalid="ignore"):
            result = self.compose(image=sample.image, bboxes=boxes, index=np.arange(len(boxes)))
        image = result["image"]
        if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,)):
            raise InputError(
                f"augment.transforms: they return a {type(image).__name__} of {image.dtype} and shape "
                f"{tuple(image.shape)} for an image, which must stay (H, W, 3) of uint8: remove transforms that "
                "normalise or convert, as the network does that itself"
            )
        boxes = np.asarray(result["bboxes"], dtype=np.float32).reshape(-1, 4)
        index = np.asarray(result["index"], dtype=np.int64)
        return replace(
            sample,
            image=image,
            gt_boxes=boxes[index < count],
            gt_labels=sample.gt_labels[index[index < count]],
            proposals=boxes[index >= count],
        )


@contextmanager
def as_input_error(where: str = "") -> Iterator[None]:
    """Raise any error as InputError: Albumentations has no exception class for unsuitable data or image sizes."""
    try:
        yield
    except Exception as error:
        raise InputError(f"augment.transforms{where}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Resize:
    """Scale the image to a short side of `short_sides`, or to a long side of `max_side_px` if that is smaller.

    Of several short sides, the seed selects one at random.
    """

    short_sides: Sequence[int]
    max_side_px: int

    def __call__(self, sample: Sample, seed: int = 0) -> Sample:
        height, width = sample.image.shape[:2]
        short_side = self.short_sides[seed % len(self.short_sides)]
        scale = min(short_side / min(height, width), self.max_side_px / max(height, width))
        new_height, new_width = max(round(height * scale), 1), max(round(width * scale), 1)
        scales = np.array([new_width / width, new_height / height] * 2, dtype=np.float32)
        return replace(
            sample,
            image=cv2.resize(sample.image, (new_width, new_height), interpolation=cv2.INTER_LINEAR),
            gt_boxes=sample.gt_boxes * scales,
            proposals=sample.proposals * scales,
        )


def short_sides(data: Data) -> tuple[int, ...]:
    """The short sides of training images, ascending; usually there is one."""
    sides = data.short_side_px
    return (sides,) if isinstance(sides, int) else tuple(sorted(sides))


def scored_side_px(data: Data) -> int:
    """The short side of images that are scored: the middle one of several in training."""
    return short_sides(data)[len(short_sides(data)) // 2]


def pad(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images (H, W, 3) uint8 as one array (B, H, W, 3), padded at the bottom and right to the largest sides."""
    height = max(MIN_SIDE_PX, *(image.shape[0] for image in images))
    width = max(MIN_SIDE_PX, *(image.shape[1] for image in images))
    padded = np.empty((len(images), height, width, 3), dtype=np.uint8)
    padded[:] = PADDING_RGB
    for target, image in zip(padded, images, strict=True):
        target[: image.shape[0], : image.shape[1]] = image
    return padded
