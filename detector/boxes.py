"""Arithmetic on boxes (x1, y1, x2, y2) in continuous pixels, as tensors. box_arrays.py does the same on numpy
arrays.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Limits a decoded box to 62.5 times the size of its proposal, so that wild early predictions do not overflow.
MAX_LOG_RATIO = math.log(1000 / 16)


def areas(boxes: Tensor) -> Tensor:
    """Areas (N,) in square pixels of boxes (N, 4)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union, (N, M), of boxes (N, 4) and others (M, 4); 0 for boxes without area."""
    top_left = torch.maximum(boxes[:, None, :2], others[None, :, :2])  # (N, M, 2)
    bottom_right = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])  # (N, M, 2)
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=2)  # (N, M)
    union = areas(boxes)[:, None] + areas(others)[None, :] - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def clip(boxes: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """Clip boxes (..., 4) to an image of size (H, W)."""
    height, width = image_hw
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limit)


class BoxCoder:
    """Encodes target boxes as deltas relative to proposals, and decodes deltas.

    With centres (x, y) and sizes (w, h), proposal p and target t (Girshick et al. 2014, appendix C):

        dx = (t.x - p.x) / p.w / std[0]      dw = log(t.w / p.w) / std[2]
        dy = (t.y - p.y) / p.h / std[1]      dh = log(t.h / p.h) / std[3]

    Dividing by `std` gives targets of about unit variance (Fast R-CNN, section 2.3).
    """

    def __init__(self, std: Sequence[float]) -> None:
        self.std = tuple(std)

    def encode(self, targets: Tensor, proposals: Tensor) -> Tensor:
        """Deltas (N, 4) that map proposals (N, 4) to targets (N, 4); both must have a positive area."""
        target_xy, target_wh = _centre_and_size(targets)
        xy, wh = _centre_and_size(proposals)
        deltas = torch.cat([(target_xy - xy) / wh, torch.log(target_wh / wh)], dim=1)
        return deltas / self._std_like(deltas)

    def decode(self, deltas: Tensor, proposals: Tensor) -> Tensor:
        """Boxes (N, K, 4) from deltas (N, K, 4) and proposals (N, 4), in the proposals' frame.

        A box is at most 62.5 times as wide and as high as its proposal.
        """
        deltas = deltas * self._std_like(deltas)
        xy, wh = _centre_and_size(proposals)
        xy = xy[:, None] + deltas[..., :2] * wh[:, None]
        wh = wh[:, None] * deltas[..., 2:].clamp(max=MAX_LOG_RATIO).exp()
        return torch.cat([xy - wh / 2, xy + wh / 2], dim=-1)

    def _std_like(self, deltas: Tensor) -> Tensor:
        return torch.tensor(self.std, dtype=deltas.dtype).to(deltas.device, non_blocking=True)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]


def with_batch_index(boxes: Tensor, index: int) -> Tensor:
    """RoIs (P, 5) of boxes (P, 4) that belong to image `index` of the batch."""
    return torch.cat([boxes.new_full((len(boxes), 1), index), boxes], dim=1)
