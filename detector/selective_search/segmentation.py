"""Graph segmentation: Felzenszwalb & Huttenlocher, "Efficient Graph-Based Image Segmentation", IJCV 2004.

Pixels are vertices; edges connect each pixel with its 8 neighbours, and the weight is the distance of their colours.
Edges are processed by ascending weight, and an edge joins two regions if its weight is at most Int(C) + k / |C| of both
(equations 3 and 4), where Int(C) is the heaviest edge inside region C: the larger k, the larger the regions.

Weights and thresholds are integer multiples of 1/8 grey level, so regions are the same on every machine.
"""

import numpy as np

from detector.runtime.compiled import compiled

NEIGHBOURS = ((0, 1), (1, -1), (1, 0), (1, 1))  # dy, dx: each of the 8-connected pairs once
MAX_WEIGHT = 3533  # sqrt(3) * 255 grey levels, in eighths


@compiled
def sorted_edges(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All edges of a (C, H, W) uint16 image, lightest first: a counting sort that keeps raster order in ties.

    Returns edges (E,) uint32, where 4 * pixel + d is the edge from a pixel to neighbour d of `NEIGHBOURS`, and ends
    (MAX_WEIGHT + 1,) int64: edges of weight w are at ends[w - 1] to ends[w].
    """
    channels, height, width = planes.shape
    weights = np.empty((height, width, 4), np.uint16)
    weights[:] = MAX_WEIGHT + 1  # kept where a neighbour is outside the image
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
    ends = np.empty(MAX_WEIGHT + 4, np.int64)
    ends[:] = 0
    for e in range(flat.size):
        ends[flat[e] + 2] += 1
    for weight in range(1, ends.size):
        ends[weight] += ends[weight - 1]
    # ends[w + 1] is now the start of weight w; writing its edges advances it to the end
    edges = np.empty(flat.size, np.uint32)
    for e in range(flat.size):
        edges[ends[flat[e] + 1]] = e
        ends[flat[e] + 1] += 1
    return edges, ends[1 : MAX_WEIGHT + 2]


@compiled
def find(parent: np.ndarray, i: int) -> int:
    """The root of i, with path halving (Tarjan & van Leeuwen 1984)."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


def segment(
    edges: np.ndarray, ends: np.ndarray, shape_hw: tuple[int, int], k: int, min_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Segment the pixel graph, then merge regions of fewer than `min_size` pixels along their lightest edge.

    Returns labels (H, W) int32, numbered in raster order; heaviest (R,) int32, Int(C) of each region before small ones
    are merged into it; and the rejected edges, lightest first, which include all edges between two regions: neighbours
    (E, 2) int32, weights (E,) int32.
    """
    pixels = shape_hw[0] * shape_hw[1]
    offset = np.array([dy * shape_hw[1] + dx for dy, dx in NEIGHBOURS])
    parent = np.arange(pixels, dtype=np.int32)
    size = np.ones(pixels, np.int32)
    heaviest = np.zeros(pixels, np.int32)
    refused = np.empty(ends[-1], np.uint32)
    weights = np.empty(ends[-1], np.int32)
    count = join_similar(edges, ends, offset, k, parent, size, heaviest, refused, weights)
    refused, weights = refused[:count], weights[:count]
    join_small(refused, offset, min_size, parent, size)
    labels, roots = number(parent)
    return labels.reshape(shape_hw), heaviest[roots], regions_of(refused, offset, labels), weights


@compiled
def join_similar(
    edges: np.ndarray,
    ends: np.ndarray,
    offset: np.ndarray,
    k: int,
    parent: np.ndarray,
    size: np.ndarray,
    heaviest: np.ndarray,
    refused: np.ndarray,
    weights: np.ndarray,
) -> int:
    """Join pixels to regions in `parent`; edges that do not join are written to `refused`. Returns their number."""
    limit = np.empty(parent.size, np.int32)  # Int(C) + k / |C|
    limit[:] = k
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
    return count


@compiled
def join_small(refused: np.ndarray, offset: np.ndarray, min_size: int, parent: np.ndarray, size: np.ndarray) -> None:
    """Join regions of fewer than `min_size` pixels to a neighbour, along the lightest rejected edges first."""
    for edge in refused:
        pixel = np.int64(edge >> 2)
        a, b = find(parent, pixel), find(parent, pixel + offset[edge & 3])
        if a != b and (size[a] < min_size or size[b] < min_size):
            join(parent, size, a, b)


@compiled
def regions_of(edges: np.ndarray, offset: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The two regions of each edge, (E, 2). Compiled to release the GIL, not for speed."""
    regions = np.empty((edges.size, 2), np.int32)
    for i in range(edges.size):
        pixel = np.int64(edges[i] >> 2)
        regions[i, 0], regions[i, 1] = labels[pixel], labels[pixel + offset[edges[i] & 3]]
    return regions


@compiled
def join(parent: np.ndarray, size: np.ndarray, a: int, b: int) -> int:
    """Join the trees with roots a and b; the root is that of the larger one (a if equal)."""
    if size[a] < size[b]:
        a, b = b, a
    parent[b] = a
    size[a] += size[b]
    return a


@compiled
def number(parent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the trees of a forest by their first member: labels (N,) int32 and roots (R,)."""
    labels = np.empty(parent.size, np.int32)
    of_root = np.empty(parent.size, np.int32)
    of_root[:] = -1
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
