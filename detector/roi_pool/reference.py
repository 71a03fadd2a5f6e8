"""Reference implementation of RoI pooling, which specifies the results of the fast kernels.

All results, including ties and rounding, equal those of Caffe's Fast R-CNN and torchvision, with one difference:
features that are not finite are kept (theirs turn NaN and -inf into -3.4e38).
This implementation also runs on devices without a kernel.
"""

import torch
from torch import Tensor

# Rounded coordinates are clamped to this range, so that their differences fit 32 bits in every kernel.
CELL_LIMIT = 2**29


def argmax_dtype(height: int, width: int) -> torch.dtype:
    """uint16 if it can index every cell, else int32; the largest value means "no cell" (an empty bin)."""
    return torch.uint16 if height * width < torch.iinfo(torch.uint16).max else torch.int32


def coordinate_dtype(features: Tensor) -> torch.dtype:
    """Coordinates are float32 for features of any precision, except float64 for float64 features."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def raise_bad_roi(index: int, roi: list[float], batch_size: int) -> None:
    """Raise ValueError for the RoI in this row, with its five values."""
    raise ValueError(
        f"rois[{index}] is {roi}: coordinates must be finite and the batch index at least 0 and "
        f"below {batch_size}, the number of feature maps"
    )


def check_rois(rois: Tensor, batch_size: int) -> None:
    """Raise ValueError for the first RoI of (R,5) with a value that is not finite or a batch index out of range."""
    index = rois[:, 0].trunc()
    bad = ~(rois.isfinite().all(dim=1) & (index >= 0) & (index < batch_size))
    if bad.any():
        first = int(bad.to(torch.uint8).argmax())
        raise_bad_roi(first, rois[first].tolist(), batch_size)


def round_half_away(values: Tensor) -> Tensor:
    """C's round(), as in the kernels; torch.round rounds halves to even."""
    magnitude = values.abs()
    whole = magnitude.floor()
    return (whole + (magnitude - whole >= 0.5)).copysign(values).clamp(-CELL_LIMIT, CELL_LIMIT).long()


def bin_edges(start: Tensor, end: Tensor, bins: int, limit: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """First cell and one past the last of each bin along one axis: (R,) inclusive cells to (R, bins) edges.

    Neighbouring bins share a cell if the size is not divisible. In float32 the last bin extends one cell beyond the
    RoI at some sizes (7 bins over 57 cells): this is kept, since every network in use was trained with it.
    """
    size = (end - start + 1).clamp(min=1).to(dtype)[:, None]
    size = size / size.new_tensor(bins)  # a tensor: CUDA multiplies by the rounded reciprocal of a Python number
    index = torch.arange(bins + 1, dtype=dtype, device=start.device)
    first = (index[:-1] * size).floor().long() + start[:, None]
    past = (index[1:] * size).ceil().long() + start[:, None]
    return first.clamp(0, limit), past.clamp(0, limit)


def forward(features: Tensor, rois: Tensor, pooled_hw: tuple[int, int], spatial_scale: float) -> tuple[Tensor, Tensor]:
    """Pool (B,C,H,W) features over (R,5) RoIs to (R,C,*pooled_hw), and the cell index of each maximum."""
    _, channels, height, width = features.shape
    rois = rois.to(coordinate_dtype(features))
    x1, y1, x2, y2 = round_half_away(rois[:, 1:] * rois.new_tensor(spatial_scale)).unbind(1)
    tops, bottoms = (edges.tolist() for edges in bin_edges(y1, y2, pooled_hw[0], height, rois.dtype))
    lefts, rights = (edges.tolist() for edges in bin_edges(x1, x2, pooled_hw[1], width, rois.dtype))

    # (R, ph, pw, C): channels_last memory format.
    pooled = features.new_zeros((len(rois), *pooled_hw, channels))
    cells = torch.arange(height * width, device=features.device).view(height, width)
    empty = torch.iinfo(argmax_dtype(height, width)).max
    argmax = torch.full(pooled.shape, empty, dtype=torch.int64, device=features.device)
    for r, image in enumerate(rois[:, 0].long().tolist()):
        for i, (top, bottom) in enumerate(zip(tops[r], bottoms[r], strict=True)):
            for j, (left, right) in enumerate(zip(lefts[r], rights[r], strict=True)):
                if top < bottom and left < right:  # else empty: 0, and no gradient
                    window = features[image, :, top:bottom, left:right].flatten(1)
                    pooled[r, i, j], position = window.max(dim=1)
                    argmax[r, i, j] = cells[top:bottom, left:right].flatten()[position]
    return pooled.permute(0, 3, 1, 2), argmax.to(argmax_dtype(height, width)).permute(0, 3, 1, 2)


def backward(grad: Tensor, rois: Tensor, argmax: Tensor, batch_size: int, height: int, width: int) -> Tensor:
    """Add the gradient (R,C,ph,pw) of each pooled value to the cell of its maximum: (B,C,H,W)."""
    channels = grad.shape[1]
    total = torch.float64 if grad.dtype == torch.float64 else torch.float32
    cell = argmax.long()
    taken = cell != torch.iinfo(argmax.dtype).max
    image = rois[:, 0].to(coordinate_dtype(grad)).long().view(-1, 1, 1, 1).expand_as(cell)
    channel = torch.arange(channels, device=grad.device).view(1, -1, 1, 1).expand_as(cell)
    sums = torch.zeros((batch_size, height * width, channels), dtype=total, device=grad.device)
    sums.index_put_((image[taken], cell[taken], channel[taken]), grad[taken].to(total), accumulate=True)
    return sums.to(grad.dtype).view(batch_size, height, width, channels).permute(0, 3, 1, 2)
