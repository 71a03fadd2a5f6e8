"""RoI pooling of one region of a single-channel map, with everything that a drawing of it needs.

Two rules divide a region of `size` cells into n sections. Section i of the kernels (Caffe, torchvision and this
program) extends from floor(i * size / n) up to ceil((i + 1) * size / n), so that neighbours share a cell if n does not
divide the size. The article "Region of Interest Pooling Explained" cuts at floor(i * size / n), without shared cells.
The edges come from `reference.bin_edges`, and the maxima from the operator.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detector.errors import InputError
from detector.roi_pool import layer, reference

# The feature map of the article, its region (x1, y1, x2, y2: both corner cells are included) and its output size.
ARTICLE_MAP = np.array(
    [
        [0.88, 0.44, 0.14, 0.16, 0.37, 0.77, 0.96, 0.27],
        [0.19, 0.45, 0.57, 0.16, 0.63, 0.29, 0.71, 0.70],
        [0.66, 0.26, 0.82, 0.64, 0.54, 0.73, 0.59, 0.26],
        [0.85, 0.34, 0.76, 0.84, 0.29, 0.75, 0.62, 0.25],
        [0.32, 0.74, 0.21, 0.39, 0.34, 0.03, 0.33, 0.48],
        [0.20, 0.14, 0.16, 0.13, 0.73, 0.65, 0.96, 0.32],
        [0.19, 0.69, 0.09, 0.86, 0.88, 0.07, 0.01, 0.48],
        [0.83, 0.24, 0.97, 0.04, 0.24, 0.35, 0.50, 0.91],
    ],
    dtype=np.float32,
)
ARTICLE_REGION, ARTICLE_OUTPUT_HW = (0.0, 3.0, 6.0, 7.0), (2, 2)
MAX_CELLS = 64  # per side of a map
MAX_BINS = 14  # per side of the output

Edges = tuple[tuple[int, int], ...]  # of each section along one axis: first cell and one past the last


@dataclass(frozen=True)
class Pooling:
    """A region of a map (H, W) pooled to (h, w)."""

    features: np.ndarray  # (H, W) float32
    region: tuple[int, int, int, int]  # cells x1, y1, x2, y2, both corners included; may extend beyond the map
    rows: Edges  # h
    columns: Edges  # w
    values: np.ndarray  # (h, w): the maximum of each section, 0 if it has no cell
    cells: np.ndarray  # (h, w, 2): row and column of the maximum, -1 if there is none
    overlapping: bool  # cut as the kernels do; else as the article does


def pool_overlapping(features: np.ndarray, region: Sequence[float], output_hw: tuple[int, int]) -> Pooling:
    """Pool a region (x1, y1, x2, y2) of a map (H, W) as the kernels do. Raises InputError for invalid input."""
    image, roi = _inputs(features, region, output_hw)
    pooled, argmax = layer.operator(image, roi, *output_hw, 1.0, True)
    return _pooling(image, roi, output_hw, pooled[0, 0], argmax[0, 0], overlapping=True)


def pool_disjoint(features: np.ndarray, region: Sequence[float], output_hw: tuple[int, int]) -> Pooling | None:
    """The same with the sections of the article, each pooled as a separate RoI; None if one has no cell."""
    image, roi = _inputs(features, region, output_hw)
    rows, columns = _edges(image, roi, output_hw, overlapping=False)
    if not all(first < past for first, past in (*rows, *columns)):
        return None
    rois = [[0, left, top, right - 1, bottom - 1] for top, bottom in rows for left, right in columns]
    pooled, argmax = layer.operator(image, torch.tensor(rois, dtype=torch.float32), 1, 1, 1.0, True)
    return _pooling(image, roi, output_hw, pooled.view(output_hw), argmax.view(output_hw), overlapping=False)


def _inputs(features: np.ndarray, region: Sequence[float], output_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    if features.ndim != 2 or not 1 <= min(features.shape, default=0) <= max(features.shape) <= MAX_CELLS:
        raise InputError(f"the map has the shape {features.shape}: it must be (H, W), each from 1 to {MAX_CELLS}")
    if features.dtype.kind not in "fiu" or not (np.abs(features) <= np.finfo(np.float32).max).all():
        raise InputError("the map must hold finite numbers of the range of float32 only")
    if not all(1 <= bins <= MAX_BINS for bins in output_hw):
        raise InputError(f"the output size {output_hw[0]} {output_hw[1]} must be from 1 to {MAX_BINS} each")
    if not np.isfinite(region).all() or region[2] < region[0] or region[3] < region[1]:
        raise InputError(f"the region {' '.join(map(str, region))} must be x1 y1 x2 y2 with x1 <= x2 and y1 <= y2")
    height, width = features.shape
    if region[0] > width - 1 or region[1] > height - 1 or region[2] < 0 or region[3] < 0:
        raise InputError(f"the region {' '.join(map(str, region))} lies outside the map of {height} x {width} cells")
    image = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))[None, None]
    return image, torch.tensor([[0.0, *region]], dtype=torch.float32)


def _edges(image: Tensor, roi: Tensor, output_hw: tuple[int, int], overlapping: bool) -> tuple[Edges, Edges]:
    """Edges of the sections along rows and columns. The article cuts at the first edges of the kernels."""
    x1, y1, x2, y2 = reference.round_half_away(roi[:, 1:]).unbind(1)
    found = []
    for start, end, bins, limit in ((y1, y2, output_hw[0], image.shape[2]), (x1, x2, output_hw[1], image.shape[3])):
        first, past = (edges[0].tolist() for edges in reference.bin_edges(start, end, bins, limit, torch.float32))
        if not overlapping:
            past = [*first[1:], min(int(end) + 1, limit)]
        found.append(tuple(zip(first, past, strict=True)))
    return found[0], found[1]


def _pooling(
    image: Tensor, roi: Tensor, output_hw: tuple[int, int], values: Tensor, argmax: Tensor, overlapping: bool
) -> Pooling:
    height, width = image.shape[2:]
    cell = argmax.long()
    cells = torch.stack([cell // width, cell % width], dim=2)
    cells[cell >= height * width] = -1
    x1, y1, x2, y2 = reference.round_half_away(roi[0, 1:]).tolist()
    rows, columns = _edges(image, roi, output_hw, overlapping)
    return Pooling(image[0, 0].numpy(), (x1, y1, x2, y2), rows, columns, values.numpy(), cells.numpy(), overlapping)
