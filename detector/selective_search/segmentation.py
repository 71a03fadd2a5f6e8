"""Graph segmentation: Felzenszwalb & Huttenlocher, "Efficient Graph-Based Image Segmentation", IJCV 2004.

Pixels are vertices; an edge joins each to its 8 neighbours and weighs the distance of their colours. Edges
are taken from light to heavy, and an edge joins two regions if it is no heavier than Int(C) + k / |C| of both
(equations 3 and 4), where Int(C) is the heaviest edge inside region C: the larger k, the larger the regions.

Weights and thresholds are whole numbers of 1/8 grey levels, so regions are the same on every machine.
"""

import numpy as np

from detector.selective_search.compiled import compiled

NEIGHBOURS = ((0, 1), (1, -1), (1, 0), (1, 1))  # dy, dx: each of the 8-connected pairs once
MAX_WEIGHT = 3533  # sqrt(3) * 255 grey levels, in eighths


@compiled
def sorted_edges(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All edges of a (C, H, W) uint16 image, lightest first: a counting sort that keeps raster order in ties.

    Returns edges (E,) uint32, where 4 * pixel + d leads from a pixel to neighbour d of `NEIGHBOURS`, and ends
    (MAX_WEIGHT + 1,) int64: edges of weight w lie in ends[w - 1] to ends[w].
    """
    channels, height, width = planes.shape
    weights = np.full((height, width, 4), MAX_WEIGHT + 1, np.uint16)  # stays so where a neighbour is outside
    squares = np.empty(width, np.float32)
    for y in range(height):
        for d in range(4):
            dy, dx = NEIGHBOURS[d]
            if y + dy == height:
                continue
            left, right = max(0, -dx), width - max(0, dx)
            squares[:] = 0
            for c in range(channels):
                here, there = planes[c, y, left:right], planes[c, y + dy, left + dx : right + dx]
                for x in range(here.size):
                    difference = np.float32(here[x]) - np.float32(there[x])
                    squares[x] += difference * difference  # exact: the sum is at most 3 * 2040^2 < 2^24
            for x in range(right - left):
                weights[y, left + x, d] = np.uint16(np.sqrt(squares[x]))

    flat = weights.reshape(-1)
    ends = np.zeros(MAX_WEIGHT + 4, np.int64)
    for e in range(flat.size):
        ends[flat[e] + 2] += 1
    for weight in range(1, ends.size):
        ends[weight] += ends[weight - 1]
    # ends[w + 1] is now where weight w begins; placing its edges moves that to where it ends
    edges = np.empty(flat.size, np.uint32)
    for e in range(flat.size):
        edges[ends[flat[e] + 1]] = e
        ends[flat[e] + 1] += 1
    return edges, ends[1 : MAX_WEIGHT + 2]


@compiled
def find(parent: np.ndarray, i: int) -> int:
    """The root of i, halving the path to it (Tarjan & van Leeuwen 1984)."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@compiled
def segment(
    edges: np.ndarray, ends: np.ndarray, shape_hw: tuple[int, int], k: int, min_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Segment the pixel graph, then merge regions of fewer than `min_size` pixels along their lightest edge.

    Returns labels (H, W) int32, numbered in raster order; heaviest (R,) int32, Int(C) of each region before
    small ones were merged into it; and the edges refused, lightest first, all those between two regions among
    them: neighbours (E, 2) int32, weights (E,) int32.
    """
    height, width = shape_hw
    offset = np.array([dy * width + dx for dy, dx in NEIGHBOURS])
    parent = np.arange(height * width, dtype=np.int32)
    size = np.ones(parent.size, np.int32)
    heaviest = np.zeros(parent.size, np.int32)
    limit = np.full(parent.size, k, np.int32)  # Int(C) + k / |C|
    refused = np.empty(edges.size, np.uint32)
    weights = np.empty(edges.size, np.int32)
    count = start = 0
    for weight in range(ends.size):
        for i in range(start, ends[weight]):
            pixel = np.int64(edges[i] >> 2)
            a, b = find(parent, pixel), find(parent, pixel + offset[edges[i] & 3])
            if a == b:
                continue
            if weight <= limit[a] and weight <= limit[b]:
                a = join(parent, size, a, b)
                heaviest[a] = weight
                limit[a] = weight + k // size[a]
            else:
                refused[count], weights[count] = edges[i], weight
                count += 1
        start = ends[weight]

    for i in range(count):
        pixel = np.int64(refused[i] >> 2)
        a, b = find(parent, pixel), find(parent, pixel + offset[refused[i] & 3])
        if a != b and (size[a] < min_size or size[b] < min_size):
            join(parent, size, a, b)

    labels, roots = number(parent)
    neighbours = np.empty((count, 2), np.int32)
    for i in range(count):
        pixel = np.int64(refused[i] >> 2)
        neighbours[i, 0], neighbours[i, 1] = labels[pixel], labels[pixel + offset[refused[i] & 3]]
    return labels.reshape(height, width), take(heaviest, roots), neighbours, weights[:count]


@compiled
def join(parent: np.ndarray, size: np.ndarray, a: int, b: int) -> int:
    """Make the larger of the trees with roots a and b the root of both (the first if they are equal)."""
    if size[a] < size[b]:
        a, b = b, a
    parent[b] = a
    size[a] += size[b]
    return a


@compiled
def number(parent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the trees of a forest by their first member: labels (N,) int32 and roots (R,)."""
    labels = np.empty(parent.size, np.int32)
    of_root = np.full(parent.size, -1, np.int32)
    roots = np.empty(parent.size, np.int32)
    count = 0
    for i in range(parent.size):
        root = find(parent, i)
        if of_root[root] < 0:
            of_root[root] = count
            roots[count] = root
            count += 1
        labels[i] = of_root[root]
    return labels, roots[:count]


@compiled
def take(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """values[at], which numba compiles faster written out."""
    result = np.empty(at.size, values.dtype)
    for i in range(at.size):
        result[i] = values[at[i]]
    return result
