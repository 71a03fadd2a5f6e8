"""Recall of proposals: the fraction of the objects that a proposal covers with a sufficient IoU.

The best proposal of each object counts, even if it is also the best one of another object (Hosang et al., *What makes
for effective detection proposals?*, PAMI 2016). The average recall (AR) is the mean over IoU 0.5, 0.55, ..., 0.95.
Difficult objects and crowds, which are not scored, are ignored.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detector.box_arrays import box_iou_array
from detector.evaluation.matching import within
from detector.evaluation.voc_ap import SIZES
from detector.runtime.files import write_atomically
from detector.structures import GroundTruth
from detector.visualization.style import png, styled

IOUS = np.arange(50, 100, 5) / 100
NUMBERS = (10, 30, 100, 300, 1000, 2000)  # of the first proposals of an image; then all


def score_recall(truths: Iterable[GroundTruth], proposals: Iterable[np.ndarray], classes: Sequence[str]) -> dict:
    """Recall of the proposals (P, 4) of each image.

    Returns {"iou": thresholds, "boxes_per_image": mean, "groups": {GROUP: {"objects": count, "AR": {NUMBER: AR},
    "recall": {NUMBER: recall at each threshold}}}} with the groups "all", SIZES and the classes, and NUMBER "10", ...,
    "all". A group without objects has None for each recall.
    """
    best, labels, areas, num_boxes = [], [], [], []
    for truth, boxes in zip(truths, proposals, strict=True):
        wanted = ~truth.difficult & ~truth.crowd
        best.append(_best_ious(truth.boxes[wanted], boxes))
        labels.append(truth.labels[wanted])
        areas.append(truth.areas[wanted])
        num_boxes.append(len(boxes))
    best_iou = np.concatenate([np.zeros((0, len(NUMBERS) + 1)), *best])  # (objects, numbers)
    label, area = np.concatenate([[0], *labels])[1:], np.concatenate([[0], *areas])[1:]
    groups = {"all": np.ones(len(area), dtype=bool)}
    groups |= {name: within(area, area_range) for name, area_range in SIZES.items()}
    groups |= {name: label == number for number, name in enumerate(classes, start=1)}
    return {
        "iou": IOUS.tolist(),
        "boxes_per_image": float(np.mean(num_boxes)) if num_boxes else 0.0,
        "groups": {name: _recall(best_iou[chosen]) for name, chosen in groups.items()},
    }


def _best_ious(gt_boxes: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(G, numbers): the IoU of each object with the best of the first 10, 30, ... and of all proposals."""
    if not len(gt_boxes) or not len(boxes):
        return np.zeros((len(gt_boxes), len(NUMBERS) + 1))
    so_far = np.maximum.accumulate(box_iou_array(gt_boxes, boxes), axis=1)
    return so_far[:, [min(number, len(boxes)) - 1 for number in (*NUMBERS, len(boxes))]]


def _recall(best_iou: np.ndarray) -> dict:
    keys = [*map(str, NUMBERS), "all"]
    if not len(best_iou):
        return {"objects": 0, "AR": dict.fromkeys(keys), "recall": dict.fromkeys(keys)}
    # float32 rounding can give slightly less than 0.5 for boxes with an IoU of 0.5
    recall = (best_iou[:, :, None] >= IOUS - 1e-6).mean(axis=0)  # (numbers, thresholds)
    return {
        "objects": len(best_iou),
        "AR": dict(zip(keys, recall.mean(axis=1).tolist(), strict=True)),
        "recall": dict(zip(keys, recall.tolist(), strict=True)),
    }


def recall_table(result: dict) -> str:
    """Two text tables: recall of all proposals by IoU, and average recall by number of proposals."""
    width = max(map(len, result["groups"]))
    shown = [0, 2, 4, 6, 8]  # every other threshold
    head = f"{'':{width}}  objects"
    by_iou = [head + "".join(f"   @{result['iou'][index]:.2f}" for index in shown) + f"{'AR':>8}"]
    by_number = [head + "".join(f"{key:>8}" for key in result["groups"]["all"]["AR"])]
    for name, group in result["groups"].items():
        row = f"{name:{width}}  {group['objects']:7}"
        recall = group["recall"]["all"]
        values = [None if recall is None else recall[index] for index in shown]
        by_iou.append(row + "".join(map(_cell, [*values, group["AR"]["all"]])))
        by_number.append(row + "".join(map(_cell, group["AR"].values())))
    first = f"all proposals, {result['boxes_per_image']:.0f} per image"
    return "\n".join([first, *by_iou, "", "average recall (AR) of the first proposals", *by_number])


def _cell(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:8.3f}"


@styled
def write_recall_plot(path: Path, result: dict) -> None:
    """Write a PNG: recall by IoU for each number of proposals, and average recall by number for each group."""
    figure, by_iou, by_number = _axes("recall")
    everything = result["groups"]["all"]
    for key, recall in everything["recall"].items():
        if recall is not None:
            by_iou.plot(result["iou"], recall, label=f"{key} (AR {everything['AR'][key]:.3f})")
    by_iou.set_title(f"the first proposals of {result['boxes_per_image']:.0f} per image")
    for name, group in result["groups"].items():
        if group["objects"]:
            style = "--" if name in SIZES else "-"
            by_number.plot(list(group["AR"]), list(group["AR"].values()), style, label=f"{name} ({group['objects']})")
    for axes in figure.axes:
        if axes.lines:
            axes.legend(fontsize="small")
    write_atomically(path, png(figure))


@styled
def write_recall_comparison(path: Path, results: Mapping[str, dict]) -> None:
    """Write a PNG with a line for each file of proposals: recall by IoU of all, and average recall by number."""
    figure, by_iou, by_number = _axes("recall of all proposals")
    for name, result in results.items():
        everything = result["groups"]["all"]
        if everything["objects"]:
            label = f"{name} (AR {everything['AR']['all']:.3f}, {result['boxes_per_image']:.0f} per image)"
            by_iou.plot(result["iou"], everything["recall"]["all"], label=label)
            by_number.plot(list(everything["AR"]), list(everything["AR"].values()))
    figure.legend(*by_iou.get_legend_handles_labels(), loc="outside lower left", fontsize="small")
    write_atomically(path, png(figure))


def _axes(recall: str) -> tuple[Figure, Axes, Axes]:
    figure = Figure(figsize=(10, 4), layout="constrained")
    by_iou, by_number = figure.subplots(1, 2)
    by_iou.set(xlabel="IoU", ylabel=recall, ylim=(0, 1.02))
    by_number.set(xlabel="proposals", ylabel="average recall, IoU 0.5 to 0.95", ylim=(0, 1.02))
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    return figure, by_iou, by_number
