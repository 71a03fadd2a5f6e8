"""Public function and module of RoI pooling, with argument checks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detector.roi_pool import ops
from detector.roi_pool.reference import round_half_away


def roi_pool(
    features: Tensor, rois: Tensor | Sequence[Tensor], output_size: int | tuple[int, int], spatial_scale: float = 1.0
) -> Tensor:
    """Max-pool each region of interest to a fixed size (Fast R-CNN, section 2.1).

    The corners of a RoI are multiplied by `spatial_scale` and rounded (halves away from zero) to cells. Both corner
    cells are included, so a RoI is x2 - x1 + 1 cells wide, and at least one. Bin i of n covers the cells from
    floor(i * size / n) to ceil((i + 1) * size / n), clipped to the map. A bin without cells (a RoI outside the map) is
    0 and gets no gradient; an inverted RoI is one cell wide. Of equal values the first in row-major order gets the
    gradient. In float32 and float64 the values are bitwise identical to `torchvision.ops.roi_pool`, except that
    features that are not finite are kept.

    Args:
        features: (B, C, H, W) feature maps in any memory format; float32, float64, bfloat16 or float16.
            channels_last maps are pooled without a copy.
        rois: (R, 5) rows of [batch index, x1, y1, x2, y2] in the frame of the network's input image (pixels),
            or one (P_i, 4) tensor of boxes for each of the B images. Any dtype; used as float32 (float64 for float64
            features), also under autocast. They get no gradient.
        output_size: (height, width) of the result, or one number for both.
        spatial_scale: scale from the frame of the RoIs to feature cells: 1 / stride of the backbone.

    Returns:
        (R, C, height, width) in the dtype of the features and in channels_last memory format, so that
        `pooled.permute(0, 2, 3, 1).flatten(1)` makes no copy. The argmax is computed only if a gradient is needed.

    Raises:
        ValueError: for an invalid shape, size or scale; except on CUDA also for a batch index out of range or a
            coordinate that is not finite, with row and values of the RoI. On CUDA, where reading them back would
            synchronize the stream, such a RoI is pooled to NaN.
    """
    pooled_height, pooled_width = (output_size, output_size) if isinstance(output_size, int) else output_size
    if features.dim() != 4 or not features.is_floating_point():
        raise ValueError(f"features must be floating point (B, C, H, W), got {features.dtype} {tuple(features.shape)}")
    if pooled_height < 1 or pooled_width < 1:
        raise ValueError(f"output_size must be at least 1, got {(pooled_height, pooled_width)}")
    if not (math.isfinite(spatial_scale) and spatial_scale > 0):
        raise ValueError(f"spatial_scale must be a finite number above 0, got {spatial_scale}")
    if not isinstance(rois, Tensor):
        rois = _stack_boxes(rois, features)
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(
            f"rois must be (R, 5) rows of [batch index, x1, y1, x2, y2] or a list with one (P, 4) tensor of "
            f"boxes per image, got a tensor of shape {tuple(rois.shape)}"
        )
    if rois.device != features.device:
        raise ValueError(f"rois are on {rois.device}, but features on {features.device}")
    with_argmax = torch.is_grad_enabled() and features.requires_grad
    pooled, _ = ops.roi_pool(features, rois, pooled_height, pooled_width, float(spatial_scale), with_argmax)
    return pooled


def distinct_rois(rois: Tensor, spatial_scale: float) -> tuple[Tensor, Tensor]:
    """RoIs (D, 5) with distinct corner cells, and for each of the RoIs (R, 5) the index (R,) of the one with its cells.

    RoIs with the same corner cells are pooled to the same values.
    """
    cells = round_half_away(rois * rois.new_tensor([1.0, *[spatial_scale] * 4]))
    found, index = cells.unique(dim=0, return_inverse=True)
    first = index.new_full((len(found),), len(rois))
    first.scatter_reduce_(0, index, torch.arange(len(rois), device=rois.device), "amin")
    return rois[first], index


def _stack_boxes(boxes: Sequence[Tensor], features: Tensor) -> Tensor:
    """One (P_i, 4) tensor per image -> (sum of P_i, 5) with the batch index in the first column."""
    if len(boxes) != features.shape[0]:
        raise ValueError(f"rois is a list of {len(boxes)} tensors, but there are {features.shape[0]} images")
    for image, image_boxes in enumerate(boxes):
        if image_boxes.dim() != 2 or image_boxes.shape[1] != 4:
            raise ValueError(f"rois[{image}] must be (P, 4) boxes, got shape {tuple(image_boxes.shape)}")
    return torch.cat([nn.functional.pad(image_boxes, (1, 0), value=image) for image, image_boxes in enumerate(boxes)])


class RoIPool(nn.Module):
    """Module version of `roi_pool`, `RoIPool(7, 1 / 16)(features, rois)`; see there for shapes, frame and errors."""

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, features: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return roi_pool(features, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"
