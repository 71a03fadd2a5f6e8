"""Detection in tiles of an image that is much larger than the input of the network."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detector.box_arrays import box_areas, intersection_areas, nms
from detector.errors import InputError
from detector.settings import Detect
from detector.structures import Detections

Window = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the image
MIN_PART_INSIDE = 0.5  # a given proposal belongs to each tile with at least this part of its area


@dataclass(frozen=True)
class Tiles:
    """Square tiles of `size_px` pixels, neighbours of which share the fraction `overlap` of their side.

    Each tile is processed like an image. An object lies completely in one tile if it is smaller than the strip that two
    tiles share.
    """

    size_px: int = 1024
    overlap: float = 0.2

    def __post_init__(self) -> None:
        if self.size_px < 1:
            raise InputError(f"tiles: their size is {self.size_px}: it must be at least 1 pixel")
        if not 0 <= self.overlap <= 0.9:
            raise InputError(f"tiles: their overlap is {self.overlap}: it must be from 0 to 0.9 of the size")

    def windows(self, image_hw: tuple[int, int]) -> list[Window]:
        """The tiles that cover the image, row by row; the last of a row or column ends at the border."""
        height, width = image_hw
        return [
            (x, y, min(x + self.size_px, width), min(y + self.size_px, height))
            for y in self._starts(height)
            for x in self._starts(width)
        ]

    def _starts(self, length: int) -> list[int]:
        step = max(round(self.size_px * (1 - self.overlap)), 1)
        last = max(length - self.size_px, 0)
        return [*range(0, last, step), last]


def given_inside(boxes: np.ndarray, scores: np.ndarray | None, window: Window) -> tuple[np.ndarray, np.ndarray | None]:
    """The boxes (P, 4) and scores (P,) of the image that belong to this tile, in the tile's frame."""
    inside = intersection_areas(boxes, np.array(window, dtype=np.float32))
    mine = (inside > 0) & (inside >= MIN_PART_INSIDE * box_areas(boxes))
    moved = boxes[mine] - np.array([*window[:2], *window[:2]], dtype=np.float32)
    return moved, None if scores is None else scores[mine]


def merge(windows: Sequence[Window], parts: Sequence[Detections], limits: Detect) -> Detections:
    """Detections of an image from those of its tiles: moved to its frame, then NMS and the limit over all of them."""
    offsets = [np.array([x, y, x, y], dtype=np.float32) for x, y, _, _ in windows]
    boxes = np.concatenate([part.boxes + offset for part, offset in zip(parts, offsets, strict=True)])
    labels, scores = (np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "scores"))
    keep = nms(boxes, scores, labels, limits.nms_iou)[: limits.max_detections]
    return Detections(parts[0].image_id, boxes[keep], labels[keep], scores[keep])
