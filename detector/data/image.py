"""Reading image files: one path for every kind of picture."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from detector.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")


def read_image(path: Path) -> np.ndarray:
    """Decode a file to (H, W, 3) uint8 RGB, upright as its EXIF orientation says.

    Gray and palette images become RGB, transparency is laid on white, 16 bits are scaled to 8.
    Raises InputError, naming the file, if it is missing, no image, truncated, or too large to be honest.
    """
    with _opened(path) as image:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


def read_image_hw(path: Path) -> tuple[int, int]:
    """Height and width of the image that `read_image` gives, from the head of its file alone. Same errors."""
    with _opened(path) as image:
        width, height = image.size
        on_its_side = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return (width, height) if on_its_side else (height, width)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except FileNotFoundError:
        raise InputError(f"{path}: no such image file") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: not an image (readable are {', '.join(FORMATS)})") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: damaged image: {error}") from None


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit gray (mode {image.mode}) has no known range: save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):  # `convert` would clip it to its darkest 256 levels
        gray = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))
