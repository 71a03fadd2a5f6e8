"""Proposals of one image by selective search."""

from collections.abc import Sequence

import numpy as np

from detector.data.proposal_selection import first_of_equals

SEED = 0
# If selective search finds fewer boxes (a plain sky, for example), the boxes of a grid are appended.
MIN_BOXES = 50
GRID_PARTS = (1, 2, 4)  # windows of 1/n of the image's height and width, half a window apart


def search_image(image: np.ndarray, mode: str, threads: int) -> tuple[np.ndarray, bool]:
    """Boxes (P, 4) of selective search, and whether the boxes of a grid are appended because it found too few."""
    # Imported here: numba takes a second, which programs that have their proposals do not spend.
    from detector.selective_search import selective_search

    boxes = selective_search(image, mode=mode, seed=SEED, threads=threads)
    if len(boxes) >= MIN_BOXES:
        return boxes, False
    boxes = np.concatenate([boxes, grid_boxes(image.shape[:2])])
    return boxes[first_of_equals(boxes)], True


def grid_boxes(image_hw: tuple[int, int], grid_parts: Sequence[int] = GRID_PARTS) -> np.ndarray:
    """(P, 4) float32: windows of 1/n of the sides for each n of `grid_parts`, overlapping by half, largest first.

    By default 59: the whole image, 3 x 3 windows of half its sides and 7 x 7 of a quarter.
    """
    height, width = image_hw
    boxes = []
    for parts in grid_parts:
        starts = np.arange(2 * parts - 1) / (2 * parts)
        x1, y1 = np.meshgrid(starts, starts)
        boxes.append(np.stack([x1, y1, x1 + 1 / parts, y1 + 1 / parts], axis=-1).reshape(-1, 4))
    return (np.concatenate(boxes) * [width, height, width, height]).astype(np.float32)
