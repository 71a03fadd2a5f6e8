"""Plots of an evaluation, as PNG."""

import io
from collections.abc import Mapping

from matplotlib.figure import Figure

from detector.evaluation.error_analysis import KINDS
from detector.evaluation.matching import Curve
from detector.evaluation.voc_ap import area_ap


def plot_precision_recall(name: str, curves: Mapping[str, Curve]) -> bytes:
    """Precision-recall curves of one class, by IoU threshold."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for iou_threshold, curve in curves.items():
        axes.plot(curve.recall, curve.precision, label=f"IoU {iou_threshold}: AP {area_ap(curve):.3f} (area)")
    axes.set_title(name, parse_math=False)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return png(figure)


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


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return data.getvalue()
