"""Ordering of the boxes, so that for every k the first k are the best k."""

from collections.abc import Sequence

import numpy as np

from detector.runtime.compiled import compiled


def order(hierarchies: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Unique boxes of all hierarchies, best first: (P, 4) int32.

    Each hierarchy votes for its boxes with 1 / sqrt(position), where position 1 is the whole image, and votes are
    summed: a box found by many hierarchies is likely an object, and 1 / sqrt still gives weight to the small regions at
    the end. Near-duplicates of better boxes come last. The paper (section 4) multiplies the position by a random factor
    instead; docs/selective_search.md compares the two. The seed shuffles boxes with equal votes.
    """
    boxes = np.concatenate(hierarchies)
    position = np.concatenate([np.arange(len(found), 0, -1) for found in hierarchies])
    votes = (2**30 / np.sqrt(position)).astype(np.int64)  # integers, whose sum is the same in any order
    # sides are below 2^16, so a box fits into one integer
    key = boxes.astype(np.uint64) @ np.array([1 << 48, 1 << 32, 1 << 16, 1], np.uint64)
    _, first, group = np.unique(key, return_index=True, return_inverse=True)
    boxes = boxes[first]
    total = np.zeros(len(boxes), np.int64)
    np.add.at(total, group, votes)
    shuffle = np.random.PCG64(seed).random_raw(len(boxes))  # numpy guarantees a stable stream
    boxes = boxes[np.lexsort((shuffle, -total))]
    repeats = near_repeats(boxes)
    return np.concatenate([boxes[~repeats], boxes[repeats]])


@compiled
def near_repeats(boxes: np.ndarray) -> np.ndarray:
    """(P,) bool: whether a box has an IoU above 0.9 with an earlier box that is not itself a repeat."""
    count = len(boxes)
    repeats = np.zeros(count, np.bool_)
    area = np.empty(count, np.int64)
    # The areas of such boxes differ by a factor below 1 / 0.9, so they are in the same or neighbouring area
    # classes (linked lists, -1 is the end) if a class spans a factor of 1.12.
    newest = np.full(3 + int(np.log(2.0**31) / np.log(1.12)), -1)
    before = np.empty(count, np.int64)
    for i in range(count):
        area[i] = (boxes[i, 2] - boxes[i, 0]) * (boxes[i, 3] - boxes[i, 1])
        own = 1 + int(np.log(area[i]) / np.log(1.12))
        for size_class in range(own - 1, own + 2):
            j = newest[size_class]
            while j >= 0 and not repeats[i]:
                width = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0])
                height = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1])
                shared = max(width, 0) * max(height, 0)
                repeats[i] = 10 * shared > 9 * (area[i] + area[j] - shared)
                j = before[j]
        if not repeats[i]:
            before[i], newest[own] = newest[own], i
    return repeats
