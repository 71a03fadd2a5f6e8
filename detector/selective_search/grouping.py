"""Hierarchical grouping: Uijlings et al., "Selective Search for Object Recognition", IJCV 2013, section 3.1.

The two most similar neighbouring regions are merged repeatedly until the image is one region. Similarities are integer
multiples of 1/2^20, and ties are ordered by region number: the result is deterministic, without rounding.
"""

import numpy as np

from detector.runtime.compiled import compiled
from detector.selective_search.regions import ONE, Regions, enlarge
from detector.selective_search.segmentation import find

State = tuple[np.ndarray, np.ndarray, np.ndarray]  # size, boxes, histogram
Rule = tuple[int, bool, bool]  # area of the image, use_size, use_fill


def group(regions: Regions, histogram: np.ndarray, use_size: bool, use_fill: bool) -> np.ndarray:
    """Merge all regions: boxes (2R - 1, 4) int64, those of the regions first, the whole image last.

    histogram (R, B): the bins of `regions.histogram` to compare (B can be 0); use_size and use_fill add these
    similarities.
    """
    found = np.concatenate([regions.boxes, np.empty((len(regions.boxes) - 1, 4), np.int64)])
    state = regions.size.copy(), regions.boxes.copy(), histogram.copy()
    rule = int(regions.size.sum()), use_size, use_fill
    merge_all(state, neighbour_lists(regions.pairs, len(regions.size)), rule, found)
    return found


def neighbour_lists(pairs: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Neighbours of each region as a linked list: first, last (R,) and following, other (2E,); -1 is the end."""
    owner, other = pairs.ravel().astype(np.int64), pairs[:, ::-1].ravel().astype(np.int64)
    by_owner = np.argsort(owner, kind="stable")
    owner, other = owner[by_owner], other[by_owner]
    following = np.arange(1, len(owner) + 1)
    following[:-1][owner[1:] != owner[:-1]] = -1
    following[-1:] = -1
    regions = np.arange(count)
    first, last = np.searchsorted(owner, regions), np.searchsorted(owner, regions, side="right") - 1
    return np.where(first <= last, first, -1), last, following, other


@compiled
def merge_all(state: State, lists: tuple[np.ndarray, ...], rule: Rule, found: np.ndarray) -> None:
    """Implementation of `group`, which modifies its arrays: a merged region keeps the smaller of the two numbers."""
    first, last, following, other = lists
    count = state[0].size
    parent = np.empty(count, np.int32)
    best = np.empty(count, np.int64)  # the most similar neighbour, the smallest number in ties
    similarity = np.empty(count, np.int64)  # its similarity; -1: merged into another region
    met = np.empty(count, np.int64)
    waiting = np.empty(count, np.int64)  # regions whose best neighbour is unknown
    for a in range(count):
        parent[a], met[a], waiting[a] = a, 0, a
    waits = count
    for step in range(count, 2 * count):
        for w in range(waits):
            a = waiting[w]
            similarity[a] = -1
            i = first[a]
            while i >= 0:
                c = find(parent, other[i])
                if c != a:
                    new = compare(a, c, state, rule)
                    if new > similarity[a] or (new == similarity[a] and c < best[a]):
                        best[a], similarity[a] = c, new
                i = following[i]
        if step == 2 * count - 1:
            break

        a = int(np.argmax(similarity))
        b = best[a]
        similarity[b] = -1
        merge(a, b, state)
        parent[b] = a
        for i in range(4):  # numba takes seconds to compile an assignment of slices
            found[step, i] = state[1][a, i]

        # a gets the neighbours of b, each once; regions with a or b as best neighbour may have to be compared again
        following[last[a]] = first[b]
        last[a] = last[b]
        similarity[a] = -1
        waits = 0
        previous, i = -1, first[a]
        while i >= 0:
            c = find(parent, other[i])
            if c == a or met[c] == step:
                if previous < 0:
                    first[a] = following[i]
                else:
                    following[previous] = following[i]
            else:
                met[c] = step
                previous = i
                new = compare(a, c, state, rule)
                if new > similarity[a] or (new == similarity[a] and c < best[a]):
                    best[a], similarity[a] = c, new
                if new > similarity[c] or (new == similarity[c] and a <= best[c]):
                    best[c], similarity[c] = a, new
                elif best[c] == a or best[c] == b:
                    waiting[waits] = c
                    waits += 1
            i = following[i]
        last[a] = previous


@compiled
def merge(a: int, b: int, state: State) -> None:
    """Merge region b into a; the histogram becomes the average weighted by size (equation 3)."""
    size, boxes, histogram = state
    both = size[a] + size[b]
    for i in range(histogram.shape[1]):
        histogram[a, i] = (size[a] * histogram[a, i] + size[b] * histogram[b, i]) // both
    enlarge(boxes, a, boxes[b, 0], boxes[b, 1], boxes[b, 2], boxes[b, 3])
    size[a] = both


@compiled
def compare(a: int, b: int, state: State, rule: Rule) -> int:
    """Similarity of regions a and b: the sum of the selected similarities of section 3.2.1, each from 0 to ONE."""
    size, boxes, histogram = state
    area, use_size, use_fill = rule
    total = 0
    for i in range(histogram.shape[1]):  # colour and texture, equations 2 and 4
        total += min(histogram[a, i], histogram[b, i])
    both = size[a] + size[b]
    if use_size:  # equation 5
        total += ONE - both * ONE // area
    if use_fill:  # equation 6
        width = max(boxes[a, 2], boxes[b, 2]) - min(boxes[a, 0], boxes[b, 0])
        height = max(boxes[a, 3], boxes[b, 3]) - min(boxes[a, 1], boxes[b, 1])
        total += ONE - (width * height - both) * ONE // area
    return total
