"""Figures of the input of training: a sample under augmentation, and the RoIs sampled from a batch."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from detector.boxes import BoxCoder, box_iou
from detector.structures import Sample, TrainBatch
from detector.visualization.detection import add_boxes, add_caption, pale
from detector.visualization.drawing import class_colour
from detector.visualization.style import INK, RANK_MAP, new_figure, show_image, styled

PROPOSALS_SHOWN = 20  # in each augmented image, the first ones
COLUMNS = 3


@styled
def draw_augmentation(original: Sample, augmented: Sequence[Sample], classes: Sequence[str]) -> Figure:
    """A sample and augmented versions of it, with objects (thick, in class colours) and proposals (thin)."""
    samples = [original, *augmented]
    rows = -(-len(samples) // COLUMNS)
    height, width = original.image.shape[:2]
    figure = new_figure(12, min(rows * (4 * height / width + 0.4), 18))
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for number, (axes, sample) in enumerate(zip(panels, samples, strict=False)):
        show_image(axes, sample.image, f"augmented, {number}" if number else "image, resized")
        add_boxes(axes, sample.proposals[:PROPOSALS_SHOWN], ["white"], 0.8, 0.8)
        add_boxes(axes, sample.gt_boxes, [class_colour(label) for label in sample.gt_labels], 3)
        for box, label in zip(sample.gt_boxes, sample.gt_labels, strict=True):
            add_caption(axes, box, classes[label - 1], class_colour(label))
    for axes in panels[len(samples) :]:
        axes.set_axis_off()
    return figure


def roi_ious(batch: TrainBatch) -> np.ndarray:
    """(R,): the largest IoU of each sampled RoI with an object; 0 in an image without objects."""
    pairs = zip(batch.targets.rois[:, 1:].split(batch.roi_counts), batch.gt_boxes, strict=True)
    ious = [
        box_iou(boxes, torch.from_numpy(gt_boxes)).amax(dim=1) if len(gt_boxes) else torch.zeros(len(boxes))
        for boxes, gt_boxes in pairs
    ]
    return torch.cat(ious).numpy()


@styled
def draw_sampled_rois(
    batch: TrainBatch, coder: BoxCoder, classes: Sequence[str], max_images: int = 2
) -> tuple[Figure, list[str]]:
    """For each image of a batch its foreground RoIs with their objects, and its background RoIs coloured by IoU.

    Returns the captions of the objects: class, number of their RoIs, range of the IoU.
    """
    count = min(len(batch.image_ids), max_images)
    height, width = batch.images.shape[2:]
    inches = min(count * (5.9 * height / width + 0.45) + 0.9, 20)
    figure = new_figure(12, inches, arranged=False)  # training waits for it
    panels = figure.subplots(count, 2, squeeze=False)
    figure.subplots_adjust(0.01, 0.85 / inches, 0.99, 1 - 0.4 / inches, 0.03, 0.1)
    captions: list[str] = []
    for index, (left, right) in enumerate(panels):
        image = pale(batch.images[index].permute(1, 2, 0).numpy())
        mine, targets = batch.targets.rois[:, 0] == index, batch.targets
        boxes, labels, iou = targets.rois[mine, 1:], targets.labels[mine].numpy(), roi_ious(batch)[mine.numpy()]
        gt_boxes = coder.decode(targets.deltas[mine][:, None], boxes)[:, 0].numpy()
        foreground, background = np.flatnonzero(labels > 0), np.flatnonzero(labels == 0)
        rois = [values[foreground] for values in (boxes.numpy(), labels, iou)]
        captions += _draw_foreground(left, image, rois, gt_boxes[foreground], classes)
        background = background[np.argsort(iou[background], kind="stable")]
        show_image(right, image, f"{len(background)} background RoIs")
        add_boxes(right, boxes.numpy()[background], matplotlib.colormaps[RANK_MAP](iou[background] * 2), 1.5)
        add_boxes(right, batch.gt_boxes[index], [INK], 2, style="--")
    scale = ScalarMappable(Normalize(0, 0.5), RANK_MAP)
    label = "IoU of a background RoI with its nearest object (dashed)"
    bar = figure.add_axes((0.56, 0.6 / inches, 0.38, 0.12 / inches))
    figure.colorbar(scale, cax=bar, orientation="horizontal", label=label)
    return figure, captions


def _draw_foreground(
    axes: Axes, image: np.ndarray, rois: Sequence[np.ndarray], gt_boxes: np.ndarray, classes: Sequence[str]
) -> list[str]:
    """Foreground RoIs, with the object (F, 4) of each: boxes (F, 4), labels (F,) and IoU (F,)."""
    boxes, labels, iou = rois
    show_image(axes, image, f"{len(boxes)} foreground RoIs, and their objects (dashed)")
    add_boxes(axes, boxes, [class_colour(label) for label in labels], 2)
    captions = []
    for target in np.unique(gt_boxes.round(1), axis=0):
        own = np.flatnonzero((gt_boxes.round(1) == target).all(axis=1))
        add_boxes(axes, target[None], [INK], 2, style="--")
        name, low, high = classes[labels[own[0]] - 1], iou[own].min(), iou[own].max()
        text = (
            f"{name}: {len(own)} RoIs, IoU {low:.2f} to {high:.2f}" if len(own) > 1 else f"{name}: 1 RoI, IoU {low:.2f}"
        )
        captions.append(add_caption(axes, target, text, class_colour(labels[own[0]])))
    return captions
