"""What a user gives to a detector: images in any form, and proposals for them."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detector.data.image import ImageOptions, read_image, rgb_array
from detector.errors import InputError
from detector.proposals.store import open_proposals, require_exif, require_images
from detector.runtime.files import find_files

ImageLike = str | Path | np.ndarray | Image.Image
BoxesAndScores = tuple[np.ndarray, np.ndarray | None]  # boxes (P, 4) of an image and, if there are any, scores (P,)
ProposalLookup = Callable[[int, str, np.ndarray], BoxesAndScores]  # of image number i, its id and its pixels
Named = Mapping[str, ImageLike] | Iterable[tuple[str, ImageLike]]  # images with their ids
Images = ImageLike | Iterable[ImageLike] | Mapping[str, ImageLike]
ProposalInput = str | Path | np.ndarray | Sequence[np.ndarray]


def is_single(images: Any) -> bool:
    """Whether this is one image, not a list, a folder or a pattern."""
    return isinstance(images, np.ndarray | Image.Image) or (isinstance(images, str | Path) and Path(images).is_file())


def named_images(images: Images) -> Named:
    """The images with their ids."""
    if isinstance(images, str | Path):
        return find_files(str(images))
    if isinstance(images, np.ndarray | Image.Image):
        return {"0": images}
    if isinstance(images, Mapping):
        return images
    pairs = ((str(image) if isinstance(image, str | Path) else str(index), image) for index, image in enumerate(images))
    return list(pairs) if isinstance(images, Sequence) else pairs


def pixels_of(image: ImageLike, options: ImageOptions) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Raises InputError if it is not an image."""
    if isinstance(image, str | Path):
        return read_image(Path(image), options)
    if isinstance(image, Image.Image):
        try:
            return rgb_array(image, options)
        except (ValueError, OSError) as error:
            raise InputError(f"cannot be decoded: {error}") from None
    if not isinstance(image, np.ndarray):
        raise InputError(f"is a {type(image).__name__}: give a path, a numpy array or a PIL image")
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or image.size == 0:
        raise InputError(
            f"is an array of {image.dtype} and shape {image.shape}: it must be (H, W, 3) RGB or (H, W) gray of uint8"
        )
    return np.ascontiguousarray(image) if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


def box_array(boxes: Any, what: str) -> np.ndarray:
    """Boxes (N, 4) float32. Raises InputError for anything else."""
    try:
        array = np.asarray(boxes, dtype=np.float32)
    except (TypeError, ValueError):
        array = np.zeros(0, np.float32)
    if array.size == 0 and array.ndim < 3:
        array = array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise InputError(f"{what}: must be boxes (N, 4), x1 y1 x2 y2 in pixels, not {array.shape}")
    return array


def given_proposals(proposals: ProposalInput, named: Named, options: ImageOptions) -> ProposalLookup:
    """The source of the proposals of each image: a file, or arrays in the order of the images."""
    if isinstance(proposals, str | Path):
        if not isinstance(named, Mapping):
            raise InputError(f"proposals: {proposals} needs names: give the images as a folder, a pattern or a mapping")
        return ProposalFile(Path(proposals), named, options)
    if isinstance(proposals, np.ndarray) and proposals.ndim == 2:
        proposals = [proposals]
    if isinstance(named, Sized) and len(proposals) != len(named):
        raise InputError(f"proposals: there are {len(proposals)} arrays of boxes for {len(named)} images")
    arrays = [box_array(boxes, f"proposals of image {index}") for index, boxes in enumerate(proposals)]

    def of_image(index: int, image_id: str, image: np.ndarray) -> BoxesAndScores:
        if index >= len(arrays):
            raise InputError(f"has no proposals: {len(arrays)} arrays were given")
        return arrays[index], None

    return of_image


class ProposalFile:
    """Proposals by image id, from a file whose ids are the images' names, with or without suffix."""

    def __init__(self, path: Path, image_ids: Collection[str], options: ImageOptions) -> None:
        self.path, self.proposals = path, open_proposals(path)
        require_exif(self.proposals, options.exif)
        if not any(self._own_id(image_id) in self.proposals for image_id in image_ids):
            raise InputError(f"proposals: {path} has none of these images; it must have {next(iter(image_ids))}, ...")

    def _own_id(self, image_id: str) -> str:
        return image_id if image_id in self.proposals else str(Path(image_id).with_suffix(""))

    def __call__(self, index: int, image_id: str, image: np.ndarray) -> BoxesAndScores:
        own_id = self._own_id(image_id)
        if own_id not in self.proposals:
            raise InputError(f"{self.path} has no proposals for it")
        require_images(self.proposals, [own_id], [image.shape[:2]])
        return self.proposals[own_id], self.proposals.scores(own_id)
