"""Selective search written plainly, with sets and dictionaries: what the fast one must equal, box for box."""

import math

import numpy as np

from detector.selective_search.colour import LAB_F, LINEAR

ONE = 2**20


def smooth(image):
    kernel = np.outer([6, 58, 128, 58, 6], [6, 58, 128, 58, 6])  # sums up to 256^2
    padded = np.pad(image.astype(int), ((2, 2), (2, 2), (0, 0)), mode="edge")
    height, width, _ = image.shape
    total = sum(kernel[dy, dx] * padded[dy : dy + height, dx : dx + width] for dy in range(5) for dx in range(5))
    return total * 8 // 65536  # (H, W, 3), eighths of a level


def hsv(red, green, blue):
    value, chroma = max(red, green, blue), max(red, green, blue) - min(red, green, blue)
    if chroma == 0:
        return 0, 0, value
    if value == red:
        hue = math.floor(240 * (green - blue) / chroma) % 1440
    elif value == green:
        hue = 480 + math.floor(240 * (blue - red) / chroma)
    else:
        hue = 960 + math.floor(240 * (red - green) / chroma)
    return hue, 2040 * chroma // value, value


def lab(red, green, blue):
    light = [int(LINEAR[c]) for c in (red, green, blue)]
    white = [(28440, 24656, 12440), (13933, 46871, 4732), (1164, 7175, 57197)]
    fx, fy, fz = (int(LAB_F[sum(m * c for m, c in zip(row, light, strict=True)) // 2**18]) for row in white)
    lightness = max((116 * fy - 16 * 65536) * 2040 // 100 // 65536, 0)
    return lightness, 4000 * (fx - fy) // 65536 + 1024, 1600 * (fy - fz) // 65536 + 1024


def gray(red, green, blue):
    return ((77 * red + 150 * green + 29 * blue) // 256,)


def rgi(red, green, blue):
    total = red + green + blue
    return 2040 * red // max(total, 1), 2040 * green // max(total, 1), total // 3


SPACES = {"hsv": hsv, "lab": lab, "gray": gray, "rgi": rgi, "hue": lambda *rgb: hsv(*rgb)[:1]}


class Partition:
    """Which vertex belongs to which region: the regions are sets."""

    def __init__(self, sizes, heaviest):
        self.of = list(range(len(sizes)))
        self.members = {i: {i} for i in self.of}
        self.size, self.heaviest = list(sizes), list(heaviest)

    def join(self, a, b):
        if self.size[a] < self.size[b]:
            a, b = b, a
        self.members[a] |= self.members.pop(b)
        self.size[a] += self.size[b]
        for i in self.members[a]:
            self.of[i] = a
        return a

    def segment(self, edges, k):
        for weight, p, q in edges:
            a, b = self.of[p], self.of[q]
            if a != b and all(weight <= self.heaviest[c] + k // self.size[c] for c in (a, b)):
                self.heaviest[self.join(a, b)] = weight

    def regions(self):
        """The regions in the order of their first vertex, and the number of each vertex's region."""
        ordered = sorted(self.members, key=lambda c: min(self.members[c]))
        return ordered, [ordered.index(c) for c in self.of]


def pixel_edges(planes):
    height, width, _ = planes.shape
    edges = []
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, -1), (1, 0), (1, 1)):
                if y + dy < height and 0 <= x + dx < width:
                    squared = int(((planes[y, x] - planes[y + dy, x + dx]) ** 2).sum())
                    edges.append((math.isqrt(squared), y * width + x, (y + dy) * width + x + dx))
    return sorted(edges, key=lambda edge: edge[0])  # stable


def lightest(edges, number):
    pairs = {}
    for weight, p, q in edges:
        pair = tuple(sorted((number[p], number[q])))
        if pair[0] != pair[1]:
            pairs.setdefault(pair, weight)
    return [(weight, *pair) for pair, weight in pairs.items()]


def histogram(planes, mask):
    height, width, channels = planes.shape
    colour, texture = np.zeros((channels, 25), int), np.zeros((channels, 8, 10), int)
    samples = 0
    for y in range(0, height, 2):
        for x in range(0, width, 2):
            if not mask[y, x]:
                continue
            samples += 1
            near = planes[np.clip([y - 1, y, y + 1], 0, height - 1)][:, np.clip([x - 1, x, x + 1], 0, width - 1)]
            scharr = np.array([[-3, 0, 3], [-10, 0, 10], [-3, 0, 3]])
            for c in range(channels):
                colour[c, planes[y, x, c] * 25 // 2048] += 1
                dx, dy = (near[..., c] * scharr).sum(), (near[..., c] * scharr.T).sum()
                for i, (side, scale) in enumerate([(dx, 256), (dy, 256), (dx + dy, 181), (dx - dy, 181)]):
                    texture[c, 2 * i + (side < 0), min(abs(side) * scale // 256 // 1024, 9)] += 1
                    texture[c, 2 * i + (side >= 0), 0] += 1
    samples = max(samples, 1) * channels
    return np.concatenate([colour.ravel() * ONE // samples, texture.ravel() * ONE // (8 * samples)])


def around(boxes):
    boxes = np.array(boxes)
    return [*boxes[:, :2].min(0), *boxes[:, 2:].max(0)]


def segmentations(planes, ks, min_size):
    """For each k: sizes, boxes, histograms of the regions and the set of touching pairs."""
    height, width, _ = planes.shape
    edges = pixel_edges(planes)
    partition = Partition([1] * height * width, [0] * height * width)
    partition.segment(edges, ks[0] * 8)
    for _, p, q in edges:
        a, b = partition.of[p], partition.of[q]
        if a != b and min(partition.size[a], partition.size[b]) < min_size:
            partition.join(a, b)
    roots, number = partition.regions()
    labels = np.array(number).reshape(height, width)
    ys, xs = np.mgrid[:height, :width]
    masks = [labels == r for r in range(len(roots))]
    boxes = [[xs[m].min(), ys[m].min(), xs[m].max() + 1, ys[m].max() + 1] for m in masks]
    histograms = [histogram(planes, m) for m in masks]
    sizes, heaviest = [partition.size[r] for r in roots], [partition.heaviest[r] for r in roots]
    edges = lightest(edges, number)
    yield sizes, boxes, histograms, {(a, b) for _, a, b in edges}
    for k in ks[1:]:
        partition = Partition(sizes, heaviest)
        partition.segment(edges, k * 8)
        roots, number = partition.regions()
        members = [sorted(partition.members[r]) for r in roots]
        boxes = [around([boxes[i] for i in m]) for m in members]
        histograms = [sum(sizes[i] * histograms[i] for i in m) // sum(sizes[i] for i in m) for m in members]
        sizes, heaviest = [partition.size[r] for r in roots], [partition.heaviest[r] for r in roots]
        edges = lightest(edges, number)
        yield sizes, boxes, histograms, {(a, b) for _, a, b in edges}


def group(sizes, boxes, histograms, pairs, area, strategy, colour_bins):
    sizes, boxes, histograms, found = list(sizes), list(boxes), list(histograms), list(boxes)
    pairs = set(pairs)

    def similarity(pair):
        a, b = pair
        size = sizes[a] + sizes[b]
        x1, y1, x2, y2 = around([boxes[a], boxes[b]])
        shared = np.minimum(histograms[a], histograms[b])
        return (
            strategy.colour * shared[:colour_bins].sum()
            + strategy.texture * shared[colour_bins:].sum()
            + strategy.size * (ONE - size * ONE // area)
            + strategy.fill * (ONE - ((x2 - x1) * (y2 - y1) - size) * ONE // area)
        )

    while pairs:
        a, b = max(sorted(pairs), key=similarity)  # of equals the first
        boxes[a] = around([boxes[a], boxes[b]])
        histograms[a] = (sizes[a] * histograms[a] + sizes[b] * histograms[b]) // (sizes[a] + sizes[b])
        sizes[a] += sizes[b]
        found.append(boxes[a])
        renamed = {tuple(sorted(a if r == b else r for r in pair)) for pair in pairs}
        pairs = {pair for pair in renamed if pair[0] != pair[1]}
    return np.array(found)


def hierarchies_of(image, space, mode):
    """Boxes of every hierarchy of an (H, W, 3) image in one colour space, as the tests make them with `search`."""
    height, width, _ = image.shape
    rgb = smooth(image)
    planes = np.array([[SPACES[space](*map(int, colour)) for colour in row] for row in rgb])
    hierarchies = []
    for sizes, boxes, histograms, pairs in segmentations(planes, mode.ks, mode.min_size):
        for strategy in mode.strategies:
            bins = planes.shape[2] * 25
            hierarchies.append(group(sizes, boxes, histograms, pairs, height * width, strategy, bins))
    return hierarchies
