"""The shared feature map of an image, one RoI pooled from it, and where its maxima come from.

Writes features.png and .svg: the proposal of the detection with the highest score (or of another one), the channels
that respond to it most, their pooled values, and over the image the cells that gave the maxima of all channels. Prints
the time of one pass for all proposals, and the time with one pass per proposal.
"""

import argparse
from collections.abc import Sequence
from functools import partial

import torch

from detector.errors import InputError
from detector.models.pooling import PyramidPooling, levels_of
from detector.roi_pool import RoIPool
from detector.visualization.features import draw_features, pool_roi
from detector.visualization.style import save_figure
from scripts._measure import seconds
from scripts.visualizations import _trained

SINGLE_PASSES = 3  # measured; all others would take as long


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _trained.add_arguments(parser)
    parser.add_argument(
        "--detection", type=int, default=1, help="number of the detection, by score (default: %(default)s, the best)"
    )


def run(arguments: argparse.Namespace) -> None:
    seen = _trained.forward(arguments)
    if not 1 <= arguments.detection <= max(len(seen.kept), 1):
        raise InputError(f"--detection: {arguments.detection} must be from 1 to {len(seen.kept)}, the detections found")
    if not len(seen.kept):
        raise InputError(f"{arguments.image}: no detection above {arguments.score_threshold}: lower --score-threshold")
    best = seen.kept[arguments.detection - 1]
    found = seen.candidates
    _trained.require_one_scale(seen.settings)
    row = int(found.rows[best])
    layer, features = pooling_of(seen.model.roi_pool, seen.features, seen.rois[row : row + 1])
    box = seen.batch.proposals[0][found.rows[best]].numpy()
    size = layer.output_size
    output_hw = (size, size) if isinstance(size, int) else size
    roi = pool_roi(features, box, output_hw, layer.spatial_scale)
    caption = f"RoI (blue), {seen.classes[found.labels[best] - 1]} {seen.scores[arguments.detection - 1]:.2f} (red)"
    save_figure(arguments.out, "features", draw_features(seen.image, roi, caption, found.boxes[best].numpy()))
    print(sharing(seen))


def pooling_of(
    layer: torch.nn.Module, features: torch.Tensor | Sequence[torch.Tensor], roi: torch.Tensor
) -> tuple[RoIPool, torch.Tensor]:
    """The layer that pools this RoI (1, 5), and the map (1, C, H, W) it pools from: one level of a feature pyramid."""
    if isinstance(layer, PyramidPooling):
        level = int(levels_of(roi, len(layer.pools)))
        layer, features = layer.pools[level], features[level]
    if not isinstance(layer, RoIPool):
        raise InputError("the network pools with RoI Align, which takes no maxima: this picture needs RoI pooling")
    assert isinstance(features, torch.Tensor)
    return layer, features


@torch.no_grad()
def sharing(seen: _trained.Pass) -> str:
    """The time of one pass for all proposals, and the time with one pass per proposal, as text."""
    count = len(seen.rois)
    together = seconds(partial(outputs, seen, seen.rois))
    alone = min(seconds(partial(outputs, seen, rois)) for rois in seen.rois[:SINGLE_PASSES].split(1))
    return (
        f"one pass for {count} RoIs: {together:.2f} s; a pass for each: {count} x {alone:.3f} s = {count * alone:.0f} s"
    )


def outputs(seen: _trained.Pass, rois: torch.Tensor) -> list[torch.Tensor]:
    """Those of a forward pass with these RoIs, on the CPU."""
    return [output.float().cpu() for output in seen.compute.forward(seen.model, seen.batch.images, rois)]
