"""Figures of RoI pooling: the steps from map to output, the two rules to divide a region, and the animation of both."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import MaxNLocator

from detector.visualization.drawing import COLOURS
from detector.visualization.pooling import Pooling
from detector.visualization.style import FAINT, INK, new_figure, pixels, styled

MAX_TURNS = 16  # sections that an animation shows one after the other; more are shown at once
MAX_RINGS = 4  # around the same cell
SMALLEST_PT = 6.0  # numbers that would be smaller are left out


@dataclass(frozen=True)
class Drawn:
    """The values that a drawing shows, read back from it, for tests."""

    maxima: dict[tuple[int, int], tuple[int, int]]  # section -> row and column of the marked cell
    sections: dict[tuple[int, int], tuple[int, int, int, int]]  # section -> first row, past row, first column, past
    output: dict[tuple[int, int], str]  # section -> the number in the output


def number(value: float, features: np.ndarray) -> str:
    """The text of a number in the cells of this map."""
    largest = float(np.abs(features).max())
    if largest >= 1e5 or 0 < largest < 0.1:
        return f"{value:.1e}"
    decimals = 0 if (features == features.round()).all() or largest >= 100 else 1 if largest >= 10 else 2
    return f"{value:.{decimals}f}"


def enlargement(pooling: Pooling) -> float:
    """How many times the usual size a figure has, so that the numbers of large maps and outputs are legible."""
    return float(np.clip(max(max(pooling.features.shape) / 12, max(pooling.values.shape) / 8), 1, 2))


def section_colour(row: int, column: int) -> str:
    """Neighbouring sections have different colours."""
    return COLOURS[(3 * row + column) % len(COLOURS)]


def rule(pooling: Pooling) -> str:
    """The rule of the sections, in general and for each axis of this region."""
    upper = "ceil" if pooling.overlapping else "floor"
    lines = [
        "The region has s rows, or columns. Of these,",
        "counted from 0, section i of n takes those",
        "from  floor(i · s / n)",
        f"to  {upper}((i + 1) · s / n) - 1",
    ]
    x1, y1, x2, y2 = pooling.region
    for name, start, end, edges in (("rows", y1, y2, pooling.rows), ("columns", x1, x2, pooling.columns)):
        lines += ["", f"{name} {start} to {end}: s = {end - start + 1}, n = {len(edges)}"]
        shown = edges if len(edges) <= 3 else edges[:2]
        lines += [f"   i = {i}:  {_span(name, first, past)}" for i, (first, past) in enumerate(shown)]
        lines += ["   ..."] * (len(shown) < len(edges))
    shared = _shared_cells(pooling)
    if (pooling.cells < 0).any():
        lines += ["", "A section without a cell gives 0 (gray)"]
    are = "cell (hatched) is" if len(shared) == 1 else "cells (hatched) are"
    lines += ["", f"{len(shared)} {are} in several sections" if shared else "Each cell is in one section"]
    return "\n".join(lines)


def _span(name: str, first: int, past: int) -> str:
    if first >= past:
        return "no cell"
    return f"{name[:-1]} {first}" if past == first + 1 else f"{name} {first} to {past - 1}"


def _shared_cells(pooling: Pooling) -> list[tuple[int, int]]:
    counts = Counter(
        (row, column)
        for top, bottom in pooling.rows
        for left, right in pooling.columns
        for row in range(top, bottom)
        for column in range(left, right)
    )
    return [cell for cell, count in counts.items() if count > 1]


def draw_map(axes: Axes, pooling: Pooling, title: str) -> None:
    """The map (H, W), darker where it is larger, with the numbers of its cells if there is space for them."""
    features = pooling.features
    height, width = features.shape
    low, high = float(features.min()), float(features.max())
    spread = (high - low) or 1.0
    axes.imshow(features, cmap="Greys", vmin=low - 0.3 * spread, vmax=high + 1.5 * spread)
    axes.set_title(title)
    axes.set_xticks(np.arange(width + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(height + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0, labelsize=9, labelcolor=FAINT)
    axes.tick_params(labeltop=True, labelbottom=False)
    if size := _number_pt(pooling):
        axes.set_xticks(range(width))
        axes.set_yticks(range(height))
        for row, column in np.ndindex(height, width):
            text = number(float(features[row, column]), features)
            axes.text(column, row, text, ha="center", va="center", fontsize=size)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    for spine in axes.spines.values():
        spine.set_visible(False)
    x1, y1, x2, y2 = pooling.region  # has space before it is drawn, so that no step moves the map
    beyond = max(height, width) / 2 + 2  # cells of a region outside the map that are shown
    axes.set_xlim(max(min(x1, 0), -beyond) - 0.65, min(max(x2, width - 1), width - 1 + beyond) + 0.65)
    axes.set_ylim(min(max(y2, height - 1), height - 1 + beyond) + 0.65, max(min(y1, 0), -beyond) - 0.65)


def _number_pt(pooling: Pooling) -> float:
    """The font size of the numbers in the cells of the map; 0 if they would be too small."""
    features = pooling.features
    longest = max(len(number(value, features)) for value in (float(features.min()), float(features.max())))
    size = min(11.0, 310.0 * enlargement(pooling) / max(features.shape) / max(longest, 3))
    return size if size >= SMALLEST_PT else 0.0


def _add_frame(axes: Axes, corner: tuple[float, float], size: tuple[float, float], colour: str, **style: Any) -> None:
    axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=2.5, **style))


def draw_region(axes: Axes, pooling: Pooling) -> None:
    """A dashed line around the cells of the region."""
    x1, y1, x2, y2 = pooling.region
    _add_frame(axes, (x1 - 0.5, y1 - 0.5), (x2 - x1 + 1, y2 - y1 + 1), INK, linestyle="--", zorder=2.2)


def draw_sections(axes: Axes, pooling: Pooling) -> dict[tuple[int, int], tuple[int, int, int, int]]:
    """The sections, each with an outline in its colour; cells of more than one are hatched. Returns their edges."""
    drawn = {}
    for (i, (top, bottom)), (j, (left, right)) in _sections(pooling):
        inset = 0.06 + 0.1 * ((i + j) % 2) * pooling.overlapping  # lines of neighbours lie side by side
        corner, size = (left - 0.5 + inset, top - 0.5 + inset), (right - left - 2 * inset, bottom - top - 2 * inset)
        colour = section_colour(i, j)
        axes.add_patch(Rectangle(corner, *size, facecolor=colour, alpha=0.28, linewidth=0))
        _add_frame(axes, corner, size, colour, zorder=2.3)
        drawn[i, j] = (top, bottom, left, right)
    for row, column in _shared_cells(pooling):
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, hatch="///", edgecolor=FAINT, linewidth=0, alpha=0.6)
        )
    return drawn


def _sections(pooling: Pooling) -> list:
    """((i, (top, bottom)), (j, (left, right))) of each section with cells, in reading order."""
    return [
        (row, column)
        for row in enumerate(pooling.rows)
        for column in enumerate(pooling.columns)
        if row[1][0] < row[1][1] and column[1][0] < column[1][1]
    ]


def draw_maxima(axes: Axes, pooling: Pooling, count: int | None = None) -> dict[tuple[int, int], tuple[int, int]]:
    """A ring around the maximum of the first `count` sections; rings around the same cell are nested, up to four."""
    drawn: dict[tuple[int, int], tuple[int, int]] = {}
    taken: Counter[tuple[int, int]] = Counter()
    for (i, _), (j, _) in _sections(pooling):
        if count is not None and i * len(pooling.columns) + j >= count:
            continue
        row, column = pooling.cells[i, j].tolist()
        radius, face = 0.46 - 0.09 * taken[row, column], "none" if taken[row, column] else "white"
        taken[row, column] += 1
        if taken[row, column] <= MAX_RINGS:
            axes.add_patch(
                Circle((column, row), radius, facecolor=face, edgecolor=section_colour(i, j), linewidth=3, zorder=4)
            )
        drawn[i, j] = (row, column)
    if size := 0.95 * _number_pt(pooling):
        for row, column in taken:
            text = number(float(pooling.features[row, column]), pooling.features)
            axes.text(column, row, text, ha="center", va="center", weight="bold", fontsize=size, zorder=5)
    return drawn


def draw_output(
    axes: Axes, pooling: Pooling, title: str, other: Pooling | None = None, count: int | None = None
) -> dict[tuple[int, int], str]:
    """The first `count` values of the output (h, w) in the sections' colours; values unlike `other`'s are framed."""
    height, width = pooling.values.shape
    axes.set(xlim=(-0.6, width - 0.4), ylim=(height - 0.4, -0.6), aspect="equal")
    axes.set_title(title)
    axes.set_axis_off()
    longest = max(len(number(value, pooling.features)) for value in pooling.values.ravel().tolist())
    drawn, size = {}, min(26.0, 240.0 * enlargement(pooling) / max(height, width) / max(longest, 3))
    for i, j in [*np.ndindex(height, width)][:count]:
        is_empty = pooling.cells[i, j, 0] < 0
        colour, text = FAINT if is_empty else section_colour(i, j), number(pooling.values[i, j], pooling.features)
        axes.add_patch(Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, facecolor=colour, alpha=0.28, linewidth=0))
        _add_frame(axes, (j - 0.47, i - 0.47), (0.94, 0.94), colour)
        if other is not None and other.values[i, j] != pooling.values[i, j]:
            _add_frame(axes, (j - 0.38, i - 0.33), (0.76, 0.66), INK, linestyle=":")
        artist = axes.text(j, i, text, ha="center", va="center", fontsize=size, weight="bold")
        drawn[i, j] = artist.get_text()
    return drawn


@styled
def draw_steps(pooling: Pooling) -> tuple[Figure, Drawn]:
    """Six panels: the map, the region, its sections, their maxima, the output, and the rule of the sections."""
    figure = new_figure(11 * enlargement(pooling), 8 * enlargement(pooling))
    panels = figure.subplots(2, 3).flat
    titles = ("1. Feature map", "2. Region of interest", "3. Sections", "4. Maximum of each section")
    sections, maxima = {}, {}
    for step, (axes, title) in enumerate(zip(panels, titles, strict=False), start=1):
        draw_map(axes, pooling, title)
        draw_region(axes, pooling) if step > 1 else None
        if step > 2:
            sections = draw_sections(axes, pooling)
        if step > 3:
            maxima = draw_maxima(axes, pooling)
    output = draw_output(panels[4], pooling, "5. Output")
    draw_rule(panels[5], pooling)
    return figure, Drawn(maxima, sections, output)


def draw_rule(axes: Axes, pooling: Pooling) -> None:
    """The rule as text."""
    axes.set_axis_off()
    axes.set_title("How the sections are cut")
    axes.text(0, 0.97, rule(pooling), va="top", fontsize=11, linespacing=1.35, transform=axes.transAxes)


@styled
def draw_comparison(disjoint: Pooling, overlapping: Pooling) -> tuple[Figure, Drawn, Drawn]:
    """One row for each rule: sections with their maxima, output, rule. Outputs that differ are framed."""
    figure = new_figure(11 * enlargement(overlapping), 8.4 * enlargement(overlapping))
    differs = bool((disjoint.values != overlapping.values).any())
    found = []
    rows = figure.subplots(2, 3, width_ratios=(1.15, 0.8, 1))
    cases = (disjoint, None, "by the article"), (overlapping, disjoint, "by the layer")
    for row, (pooling, other, name) in zip(rows, cases, strict=True):
        draw_map(row[0], pooling, f"Cut {name}")
        draw_region(row[0], pooling)
        sections, maxima = draw_sections(row[0], pooling), draw_maxima(row[0], pooling)
        title = "Output" if other is None else "Output (dotted: it differs)" if differs else "Output (the same)"
        output = draw_output(row[1], pooling, title, other)
        draw_rule(row[2], pooling)
        found.append(Drawn(maxima, sections, output))
    return figure, found[0], found[1]


CAPTIONS = {
    "map": "A feature map",
    "region": "A region of it, of any size",
    "sections": "Cut into as many sections as the output has",
    "maxima": "The maximum of each section",
}


@styled
def animate(poolings: list[Pooling]) -> tuple[list[np.ndarray], list[float]]:
    """Frames of an animation through the steps of each pooling, one section after the other, and their seconds."""
    frames, seconds = [], []
    for pooling in poolings:
        size = pooling.values.size
        counts = range(1, size + 1) if size <= MAX_TURNS else [size]
        steps = [("map", 0), ("region", 0), ("sections", 0), *(("maxima", count) for count in counts)]
        for step, count in steps:
            frames.append(pixels(_draw_frame(pooling, step, count)))
            seconds.append(1.2 if step in ("map", "region") else 2.2)
        seconds[-1] = 4.0
    return frames, seconds


def _draw_frame(pooling: Pooling, step: str, count: int) -> Figure:
    """The map with its steps so far on the left, the first `count` values of the output on the right."""
    size = enlargement(pooling)
    figure = new_figure(8.6 * size, 5.4 * size, arranged=False)  # panels have the same place in each frame
    left, right = figure.add_axes((0.04, 0.03, 0.53, 0.8)), figure.add_axes((0.62, 0.1, 0.36, 0.6))
    cuts = "overlapping sections, as Fast R-CNN computes them"
    if not pooling.overlapping:
        cuts = "disjoint sections, as an article of 2017 draws them"
    figure.suptitle(f"RoI pooling with {cuts}", x=0.02, ha="left", fontsize=15, weight="bold")
    caption = CAPTIONS[step]
    if step == "maxima" and count <= MAX_TURNS:
        at = divmod(count - 1, pooling.values.shape[1])
        text = number(pooling.values[at], pooling.features)
        is_empty = pooling.cells[at][0] < 0
        caption = f"Section {count} has no cell: {text}" if is_empty else f"The maximum of section {count} is {text}"
    draw_map(left, pooling, caption)
    if step != "map":
        draw_region(left, pooling)
    if step in ("sections", "maxima"):
        draw_sections(left, pooling)
    if step == "maxima":
        draw_maxima(left, pooling, count)
    draw_output(right, pooling, "Output", count=count)
    return figure
