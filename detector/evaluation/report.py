"""Score detections and write a report to a folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from detector.data.dataset import DetectionDataset
from detector.evaluation.coco_ap import score_coco
from detector.evaluation.counts import ThresholdCounts, confusion_matrix, count_by_threshold
from detector.evaluation.error_analysis import KINDS, Errors, error_costs, find_errors
from detector.evaluation.label_errors import find_label_errors, label_errors_csv
from detector.evaluation.matching import Curve, Matches, match
from detector.evaluation.pages.pictures import draw_errors, draw_suspects
from detector.evaluation.pages.report_page import report_page
from detector.evaluation.voc_ap import area_ap, score_sizes, score_voc
from detector.runtime.files import write_atomically
from detector.settings import Metric
from detector.structures import Detections
from detector.visualization.style import png, styled


@dataclass(frozen=True)
class Scores:
    """The result of scoring, all from one matching. Values at a single IoU threshold are at the first one."""

    metric: Metric
    matches: Matches
    metrics: dict  # of `score_detections`
    curves: dict[str, dict[str, Curve]]  # by IoU threshold ("0.50") and class
    errors: Errors
    counts: list[ThresholdCounts]  # of each class
    confusion: np.ndarray  # (K+1, K+1)


def score_detections(dataset: DetectionDataset, detections: Sequence[Detections], metric: Metric) -> Scores:
    """Score detections, one item per image.

    The metrics are `main` (name and value), `voc` from `score_voc`, `coco` from `score_coco`, `sizes` from
    `score_sizes` and `errors` by kind (count and cost in mAP), both at `overlap`, the first IoU threshold.
    """
    classes, truths = dataset.classes, [dataset.ground_truth(index) for index in range(len(dataset))]
    iou_threshold, devkit = metric.iou_thresholds[0], metric.devkit
    matches = match(truths, detections, len(classes))
    voc, curves = score_voc(matches, classes, metric.iou_thresholds, devkit)
    errors = find_errors(matches, iou_threshold, devkit)
    costs = error_costs(matches, errors)
    metrics: dict = {"main": {}, "voc": voc}
    if metric.coco:
        metrics["coco"] = score_coco(matches, classes)
    metrics["overlap"] = iou_threshold
    metrics["sizes"] = score_sizes(matches, classes, iou_threshold, devkit)
    metrics["errors"] = {kind: {"count": len(errors.of_kind(kind)), "cost": costs[kind]} for kind in KINDS}
    main = metric.main or f"11point@{iou_threshold:.2f}"
    metrics["main"] = {"metric": main, "value": metrics["coco"]["AP"] if main == "coco" else voc[main]["mAP"]}
    counts = count_by_threshold(matches, iou_threshold, devkit)
    confusion = confusion_matrix(matches, iou_threshold)
    return Scores(metric, matches, metrics, curves, errors, counts, confusion)


def write_report(
    folder: Path, dataset: DetectionDataset, scores: Scores, origin: dict[str, dict], page: bool = True
) -> dict:
    """Write `metrics.json`, `precision_recall/` and `errors.png` into `folder`; with `page`, `report.html` and
    `label_errors.csv` too.

    origin: `source`, what was scored, and `loss`, if they are known; they become part of the metrics.

    Returns the metrics of `scores` and `origin`; the name and the size of the dataset are added to `source`.
    """
    classes, curves = dataset.classes, scores.curves
    source = origin.get("source", {}) | {"data": dataset.name, "images": len(dataset)}
    metrics = scores.metrics | origin | {"source": source}
    write_atomically(folder / "errors.png", plot_errors(metrics["errors"]))
    for name in classes:
        of_class = {iou: curves[iou][name] for iou in curves}
        if next(iter(of_class.values())).num_objects:
            plot = plot_precision_recall(name, of_class)
            write_atomically(folder / "precision_recall" / f"{name}.png", plot)
    write_atomically(folder / "metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())
    if page:
        matches = scores.matches
        suspects = find_label_errors(matches, scores.errors, scores.metric.iou_thresholds[0])
        listed = label_errors_csv(suspects, matches, dataset.image_ids, classes)
        write_atomically(folder / "label_errors.csv", listed.encode())
        pictures = draw_errors(matches, scores.errors, dataset)
        pictures["suspects"] = draw_suspects(suspects, matches, dataset)
        title = f"Evaluation on {dataset.name}"
        text = report_page(title, metrics, curves, scores.counts, scores.confusion, pictures)
        write_atomically(folder / "report.html", text.encode())
    return metrics


@styled
def plot_precision_recall(name: str, curves: Mapping[str, Curve]) -> bytes:
    """Precision-recall curves of one class, by IoU threshold."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for iou_threshold, curve in curves.items():
        axes.plot(curve.recall, curve.precision, label=f"IoU {iou_threshold}: AP {area_ap(curve):.3f} (area)")
    axes.set_title(name)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return png(figure)


@styled
def plot_errors(errors: Mapping[str, dict]) -> bytes:
    """Cost and count of each kind of error; `errors` as in metrics.json."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, key, label in zip(figure.subplots(1, 2), ("cost", "count"), ("mAP it costs", "count"), strict=True):
        bars = axes.barh(KINDS, [errors[kind][key] or 0 for kind in KINDS], color="tab:red" if key == "cost" else None)
        axes.bar_label(bars, fmt="%.3f" if key == "cost" else "%d", padding=3)
        axes.set(xlabel=label)
        axes.margins(x=0.2)
        axes.invert_yaxis()
    return png(figure)
