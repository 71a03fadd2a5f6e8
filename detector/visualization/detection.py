"""Figures of detection on one image: proposals, scores, refined boxes, and the detections after suppression."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import ImageColor

from detector.visualization.drawing import class_colour, is_dark
from detector.visualization.style import FAINT, INK, new_figure, pixels, show_image, styled

PROPOSALS_SHOWN = 200  # of one image, the first ones
MOVES = 6  # frames in which the boxes move


@dataclass(frozen=True)
class Stages:
    """Detection on one image, in the frame of `image`. The M candidates are boxes with a score above a threshold."""

    image: np.ndarray  # (H, W, 3) uint8
    classes: tuple[str, ...]
    proposals: np.ndarray  # (P, 4), best first
    rows: np.ndarray  # (M,): the proposal of each candidate
    labels: np.ndarray  # (M,) in 1..K
    scores: np.ndarray  # (M,)
    boxes: np.ndarray  # (M, 4): after the correction
    kept: np.ndarray  # (N,): candidates that remain after NMS, highest score first
    kept_scores: np.ndarray  # (N,): their scores, which soft-NMS lowers
    score_threshold: float

    def caption(self, place: int) -> str:
        """Class and score of the detection at this index."""
        return f"{self.classes[self.labels[self.kept[place]] - 1]} {self.kept_scores[place]:.2f}"


def pale(image: np.ndarray) -> np.ndarray:
    """The image in pale colours, on which coloured boxes are easy to see."""
    gray = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return (118 + 0.27 * gray[..., None] + 0.25 * image).astype(np.uint8)


def add_boxes(
    axes: Axes,
    boxes: np.ndarray,
    colours: Sequence[str] | np.ndarray,
    width: float | np.ndarray = 1.5,
    alpha: float = 1.0,
    style: str = "-",
) -> None:
    """Outlines of boxes (N, 4)."""
    patches = [Rectangle((x1, y1), x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes]
    outlines = PatchCollection(
        patches, facecolor="none", edgecolor=colours, linewidth=width, alpha=alpha, linestyle=style
    )
    axes.add_collection(outlines, autolim=False)


def add_caption(axes: Axes, box: np.ndarray, text: str, colour: str) -> str:
    """A caption at the top of a box, inside the image; at its bottom if an earlier one is there. Returns the text."""
    left, right = sorted(axes.get_xlim())
    spec, figure = axes.get_subplotspec(), axes.get_figure(root=True)
    assert figure is not None
    panel_inches = figure.get_figwidth() / (spec.get_gridspec().ncols if spec else 1)
    letter = 0.1 / panel_inches * (right - left)  # width of one, about
    x = max(min(float(box[0]), right - letter * len(text)), left)
    lowest = max(axes.get_ylim())
    places = (max(float(box[1]), 0), "top"), (min(float(box[3]), lowest), "bottom")
    free = [place for place in places if _is_free(axes, x, place[0], letter * len(text), letter)]
    y, side = (free or places)[0]
    artist = axes.text(
        x, y, text, fontsize=10, weight="bold", color="white" if is_dark(ImageColor.getrgb(colour)) else INK,
        va=side, bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.5},
        zorder=4 - 0.001 * len(axes.texts), in_layout=False, clip_on=True,  # earlier ones on top; long ones are cut
    )  # fmt: skip
    return artist.get_text()


def _is_free(axes: Axes, x: float, y: float, length: float, letter: float) -> bool:
    """Whether no caption is at (x, y) or up to this length at the right of it."""
    near = [text for text in axes.texts if abs(text.get_position()[1] - y) < 0.06 * max(axes.get_ylim())]
    starts = [(text.get_position()[0], letter * len(text.get_text())) for text in near]
    return all(start >= x + length or x >= start + its_length for start, its_length in starts)


@styled
def draw_stages(stages: Stages) -> tuple[Figure, list[str]]:
    """Four panels, from proposals to detections. Returns the captions of the detections too."""
    height, width = stages.image.shape[:2]
    figure = new_figure(11, min(max(11 * height / width + 0.8, 4), 16))
    panels = figure.subplots(2, 2).flat
    captions = [_draw_stage(axes, stages, step) for axes, step in zip(panels, range(4), strict=True)]
    return figure, captions[3]


def _draw_stage(axes: Axes, stages: Stages, step: int, progress: float = 1.0) -> list[str]:
    """One of the four stages. `progress` is how far the refined boxes have moved from their proposals."""
    shown = stages.proposals[:PROPOSALS_SHOWN]
    titles = (
        f"1. Proposals: {len(stages.proposals)}, here the first {len(shown)}",
        f"2. {len(stages.rows)} class scores are above {stages.score_threshold:g}",
        "3. Each box is refined for its class",
        f"4. NMS keeps the best of each place: {len(stages.kept)}",
    )
    show_image(axes, pale(stages.image), titles[step])
    colours = [class_colour(label) for label in stages.labels]
    if step == 0:
        add_boxes(axes, shown, [INK], 0.9, 0.5)
    elif step in (1, 2):
        start = stages.proposals[stages.rows]
        add_boxes(axes, start + (stages.boxes - start) * (progress if step == 2 else 0), colours, 1.8, 0.75)
    else:
        add_boxes(axes, stages.boxes, [FAINT], 0.8, 0.4)
        add_boxes(axes, stages.boxes[stages.kept], [colours[index] for index in stages.kept], 3)
        return [
            add_caption(axes, stages.boxes[index], stages.caption(place), colours[index])
            for place, index in enumerate(stages.kept)
        ]
    _add_legend(axes, stages) if step in (1, 2) else None
    return []


def _add_legend(axes: Axes, stages: Stages) -> None:
    labels = sorted({*stages.labels.tolist()})[:8]
    handles = [Rectangle((0, 0), 1, 1, color=class_colour(label)) for label in labels]
    if handles:
        names = [stages.classes[label - 1] for label in labels]
        axes.legend(handles, names, loc="upper left", fontsize=10, frameon=True, framealpha=0.9, handlelength=1)


@styled
def animate_stages(stages: Stages) -> tuple[list[np.ndarray], list[float]]:
    """Frames in which the scored proposals move to their refined boxes, and their seconds."""
    height, width = stages.image.shape[:2]
    steps = [(0, 1.0, 2.0), (1, 0.0, 2.0)]
    steps += [(2, (move + 1) / MOVES, 0.15 if move + 1 < MOVES else 2.0) for move in range(MOVES)]
    frames = []
    for step, progress, _ in [*steps, (3, 1.0, 4.0)]:
        figure = new_figure(7, min(max(7 * height / width + 0.5, 2), 14), arranged=False)
        axes = figure.add_axes((0.02, 0.02, 0.96, 0.97 - 0.5 / figure.get_figheight()))
        _draw_stage(axes, stages, step, progress)
        frames.append(pixels(figure))
    return frames, [seconds for *_, seconds in steps] + [4.0]
