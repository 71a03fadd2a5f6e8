"""The frame of a page and its parts: sections, tables, pictures and curves.

A page is one file. It contains style.css and page.js, which sorts tables, enlarges pictures and moves the score
threshold.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TypeVar

import numpy as np

from detector.evaluation.pages.pictures import Picture

Number = TypeVar("Number", float, np.ndarray)
PARTS = Path(__file__).parent
CURVE_COLOURS = 6  # c0 to c5 in style.css
MAX_POINTS = 300  # of a drawn curve
PLOT = (300, 210)  # width and height of a plot's area, in units of the drawing
LEGEND = {"detection": "detection", "object": "annotated object", "proposal": "proposal of the detection"}


class Html(str):
    """Text that is HTML already; any other is escaped."""


@dataclass(frozen=True)
class Section:
    """A part of a page with an entry in its navigation bar."""

    id: str
    title: str
    body: Html


@dataclass(frozen=True)
class Line:
    """One line of a plot."""

    label: str
    x: np.ndarray  # (N,)
    y: np.ndarray  # (N,)


@dataclass(frozen=True)
class Axis:
    """An axis of a plot."""

    label: str
    low: float = 0.0
    high: float = 1.0

    def ticks(self) -> list[float]:
        """Round numbers within the range, about five."""
        span = self.high - self.low
        unit = 10.0 ** np.floor(np.log10(span / 4))
        step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if span / (unit * factor) <= 5)
        first = np.ceil(self.low / step - 1e-9)
        return [round(float(step * number), 10) + 0.0 for number in np.arange(first, self.high / step + 1e-9)]


def page(title: str, head: Html, sections: Sequence[Section], data: dict | None = None) -> str:
    """The HTML of the page; page.js reads `data` as JSON."""
    links = "".join(f'<a href="#{part.id}">{escape(part.title)}</a>' for part in sections)
    parts = "\n".join(
        f'<section id="{part.id}"><h2>{escape(part.title)}</h2>\n{part.body}</section>' for part in sections
    )
    content = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # "</script>" in a class name
    legend = "".join(f'<span class="key {role}">{what}</span>' for role, what in LEGEND.items())
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{_part("style.css")}</style></head><body>
<nav aria-label="Sections"><div><a href="#top">Top</a>{links}</div></nav>
<main id="top"><h1>{escape(title)}</h1>
{head}
{parts}
</main>
<dialog id="viewer" aria-label="Picture"><div class="stage"></div><p class="caption"></p><p class="legend">{legend}</p>
<div class="buttons"><button data-step="-1">&larr; Previous</button><button data-step="1">Next &rarr;</button>
<button data-close>Close</button></div></dialog>
<script type="application/json" id="data">{content}</script><script>{_part("page.js")}</script></body></html>
"""


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def text(value: str) -> str:
    """The value as HTML."""
    return value if isinstance(value, Html) else escape(value)


def table(rows: Sequence[Sequence[str]], last_is_total: bool = False, id: str = "", classes: str = "") -> Html:
    """A table, sorted by a click on a header; the last row stays last if it is a total."""
    body = rows[1:-1] if last_is_total else rows[1:]
    head = "".join(f'<th scope="col" aria-sort="none"><button>{text(cell)}</button></th>' for cell in rows[0])
    total = f"<tfoot>{_row(rows[-1])}</tfoot>" if last_is_total else ""
    name = f' id="{id}"' if id else ""
    return Html(
        f'<div class="wide"><table{name} class="sortable {classes}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(map(_row, body))}</tbody>{total}</table></div>"
    )


def _row(cells: Sequence[str]) -> str:
    first, *others = map(text, cells)
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'


def bar(part: float, label: str) -> Html:
    """A label with a bar over this fraction, 0 to 1, of the available width."""
    return Html(
        f'<span class="bar" style="--part:{min(max(part, 0), 1):.3f}"></span>'
        f'<span class="number">{escape(label)}</span>'
    )


def gallery(pictures: Sequence[Picture]) -> Html:
    """Pictures side by side; a click enlarges one and shows its proposal."""
    return Html(f'<div class="row">{"".join(map(_figure, pictures)) or "<p>none</p>"}</div>')


def _figure(picture: Picture) -> str:
    caption = escape(picture.caption)
    if not picture.jpeg:
        return f"<figure><figcaption>{caption}</figcaption></figure>"
    source = base64.b64encode(picture.jpeg).decode()
    shapes = "".join(
        f'<rect class="{kind} {mark.role}" x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"/>'
        for mark in picture.marks
        for x1, y1, x2, y2 in [mark.box]
        for kind in ("halo", "line")
    )
    return (
        f'<figure><button class="picture" aria-label="Enlarge: {caption}"><img alt="" '
        f'width="{picture.width}" height="{picture.height}" src="data:image/jpeg;base64,{source}">'
        f'<svg viewBox="0 0 {picture.width} {picture.height}" aria-hidden="true">{shapes}</svg></button>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def plot(title: str, lines: Sequence[Line], x: Axis, y: Axis, marker: str = "") -> Html:
    """Lines over one another with a legend. marker: the class of a dot that page.js moves."""
    width, height = PLOT
    shapes = [
        f'<path class="grid" d="M{_x(tick, x):.1f} 0V{height}"/><text x="{_x(tick, x):.1f}" '
        f'y="{height + 16}" text-anchor="middle">{tick:g}</text>'
        for tick in x.ticks()
    ] + [
        f'<path class="grid" d="M0 {_y(tick, y):.1f}H{width}"/><text x="-6" y="{_y(tick, y) + 4:.1f}" '
        f'text-anchor="end">{tick:g}</text>'
        for tick in y.ticks()
    ]
    shapes += [
        f'<path class="curve c{number % CURVE_COLOURS}" d="{_path(line, x, y)}"/>'
        for number, line in enumerate(lines)
        if len(line.x)
    ]
    shapes.append(f'<circle class="marker {marker}" r="5" hidden/>' if marker else "")
    legend = "".join(
        f'<span class="key c{number % CURVE_COLOURS}">{escape(line.label)}</span>' for number, line in enumerate(lines)
    )
    return Html(
        f'<figure class="plot"><figcaption><b>{escape(title)}</b></figcaption>'
        f'<svg viewBox="-50 -12 {width + 66} {height + 54}" role="img" aria-label="{escape(title)}: '
        f'{escape(y.label)} over {escape(x.label)}">{"".join(shapes)}'
        f'<text x="{width / 2}" y="{height + 36}" text-anchor="middle">{escape(x.label)}</text>'
        f'<text transform="translate(-40 {height / 2}) rotate(-90)" text-anchor="middle">{escape(y.label)}</text></svg>'
        f'<p class="legend">{legend}</p></figure>'
    )


def _x(value: Number, axis: Axis) -> Number:
    return (value - axis.low) / (axis.high - axis.low) * PLOT[0]


def _y(value: Number, axis: Axis) -> Number:
    return (axis.high - value) / (axis.high - axis.low) * PLOT[1]


def _path(line: Line, x_axis: Axis, y_axis: Axis) -> str:
    """The line through at most MAX_POINTS of its points, at equal distances along it, and through its last.

    A line of one point, as of a run that was evaluated once, is a ring around it.
    """
    x, y = _x(line.x, x_axis), _y(line.y, y_axis)
    if len(x) == 1:
        return f"M{x[0] - 3:.1f} {y[0]:.1f}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0"
    way = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    chosen = (
        np.unique(np.searchsorted(way, np.linspace(0, way[-1], MAX_POINTS))) if len(x) > MAX_POINTS else range(len(x))
    )
    return "M" + "L".join(f"{x[index]:.1f} {y[index]:.1f}" for index in chosen)


def source_table(values: Mapping[str, object]) -> Html:
    """What was scored, as names and values."""
    rows = "".join(
        f'<tr><th scope="row">{escape(str(key))}</th><td>{escape(str(value))}</td></tr>'
        for key, value in values.items()
    )
    return Html(f'<div class="wide"><table class="source"><tbody>{rows}</tbody></table></div>')
