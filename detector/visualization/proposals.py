"""Figures of proposals on an image: by rank, with the best one of each object, and how their regions grow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from detector.box_arrays import box_iou_array
from detector.selective_search.colour import LEVEL, smooth, to_space
from detector.selective_search.segmentation import segment, sorted_edges
from detector.visualization.detection import add_boxes, add_caption, pale
from detector.visualization.drawing import COLOURS, class_colour
from detector.visualization.style import INK, RANK_MAP, new_figure, show_image, styled

LEVEL_KS = (75, 300, 1200, 4800)  # of the segmentations shown
MIN_REGION_PX = 100
MANY_OBJECTS = 8  # more have short captions


@dataclass(frozen=True)
class Best:
    """The proposal with the highest IoU for one object."""

    label: int
    rank: int  # from 1
    iou: float


def best_proposals(gt_boxes: np.ndarray, gt_labels: np.ndarray, proposals: np.ndarray) -> list[Best]:
    """The best proposal of each object (G, 4); the first one of equals. Empty without proposals."""
    if not len(proposals):
        return []
    iou = box_iou_array(gt_boxes, proposals)
    rows = zip(gt_labels.tolist(), iou.argmax(axis=1).tolist(), iou.max(axis=1).tolist(), strict=True)
    return [Best(label, rank + 1, value) for label, rank, value in rows]


@styled
def draw_proposals(
    image: np.ndarray,
    proposals: np.ndarray,
    shown: int,
    gt_boxes: np.ndarray | None = None,
    gt_labels: np.ndarray | None = None,
    classes: Sequence[str] = (),
) -> tuple[Figure, list[Best]]:
    """The first `shown` proposals (P, 4), best first, coloured by rank; if there are objects, a panel with these too.

    Returns the best proposal of each object, as drawn.
    """
    num_panels = 1 if gt_boxes is None else 2
    height, width = image.shape[:2]
    figure = new_figure(6 * num_panels, min(max(5.4 * height / width + 1.1, 3), 14))
    panels = figure.subplots(1, num_panels, squeeze=False)[0]
    first = proposals[:shown]
    rank = Normalize(0, np.log10(max(len(first), 2)))  # of log10(rank): the best ones differ most
    colours = matplotlib.colormaps[RANK_MAP](rank(np.log10(np.arange(len(first)) + 1)))
    show_image(panels[0], pale(image), f"The first {len(first)} of {len(proposals)} proposals")
    widths = np.linspace(3, 0.8, len(first))  # the best ones wide, and on top
    add_boxes(panels[0], first[::-1], colours[::-1], widths[::-1], 0.9)
    scale = figure.colorbar(ScalarMappable(rank, RANK_MAP), ax=panels[0], location="bottom", shrink=0.7, aspect=40)
    ticks = [tick for tick in (1, 3, 10, 30, 100, 300, 1000, 3000, 10000) if tick <= max(len(first), 2)]
    scale.set_ticks(np.log10(ticks).tolist(), labels=[str(tick) for tick in ticks])
    scale.set_label("rank of the proposal")
    best: list[Best] = []
    if gt_boxes is not None and gt_labels is not None:
        best = best_proposals(gt_boxes, gt_labels, proposals)
        many = len(best) > MANY_OBJECTS
        title = (
            "Objects (dashed), best proposals: IoU, rank" if many else "Objects (dashed), and the best proposal of each"
        )
        show_image(panels[1], pale(image), title)
        add_boxes(panels[1], gt_boxes, [INK], 2.5, style="--")
        for found in best:
            box, colour = proposals[found.rank - 1], class_colour(found.label)
            add_boxes(panels[1], box[None], [colour], 2.5)
            text = f"{classes[found.label - 1]}: IoU {found.iou:.2f}, rank {found.rank}"
            add_caption(panels[1], box, f"{found.iou:.2f}, {found.rank}" if many else text, colour)
    return figure, best


@styled
def draw_recall(result: Mapping) -> Figure:
    """Recall over the number of proposals, at several IoU thresholds; `result` as `score_recall` returns it."""
    figure = new_figure(7.5, 4.8)
    axes = figure.subplots()
    group = result["groups"]["all"]
    keys = [key for key in group["recall"] if key != "all" and float(key) <= result["boxes_per_image"]]
    numbers = [*map(float, keys), result["boxes_per_image"]]
    for index, threshold in enumerate(result["iou"]):
        if index % 2 == 0 and group["objects"]:
            values = [group["recall"][key][index] for key in [*keys, "all"]]
            axes.plot(numbers, values, marker="o", linewidth=2.5, label=f"IoU {threshold:.1f}: {values[-1]:.2f}")
    axes.set(
        xscale="log", xlabel="proposals per image, best first", ylabel="fraction of the objects found", ylim=(0, 1.03)
    )
    axes.set_xticks(numbers, [f"{count:.0f}" for count in numbers])
    axes.set_xticks([], minor=True)
    axes.set_title(f"Recall of {group['objects']} objects")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(title="found by all proposals, at", loc="lower right", frameon=True)
    return figure


@styled
def draw_hierarchy(image: np.ndarray, proposals: np.ndarray, shown: int) -> tuple[Figure, dict[int, int]]:
    """The image, its segmentations with growing k in their mean colours, and the first boxes.

    Returns the number of regions by k.
    """
    height, width = image.shape[:2]
    figure = new_figure(11, min(max(7.3 * height / width + 1, 4), 16))
    panels = figure.subplots(2, 3).flat
    show_image(panels[0], image, "image")
    planes = to_space(smooth(image), "lab")
    edges, ends = sorted_edges(planes)
    counts = {}
    for axes, k in zip(panels[1:5], LEVEL_KS, strict=True):
        labels = segment(edges, ends, image.shape[:2], k * LEVEL, MIN_REGION_PX)[0]
        counts[k] = int(labels.max()) + 1
        place = {LEVEL_KS[0]: " (finest)", LEVEL_KS[-1]: " (coarsest)"}.get(k, "")
        show_image(axes, mean_colours(image, labels), f"k = {k}{place}: {counts[k]} regions")
    show_image(panels[5], pale(image), f"the {min(shown, len(proposals))} boxes ranked first")
    add_boxes(panels[5], proposals[:shown], COLOURS, 1.8)
    return figure, counts


def mean_colours(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each region (H, W labels) in its mean colour, with white lines between regions."""
    total = np.stack([np.bincount(labels.ravel(), image[..., c].ravel()) for c in range(3)], axis=1)
    picture = (total / np.bincount(labels.ravel())[:, None])[labels].astype(np.uint8)
    picture[:, 1:][labels[:, 1:] != labels[:, :-1]] = 255
    picture[1:][labels[1:] != labels[:-1]] = 255
    return picture
