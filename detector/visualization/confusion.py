"""A figure of the confusions between classes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from detector.visualization.style import INK, new_figure, styled

NUMBERS_UP_TO = 25  # classes with numbers in the cells


@styled
def draw_confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """A matrix (K+1, K+1) as `confusion_matrix` returns it, darker where a larger part of an object's class is."""
    size = len(classes) + 1
    figure = new_figure(min(3.5 + 0.8 * size, 16), min(3 + 0.7 * size, 14))
    axes = figure.subplots()
    order = [*range(1, size), 0]  # background last
    shown = matrix[np.ix_(order, order)]
    part = shown / np.maximum(shown.sum(axis=1, keepdims=True), 1)
    axes.imshow(part, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(size), [*classes, "(not found)"], rotation=45 if size > 6 else 0)
    axes.set_yticks(range(size), [*classes, "(no object)"])
    axes.set(xlabel="detected as", ylabel="object")
    axes.set_title("Objects and their detections")
    axes.tick_params(length=0)
    if size <= NUMBERS_UP_TO + 1:
        for (row, column), count in np.ndenumerate(shown):
            if (row, column) != (size - 1, size - 1):  # neither object nor detection
                colour = "white" if part[row, column] > 0.6 else INK
                axes.text(column, row, str(count), ha="center", va="center", color=colour)
    return figure
