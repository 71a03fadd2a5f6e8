"""Score detections and leave everything about it in a folder."""

from collections.abc import Sequence
from pathlib import Path

from detector.evaluation.plots import write_precision_recall
from detector.evaluation.results import write_metrics
from detector.evaluation.voc_ap import score_voc
from detector.structures import Detections, GroundTruth


def write_report(
    folder: Path,
    truths: Sequence[GroundTruth],
    detections: Sequence[Detections],
    classes: Sequence[str],
    overlaps: Sequence[float],
    devkit: bool,
    losses: dict[str, float] | None = None,
    source: dict | None = None,
) -> dict:
    """Write `metrics.json` and `precision_recall/` (plots) into `folder`.

    Returns the metrics: `{"voc": ...}` as `score_voc` gives them, `loss` where there was one, and `source`, which says
    what was scored on what.
    """
    voc, curves = score_voc(truths, detections, classes, overlaps, devkit)
    metrics = {"voc": voc} | ({"loss": losses} if losses else {}) | ({"source": source} if source else {})
    write_precision_recall(folder / "precision_recall", curves)
    write_metrics(folder / "metrics.json", metrics)
    return metrics
