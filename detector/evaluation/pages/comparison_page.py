"""The page that compares runs."""

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from detector.evaluation.comparison import FOUND_SCORE, RESAMPLES, Compared, Estimate
from detector.evaluation.pages import html
from detector.evaluation.pages.html import CURVE_COLOURS, Axis, Html, Line, Section
from detector.evaluation.pages.pictures import Picture
from detector.evaluation.tables import tag_of

MAX_RUNS = CURVE_COLOURS
History = Sequence[Mapping[str, float]]  # the lines of metrics.jsonl


def comparison_page(
    metric: str,
    compared: Mapping[str, Compared],
    histories: Mapping[str, History],
    settings: Mapping[str, Mapping[str, object]],
    pictures: Mapping[str, Sequence[Picture]],
) -> str:
    """The HTML page. histories and settings (flat) by run; pictures by heading."""
    first, *others = compared
    head = Html(
        f"<p>{escape(metric)} on the same images. Each run is compared with the first, <b>{escape(first)}</b>. "
        f"The 95 % intervals are from {RESAMPLES} resamples of the images, the same ones for all runs.</p>"
    )
    sections = [
        Section("ap", "Average precision", _tables(compared, others)),
        Section("curves", "Training", _training(metric, histories)),
        Section("settings", "Settings", _settings(settings)),
        Section("objects", "Objects that one run finds", _objects(pictures)),
    ]
    return html.page(f"Comparison of {len(compared)} runs", head, sections)


def ap_rows(compared: Mapping[str, Compared]) -> list[list[str]]:
    """A header, a row per class and mAP last: for each run the AP with its interval."""
    names = list(next(iter(compared.values())).ap)
    rows = [[name, *(written(run.ap[name]) for run in compared.values())] for name in names]
    return [["class", *compared], *rows[1:], rows[0]]


def difference_rows(compared: Mapping[str, Compared], other: str) -> list[list[str]]:
    """A header, a row per class and mAP last: the difference of a run to the first, and its verdict."""
    rows = [[name, written(value, sign="+"), verdict(value)] for name, value in compared[other].difference.items()]
    return [["class", "difference", "verdict"], *rows[1:], rows[0]]


def written(estimate: Estimate, sign: str = "") -> str:
    """Such as `0.612 [0.570, 0.655]`."""
    if math.isnan(estimate.value):
        return "no object"
    return f"{estimate.value:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"


def verdict(difference: Estimate) -> str:
    """Better or worse if the interval does not contain 0."""
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else "not clear"


def _tables(compared: Mapping[str, Compared], others: Sequence[str]) -> Html:
    differences = "".join(
        f"<h3>{escape(name)} minus {escape(next(iter(compared)))}</h3>"
        + html.table(difference_rows(compared, name), last_is_total=True)
        for name in others
    )
    note = (
        "<p>A difference is clear if its interval does not contain 0. It is paired, so its interval is narrower than "
        "those of both runs suggest. The intervals cover the choice of images, but not the seed of training.</p>"
    )
    return Html(html.table(ap_rows(compared), last_is_total=True) + differences + note)


def _training(metric: str, histories: Mapping[str, History]) -> Html:
    tag = f"mAP/{tag_of(metric)}"
    plots = [
        plot
        for title, key in (("Training loss", "loss/train"), ("Validation loss", "loss/val"), (f"mAP, {metric}", tag))
        if (plot := _curves(title, key, histories))
    ]
    without = [name for name, history in histories.items() if not history]
    note = f"<p>Without metrics.jsonl: {escape(', '.join(without))}.</p>" if without else ""
    return Html(f'<div class="row">{"".join(plots)}</div>{note}')


def _curves(title: str, key: str, histories: Mapping[str, History]) -> Html | None:
    lines = []
    for name, history in histories.items():
        points = [(line["iteration"], line[key]) for line in history if line.get(key) is not None]
        x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
        lines.append(Line(name, x, y))
    if not any(len(line.x) for line in lines):
        return None
    ends = max(line.x.max(initial=1) for line in lines)
    top = max(line.y.max(initial=0) for line in lines)
    return html.plot(title, lines, Axis("iteration", 0.0, float(ends)), Axis(title, 0.0, max(float(top), 1e-3)))


def _settings(settings: Mapping[str, Mapping[str, object]]) -> Html:
    keys = list(dict.fromkeys(key for values in settings.values() for key in values))
    missing = object()
    rows = []
    for key in keys:
        values = [one.get(key, missing) for one in settings.values()]
        if any(value != values[0] for value in values):
            rows.append([key, *("not set" if value is missing else str(value) for value in values)])
    if not rows:
        return Html("<p>All settings are equal.</p>")
    return Html(
        f"<p>{len(rows)} of {len(keys)} settings differ.</p>"
        + html.table([["setting", *settings], *rows], classes="settings")
    )


def _objects(pictures: Mapping[str, Sequence[Picture]]) -> Html:
    parts = [f"<h3>{escape(heading)}</h3>{html.gallery(found)}" for heading, found in pictures.items()]
    return Html(
        f"<p>Objects that only one run finds with a score of at least {FOUND_SCORE}. White: the object; orange: the "
        "detection.</p>" + "".join(parts)
    )
