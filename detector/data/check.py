"""Look at the data before hours are spent on it."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from tqdm import tqdm

from detector.boxes import overlaps
from detector.data.loader import Proposals, Reader
from detector.errors import InputError


def check_images(reader: Reader) -> list[tuple[int, int]]:
    """Decode every image in full and return their sizes (H, W).

    Raises one InputError that lists the first 20 images that are missing, damaged, not of the annotated size, or have
    an object wholly outside.
    """

    def check(index: int) -> tuple[int, int] | InputError:
        try:
            height, width = reader.image(index).shape[:2]
            for number, (x1, y1, x2, y2) in enumerate(reader.ground_truth(index).boxes, start=1):
                if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
                    return InputError(
                        f"{reader.annotation_path(index)}: object {number} lies outside its image of {width}x{height}: "
                        f"x from {x1:g} to {x2:g}, y from {y1:g} to {y2:g}"
                    )
            return height, width
        except InputError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(check, range(len(reader)))
        results = list(tqdm(found, total=len(reader), unit="image", desc="check", leave=False, disable=None))
    bad = [result for result in results if isinstance(result, InputError)]
    if bad:
        shown = "\n  ".join(str(error) for error in bad[:20])
        raise InputError(
            f"{len(bad)} of {len(reader)} images of {reader.name} cannot be used; mend them or take them out of the "
            f"split:\n  {shown}" + (f"\n  and {len(bad) - 20} more" if len(bad) > 20 else "")
        )
    return [result for result in results if not isinstance(result, InputError)]


def proposal_recall(reader: Reader, proposals: Proposals, indices: Sequence[int], iou: float = 0.5) -> float:
    """Part of the objects in these images that a proposal overlaps by at least `iou`; 1 if there is no object."""
    found = total = 0
    for index in indices:
        truth = reader.ground_truth(index)
        boxes, objects = torch.from_numpy(proposals[truth.image_id]), torch.from_numpy(truth.boxes[~truth.crowd])
        total += len(objects)
        if len(boxes) and len(objects):
            found += int((overlaps(objects, boxes).amax(dim=1) >= iou).sum())
    return found / total if total else 1.0
