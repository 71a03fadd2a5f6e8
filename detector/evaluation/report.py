"""Score detections and write a report to a folder."""

import json
from collections.abc import Sequence
from pathlib import Path

from detector.data.dataset import DetectionDataset
from detector.evaluation.coco_ap import score_coco
from detector.evaluation.error_analysis import KINDS, error_costs, find_errors
from detector.evaluation.html_report import html_report
from detector.evaluation.matching import match
from detector.evaluation.pictures import draw_errors
from detector.evaluation.plots import plot_errors, plot_precision_recall
from detector.evaluation.voc_ap import score_sizes, score_voc
from detector.runtime.files import write_atomically
from detector.settings import Metric
from detector.structures import Detections


def write_report(
    folder: Path,
    dataset: DetectionDataset,
    detections: Sequence[Detections],
    metric: Metric,
    origin: dict[str, dict],
    page: bool = True,
) -> dict:
    """Score detections, one item per image, and write the result into `folder`.

    Writes `metrics.json`, `precision_recall/` and `errors.png`; with `page`, `report.html` too.

    origin: `source`, what was scored, and `loss`, where they are known; they become part of the metrics.

    Returns the metrics: `main` (name and value), `voc` from `score_voc`, `coco` from `score_coco`, `sizes` from
    `score_sizes` and `errors` by kind (count and cost in mAP), both at `overlap`, the first IoU threshold; `loss` and
    `source`, to which the name and the size of the dataset are added.
    """
    classes, truths = dataset.classes, [dataset.ground_truth(index) for index in range(len(dataset))]
    iou_thresholds, devkit = metric.iou_thresholds, metric.devkit
    matches = match(truths, detections, len(classes))
    voc, curves = score_voc(matches, classes, iou_thresholds, devkit)
    errors = find_errors(matches, iou_thresholds[0], devkit)
    costs = error_costs(matches, errors)
    metrics: dict = {"main": {}, "voc": voc}
    if metric.coco:
        metrics["coco"] = score_coco(truths, detections, classes)
    metrics["overlap"] = iou_thresholds[0]
    metrics["sizes"] = score_sizes(matches, classes, iou_thresholds[0], devkit)
    metrics["errors"] = {kind: {"count": len(errors.of_kind(kind)), "cost": costs[kind]} for kind in KINDS}
    main = metric.main or f"11point@{iou_thresholds[0]:.2f}"
    metrics["main"] = {"metric": main, "value": metrics["coco"]["AP"] if main == "coco" else voc[main]["mAP"]}
    metrics |= origin | {"source": origin.get("source", {}) | {"data": dataset.name, "images": len(dataset)}}

    error_plot = plot_errors(metrics["errors"])
    curve_plots = {
        name: plot_precision_recall(name, {iou: curves[iou][name] for iou in curves})
        for name in classes
        if next(iter(curves.values()))[name].num_objects
    }
    write_atomically(folder / "errors.png", error_plot)
    for name, png in curve_plots.items():
        write_atomically(folder / "precision_recall" / f"{name}.png", png)
    write_atomically(folder / "metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())
    if page:
        pictures = draw_errors(matches, errors, truths, classes, dataset.image)
        text = html_report(f"Evaluation on {dataset.name}", metrics, error_plot, curve_plots, pictures)
        write_atomically(folder / "report.html", text.encode())
    return metrics
