"""COCO result format: a JSON list of {image_id, category_id, bbox, score}, bbox as x1 y1 width height from 0.

Images without proposals are not in the file. An image id that is a decimal integer is written as a number.
"""

import json
import sys
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from detector.errors import InputError
from detector.proposals.formats.records import BoxFormat, ImageProposals, RawProposals, ranked
from detector.runtime.files import open_atomically, read_json

BOX_FORMAT = BoxFormat("xywh", "0")
NO_CATEGORY = 1  # proposals have no class, but the format requires one


def read_coco_json(path: Path) -> RawProposals:
    """Boxes x y width height and score, (P, 5) per image id. Raises InputError for other contents."""
    items = read_json(path, sys.maxsize)
    if not isinstance(items, list):
        raise InputError(f"{path}: is not a list, as COCO's result format is")
    values: dict[str, array] = {}
    for number, item in enumerate(items, start=1):
        try:
            x, y, width, height = item["bbox"]
            row = [float(value) for value in (x, y, width, height, item.get("score", 0))]
            values.setdefault(str(item["image_id"]), array("d")).extend(row)
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
            where = f"{path}: entry {number}"
            raise InputError(f"{where} has no image_id and bbox [x, y, width, height]: {item!s:.200}") from None
    return RawProposals(path, BOX_FORMAT, {id: np.frombuffer(found).reshape(-1, 5) for id, found in values.items()})


def write_coco_json(path: Path, images: Iterable[ImageProposals]) -> None:
    """Write the file. Missing scores are replaced by ones that decrease from 1 by rank."""
    with open_atomically(path) as file:
        before = b"[\n"
        for image in images:
            number = (
                image.image_id.isascii() and image.image_id.isdigit() and str(int(image.image_id)) == image.image_id
            )
            image_id = int(image.image_id) if number else image.image_id
            for box, score in zip(BOX_FORMAT.from_boxes(image.boxes), ranked(image), strict=True):
                item = {"image_id": image_id, "category_id": NO_CATEGORY, "bbox": box.tolist(), "score": float(score)}
                file.write(before + json.dumps(item).encode())
                before = b",\n"
        file.write(b"[]\n" if before == b"[\n" else b"\n]\n")
