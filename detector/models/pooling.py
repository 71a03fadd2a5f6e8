"""Pooling of RoIs from the maps of a backbone: (features, rois) -> (R, C, h, w)."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from detector.roi_pool import RoIPool


class RoIPoolOnMap(RoIPool):
    """RoI pooling that gives a RoI beyond the last row or column of the map the values there, where the operator gives
    zeros.

    A thin proposal at the lower or right border of an image rounds to a row or column that the map does not have.
    """

    def forward(self, features: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        assert isinstance(rois, Tensor)
        return super().forward(features, onto_map(rois, features.shape[2:], 1 / self.spatial_scale))


def onto_map(rois: Tensor, map_hw: Sequence[int], stride: float) -> Tensor:
    """The RoIs (R, 5), with those moved to the last column (row) whose first corner rounds to one beyond it.

    RoIs that are not finite stay, for the operator to reject.
    """
    image, *corners = rois.unbind(dim=1)
    for axis, cells in enumerate((map_hw[1], map_hw[0])):
        low, high = corners[axis], corners[axis + 2]
        beyond = low.isfinite() & high.isfinite() & (low >= (cells - 0.5) * stride)
        corners[axis] = torch.where(beyond, (cells - 1) * stride, low)
        corners[axis + 2] = torch.where(beyond, (cells - 1) * stride, high)
    return torch.stack([image, *corners], dim=1)


class RoIAlign(nn.Module):
    """RoI Align (He et al. 2017). Features and result are float32.

    With the options of torchvision's detectors: two samples per bin side, corners not shifted. Aligned, with those of
    detectron2: corners shifted by half a cell, and as many samples as the bin side has cells, rounded up.
    """

    def __init__(self, output_size: int, spatial_scale: float, aligned: bool = False) -> None:
        super().__init__()
        self.output_size, self.spatial_scale, self.aligned = output_size, spatial_scale, aligned
        self.sampling_ratio = 0 if aligned else 2

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):  # it would make RoIs bfloat16 too
            return self.pool(features.float(), rois)

    def pool(self, features: Tensor, rois: Tensor) -> Tensor:
        """The same for float32 features outside autocast."""
        size, scale = self.output_size, self.spatial_scale
        return roi_align(features, rois, size, scale, self.sampling_ratio, self.aligned)


class PyramidPooling(nn.Module):
    """Pools each RoI from one level of a feature pyramid, by its size (Lin et al. 2017, equation 1).

    A RoI of 224 x 224 pixels is pooled from the map of stride 16, one of half that side from the map of stride 8.
    """

    def __init__(self, pools: Sequence[nn.Module]) -> None:
        super().__init__()
        self.pools = nn.ModuleList(pools)  # of the levels with stride 4, 8, ...

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        levels = levels_of(rois, len(self.pools))
        order = levels.argsort(stable=True)
        counts = (levels == torch.arange(len(self.pools), device=levels.device)[:, None]).sum(dim=1).tolist()
        parts = rois[order].split(counts)
        pooled = [pool(maps, part) for pool, maps, part in zip(self.pools, features, parts, strict=True)]
        return torch.cat(pooled)[order.argsort()]  # in the order of `rois`


def levels_of(rois: Tensor, levels: int) -> Tensor:
    """The level (R,), from 0 for stride 4, of each RoI (R, 5)."""
    width, height = rois[:, 3] - rois[:, 1], rois[:, 4] - rois[:, 2]
    sides = (width * height).sqrt()
    # 1e-6 as in torchvision and detectron2: rounding does not move a RoI of exactly 224 pixels down.
    return torch.floor(2 + torch.log2(sides / 224) + 1e-6).clamp(0, levels - 1).to(torch.int64)


POOLINGS: dict[str, Callable[[int, float], nn.Module]] = {
    "roi_pool": RoIPoolOnMap,
    "roi_align": RoIAlign,
    "roi_align_v2": partial(RoIAlign, aligned=True),
}
