"""The union of several proposal files of the same images."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torchvision.ops import nms

from detector.errors import InputError, first_few
from detector.proposals.formats.records import ImageProposals
from detector.proposals.store import OpenedProposals, ProposalStore


def unite(sources: Sequence[OpenedProposals], nms_iou: float) -> Iterator[ImageProposals]:
    """The proposals of each image from all sources, best first: the first of each source, then the second of each, ...

    A box with an IoU above `nms_iou` with one before it is left out. Scores of different sources cannot be compared,
    so there are none. Raises InputError if a source has other images, or images of another size.
    """
    image_ids = [*sources[0].image_ids]
    for source in sources[1:]:
        if differing := sorted({*image_ids} ^ {*source.image_ids}):
            raise InputError(
                f"{source.path}: has other images than {sources[0].path}: {len(differing)} are in one of them only: "
                f"{first_few(differing)}"
            )
    for image_id in image_ids:
        known = {hw for source in sources if (hw := source.image_hw(image_id)) is not None}
        if len(known) > 1:
            raise InputError(f"image {image_id}: proposals of images of different sizes (H, W): {first_few([*known])}")
        boxes = interleave([source[image_id] for source in sources], nms_iou)
        yield ImageProposals(image_id, boxes, image_hw=next(iter(known), None))


def common_metadata(sources: Sequence[OpenedProposals]) -> dict:
    """What a store of the union says as its sources do: `exif`, and the images that no source could read.

    Raises InputError for sources made with different `exif`.
    """
    stores = [source for source in sources if isinstance(source, ProposalStore)]
    exifs = {store.generator["exif"]: store.path for store in stores if "exif" in store.generator}
    if len(exifs) > 1:
        (one, path), (another, other) = [*exifs.items()][:2]
        raise InputError(f"{path}: its images were read with --exif {one}, those of {other} with --exif {another}")
    reasons = {image_id: reason for store in stores for image_id, reason in store.unreadable.items()}
    unreadable = {id: reason for id, reason in reasons.items() if not any(id in source for source in sources)}
    return {**({"exif": next(iter(exifs))} if exifs else {}), **({"unreadable": unreadable} if unreadable else {})}


def interleave(boxes: Sequence[np.ndarray], nms_iou: float) -> np.ndarray:
    """(P, 4): the first box of each array, then the second of each, ..., without near duplicates."""
    rank = np.concatenate([np.arange(len(item)) for item in boxes])
    together = np.concatenate(boxes)[np.argsort(rank, kind="stable")]
    priority = torch.arange(len(together), 0, -1, dtype=torch.float64)
    return together[nms(torch.from_numpy(together).double(), priority, nms_iou).numpy()]
