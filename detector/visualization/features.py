"""Figures of the shared feature map: its strongest channels, one RoI pooled from it, and the cells of its maxima."""

from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from detector.roi_pool import layer, reference
from detector.visualization.detection import add_boxes, pale
from detector.visualization.drawing import COLOURS
from detector.visualization.style import HEAT_MAP, new_figure, show_image, styled

CHANNELS_SHOWN = 3


@dataclass(frozen=True)
class PooledRoi:
    """One RoI pooled from a feature map (C, H, W)."""

    box: np.ndarray  # (4,) in pixels of the network frame
    cells: tuple[int, int, int, int]  # rounded to cells x1, y1, x2, y2, both corners included
    features: np.ndarray  # (C, H, W) float32
    pooled: np.ndarray  # (C, h, w) float32
    counts: np.ndarray  # (H, W): how many of the C * h * w maxima are in each cell
    stride: float  # pixels per cell
    channels: np.ndarray  # those that respond to the RoI most: mean of its pooled values minus mean of the map


def pool_roi(features: Tensor, box: np.ndarray, output_hw: tuple[int, int], spatial_scale: float) -> PooledRoi:
    """Pool a box (4,) of the network frame from features (1, C, H, W), and find the cells of its maxima."""
    roi = torch.tensor([[0.0, *box.tolist()]], device=features.device)
    pooled, argmax = layer.operator(features, roi, *output_hw, spatial_scale, True)
    height, width = features.shape[2:]
    cells = argmax.long().flatten().cpu()
    counts = cells[cells < height * width].bincount(minlength=height * width).view(height, width)
    x1, y1, x2, y2 = reference.round_half_away(roi[0, 1:].cpu() * spatial_scale).tolist()
    response = pooled[0].float().mean(dim=(1, 2)) - features[0].float().mean(dim=(1, 2))
    channels = response.argsort(descending=True)[:CHANNELS_SHOWN].cpu().numpy()
    return PooledRoi(
        box, (x1, y1, x2, y2), features[0].float().cpu().numpy(), pooled[0].float().cpu().numpy(), counts.numpy(),
        1 / spatial_scale, channels,
    )  # fmt: skip


@styled
def draw_features(image: np.ndarray, roi: PooledRoi, caption: str, box: np.ndarray | None = None) -> Figure:
    """Two rows: the image and channels of its feature map; the cells of the maxima and the pooled channels.

    `box` is the detection that the RoI became, in the frame of the image (H, W, 3).
    """
    height, width = image.shape[:2]
    figure = new_figure(13, min(max(2 * 3.2 * height / width + 1.6, 5), 14))
    top, bottom = figure.subplots(2, CHANNELS_SHOWN + 1)
    show_image(top[0], pale(image), caption)
    add_boxes(top[0], roi.box[None], [COLOURS[0]], 2.5)
    if box is not None:
        add_boxes(top[0], box[None], [COLOURS[3]], 2.5)
    draw_cells(bottom[0], image, roi)
    for above, below, channel in zip(top[1:], bottom[1:], roi.channels.tolist(), strict=False):
        values = roi.features[channel]
        low, high = float(values.min()), float(values.max())
        above.imshow(values, cmap=HEAT_MAP, vmin=low, vmax=high)
        x1, y1, x2, y2 = roi.cells
        above.add_patch(
            Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1 + 1, y2 - y1 + 1, fill=False, edgecolor=COLOURS[5], linewidth=2.5)
        )
        above.set_title(f"Channel {channel} (bright: strong)")
        below.imshow(roi.pooled[channel], cmap=HEAT_MAP, vmin=low, vmax=high)
        below.set_title(f"The RoI in it, pooled to {roi.pooled.shape[1]} x {roi.pooled.shape[2]}")
        for axes in (above, below):
            axes.set_axis_off()
    for axes in top[1 + len(roi.channels) :].tolist() + bottom[1 + len(roi.channels) :].tolist():
        axes.set_axis_off()
    return figure


def draw_cells(axes: Axes, image: np.ndarray, roi: PooledRoi) -> None:
    """The cells that gave maxima, over the image: the more, the brighter."""
    show_image(axes, pale(image), "Cells of its maxima")
    shade = matplotlib.colormaps[HEAT_MAP](roi.counts / max(roi.counts.max(), 1))
    shade[..., 3] = np.where(roi.counts > 0, 0.8, 0)
    rows, columns = roi.counts.shape
    # Cell i is the pixels around i * stride: coordinates are rounded to the nearest cell.
    first, stride = -roi.stride / 2, roi.stride
    axes.imshow(shade, extent=(first, first + columns * stride, first + rows * stride, first), interpolation="nearest")
    add_boxes(axes, roi.box[None], [COLOURS[0]], 2.5)
    x1, y1, x2, y2 = roi.box.tolist()
    centre_x, centre_y, half = (x1 + x2) / 2, (y1 + y2) / 2, 0.7 * max(x2 - x1, y2 - y1) + 2 * stride
    height, width = image.shape[:2]
    left, right = max(centre_x - half, 0), min(centre_x + half, width)
    axes.set(xlim=(left, right), ylim=(min(centre_y + half, height), max(centre_y - half, 0)))
    count = " x ".join(map(str, roi.pooled.shape))
    axes.text(
        0, -0.02, f"{count} maxima;\nbright: many, up to {roi.counts.max()} in a cell", va="top", fontsize=11,
        transform=axes.transAxes,
    )  # fmt: skip
