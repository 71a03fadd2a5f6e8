"""Image files: one code path decodes all formats to RGB."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from detector.errors import InputError
from detector.runtime.files import reading
from detector.schema import default
from detector.settings import Data

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
Image.MAX_IMAGE_PIXELS = None  # the limit is ImageOptions.max_pixels, a setting that its error names

ORIENTATION = 0x0112  # EXIF tag; 1 is upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageOptions:
    """Settings for decoding an image file."""

    exif: str = default(Data, "exif")  # ignore: keep the stored pixels (except of TIFF)
    max_pixels: int = default(Data, "max_image_pixels")  # larger images are rejected before they are decoded


UPRIGHT_IMAGES = ImageOptions()


def image_options(data: Data) -> ImageOptions:
    """How images are read, by the settings."""
    return ImageOptions(exif=data.exif, max_pixels=data.max_image_pixels)


def read_image(path: Path, options: ImageOptions = UPRIGHT_IMAGES) -> np.ndarray:
    """Decode a file to (H, W, 3) uint8 RGB, upright by its EXIF orientation; an invalid orientation is ignored.

    Gray, CMYK and palette images are converted to RGB, transparency is blended with white, 16 bits are scaled to 8.
    Raises InputError, naming the file, if it is missing, not an image, truncated or too large.
    """
    with _opened(path, options) as image:
        return rgb_array(image, options)


def rgb_array(image: Image.Image, options: ImageOptions = UPRIGHT_IMAGES) -> np.ndarray:
    """The pixels of an opened image, as `read_image` returns them. Raises ValueError for 32-bit gray."""
    image.load()
    turn = UPRIGHT.get(_orientation(image)) if options.exif == "apply" else None
    return _to_rgb(image if turn is None else image.transpose(turn))


def read_image_hw(path: Path, options: ImageOptions = UPRIGHT_IMAGES) -> tuple[int, int]:
    """Height and width of the image that `read_image` returns, from the file header alone. Same errors."""
    with _opened(path, options) as image:
        width, height = image.size
        # Pillow rotates a TIFF itself and reports the rotated size.
        on_its_side = options.exif == "apply" and image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8)
        return (width, height) if on_its_side else (height, width)


def read_thumbnail(path: Path, side_px: int, options: ImageOptions = UPRIGHT_IMAGES) -> np.ndarray:
    """(S, S, 3) uint8 RGB: the image scaled to this size, not turned upright. A JPEG is decoded at reduced size.

    Same errors as `read_image`.
    """
    with _opened(path, options) as image:
        image.draft("RGB", (8 * side_px, 8 * side_px))
        small = Image.fromarray(_to_rgb(image)).resize((side_px, side_px), Image.Resampling.BOX)
        return np.array(small)


@contextmanager
def _opened(path: Path, options: ImageOptions) -> Iterator[Image.Image]:
    # Given a path, Pillow memory-maps an uncompressed TIFF by its size after rotation, which scrambles the rows.
    # Given a file object, it reads them.
    with reading(path, "damaged image"), open(path, "rb") as file, _identified(path, file) as image:
        width, height = image.size
        if width * height > options.max_pixels:
            raise InputError(
                f"{path}: {width}x{height} are more pixels than data.max_image_pixels={options.max_pixels}: "
                "raise that if the image is valid, or scale the image down"
            )
        yield image


def _identified(path: Path, file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        hint = "; the file is empty" if path.stat().st_size == 0 else ""
        raise InputError(f"{path}: not an image (readable are {', '.join(FORMATS)}){hint}") from None


def stored_hw(path: Path) -> tuple[int, int]:
    """(H, W) as stored in the file of a readable image, regardless of its EXIF orientation; for a TIFF, upright."""
    with Image.open(path, formats=FORMATS) as image:
        return image.size[1], image.size[0]


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # corrupt EXIF can raise any error; the pixels are decoded without it
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit gray (mode {image.mode}) has no known range: save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):  # `convert` would clip values above 255
        gray = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))
