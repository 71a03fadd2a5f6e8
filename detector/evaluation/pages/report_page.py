"""report.html: all results of an evaluation, with pictures, and counts at every score threshold."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from detector.evaluation import tables
from detector.evaluation.counts import CONFUSION_SCORE, NUM_THRESHOLDS, ThresholdCounts
from detector.evaluation.matching import Curve
from detector.evaluation.pages import html
from detector.evaluation.pages.html import Axis, Html, Line, Section
from detector.evaluation.pages.pictures import Picture
from detector.evaluation.voc_ap import area_ap

MEANING = {
    "duplicate": "a second detection of an object that a better scored one has found",
    "localisation": "right class, but the box is inaccurate",
    "confusion": "right place, wrong class",
    "both": "wrong class, and the box is inaccurate",
    "background": "there is no object here",
    "missed": "objects without any detection, the largest first",
}
MATRIX_CLASSES, CONFUSIONS_SHOWN = 30, 100  # a matrix up to this many classes, else a list of this length


def report_page(
    title: str,
    metrics: dict,
    curves: Mapping[str, Mapping[str, Curve]],
    counts: Sequence[ThresholdCounts],
    confusion: np.ndarray,
    pictures: Mapping[str, Sequence[Picture]],
) -> str:
    """The HTML page. The arguments are the fields of `Scores` (report.py), and pictures by kind from `draw_errors` and,
    as `suspects`, from `draw_suspects`.
    """
    main = metrics["main"]
    head = Html(
        f'<p class="main">mAP ({escape(main["metric"])}): <b>{tables.number(main["value"])}</b></p>'
        + html.source_table(metrics.get("source", {}))
    )
    classes = list(next(iter(curves.values())))
    sections = [
        Section("curves", "Precision and recall", _curves(curves)),
        Section("threshold", "Score threshold", _threshold(classes, counts, metrics["overlap"])),
        Section("ap", "Average precision", _average_precision(metrics)),
        Section("confusions", "Confusions", _confusions(classes, confusion, metrics["overlap"])),
        Section("errors", "Errors", _errors(metrics, pictures)),
        Section("label-errors", "Label errors", _label_errors(pictures)),
        Section("best", "Best detections", _best(pictures)),
    ]
    return html.page(title, head, sections, _embedded(classes, counts))


def _embedded(classes: Sequence[str], counts: Sequence[ThresholdCounts]) -> dict:
    """The data of the slider: a few hundred numbers per class, regardless of the number of detections."""
    return {
        "classes": [*classes],
        "objects": [count.num_objects for count in counts],
        "hits": [count.hits.tolist() for count in counts],
        "misses": [count.misses.tolist() for count in counts],
        "plot": html.PLOT,
    }


def _curves(curves: Mapping[str, Mapping[str, Curve]]) -> Html:
    plots = []
    for index, name in enumerate(next(iter(curves.values()))):
        of_class = {iou: curves[iou][name] for iou in curves}
        if next(iter(of_class.values())).num_objects:
            lines = [
                Line(f"IoU {iou}: AP {area_ap(curve):.3f} (area)", curve.recall, curve.precision)
                for iou, curve in of_class.items()
            ]
            plots.append(html.plot(name, lines, Axis("recall"), Axis("precision"), f"m{index}"))
    note = "<p>The dot is at the score threshold that is set below.</p>"
    return Html(f'{note}<div class="row">{"".join(plots) or "<p>There is no object.</p>"}</div>')


def _threshold(classes: Sequence[str], counts: Sequence[ThresholdCounts], iou_threshold: float) -> Html:
    hits = np.sum([count.hits for count in counts], axis=0)
    misses = np.sum([count.misses for count in counts], axis=0)
    objects = sum(count.num_objects for count in counts)
    best = int(np.argmax(2 * hits / np.maximum(objects + hits + misses, 1)))
    columns = ["class", "objects", "hits", "missed", "false positives", "precision", "recall", "F1"]
    empty = [""] * (len(columns) - 1)
    rows = [columns, *([name, *empty] for name in classes), ["all classes", *empty]]
    return Html(
        f"<p>Counts of the detections with at least this score, at IoU {iou_threshold:.2f}. The highest F1 over all "
        f"classes is at a score of {best / 100:.2f}.</p>"
        '<div class="threshold"><label for="slider">Score</label>'
        f'<input id="slider" type="range" min="0" max="{NUM_THRESHOLDS - 1}" step="1" value="{best}">'
        '<output id="score" for="slider"></output>'
        '<p class="totals"><span>hits <b id="total-hits"></b></span><span>missed <b id="total-missed"></b></span>'
        '<span>false positives <b id="total-false"></b></span></p></div>'
        + html.table(rows, last_is_total=True, id="counts")
    )


def _average_precision(metrics: dict) -> Html:
    coco = f"<h3>COCO's twelve metrics</h3>{html.table(tables.coco_rows(metrics))}" if "coco" in metrics else ""
    return Html(
        html.table(tables.ap_rows(metrics), last_is_total=True)
        + coco
        + "<h3>By object size</h3>"
        + html.table(tables.size_rows(metrics))
        + '<p class="note">Areas as COCO divides them: small up to 32&times;32 pixels, medium up to 96&times;96, '
        "large above.</p>"
    )


def _confusions(classes: Sequence[str], confusion: np.ndarray, iou_threshold: float) -> Html:
    intro = (
        f"<p>Objects by row, and the class of the detection on them by column, of detections with a score of at least "
        f"{CONFUSION_SCORE} and an IoU of at least {iou_threshold:.2f}, whatever their class. The darker a "
        "cell, the larger its part of the row.</p>"
    )
    order = [*range(1, len(classes) + 1), 0]  # background last
    rows, columns = [*classes, "(no object)"], [*classes, "(not found)"]
    shown = confusion[np.ix_(order, order)]
    if len(classes) <= MATRIX_CLASSES:
        return Html(intro + _matrix(rows, columns, shown))
    wrong = shown * ~np.eye(len(shown), dtype=bool)
    top = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS_SHOWN]
    listed = [
        [rows[row], columns[column], str(wrong[row, column])]
        for row, column in zip(*np.unravel_index(top, wrong.shape), strict=True)
        if wrong[row, column]
    ]
    table = html.table([["object", "detected as", "count"], *listed])
    return Html(f"{intro}<p>The {len(listed)} most frequent:</p>{table}")


def _matrix(rows: Sequence[str], columns: Sequence[str], shown: np.ndarray) -> Html:
    """Darker where a larger part of the objects of the row is."""
    part = shown / np.maximum(shown.sum(axis=1, keepdims=True), 1)
    last = len(rows) - 1
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ["", *columns])
    lines = []
    for row, name in enumerate(rows):
        cells = [
            f'<td class="{"zero" if not shown[row, column] else "hit" if row == column else ""}" '
            f'style="--part:{part[row, column]:.3f}">{"" if row == column == last else shown[row, column]}</td>'
            for column in range(len(columns))
        ]
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    return Html(
        f'<div class="wide"><table class="confusion"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _errors(metrics: dict, pictures: Mapping[str, Sequence[Picture]]) -> Html:
    header, *rows = tables.error_rows(metrics)
    counts = [metrics["errors"][kind]["count"] for kind in MEANING]
    costs = [metrics["errors"][kind]["cost"] or 0.0 for kind in MEANING]
    with_bars = [
        [kind, html.bar(count / max(*counts, 1), shown), html.bar(cost / max(*costs, 1e-9), shown_cost)]
        for (kind, shown, shown_cost), count, cost in zip(rows, counts, costs, strict=True)
    ]
    galleries = "".join(
        f"<h3>{kind.capitalize()}</h3><p>{meaning}</p>{html.gallery(pictures[kind])}"
        for kind, meaning in MEANING.items()
        if pictures[kind]
    )
    return Html(
        f"<p>At IoU {metrics['overlap']:.2f}. The cost of a kind is the gain in mAP (area) if only these errors are "
        f"fixed.</p>{html.table([header, *with_bars])}"
        "<p>The highest scored errors of each kind, one per image. Orange: the detection; white: its object. Open a "
        "picture to see the proposal that the detection was refined from.</p>"
        f"{galleries}"
    )


def _label_errors(pictures: Mapping[str, Sequence[Picture]]) -> Html:
    return Html(
        "<p>Annotations that disagree most with the detections, and may be wrong; <code>label_errors.csv</code> lists "
        "more of them.</p><ul><li><b>missing</b>: a detection where nothing is labelled</li><li><b>class</b>: another "
        "class is found there</li><li><b>box</b>: the box found is another</li><li><b>spurious</b>: nothing is found "
        "there</li></ul><p>The number is the suspicion, from 0 to 1. Orange: the detection; white: the annotated "
        "box.</p>"
        f"{html.gallery(pictures['suspects'])}"
    )


def _best(pictures: Mapping[str, Sequence[Picture]]) -> Html:
    return Html(f"<p>The highest scored hits of each class in turn.</p>{html.gallery(pictures['best'])}")
