"""Draw how regions of one photograph grow level by level, and the resulting boxes.

python scripts/draw_selective_search.py PHOTOGRAPH docs/images/selective_search.png
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from detector.selective_search import selective_search
from detector.selective_search.colour import LEVEL, smooth, to_space
from detector.selective_search.segmentation import segment, sorted_edges

KS = (75, 300, 1200, 4800)
BOXES = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photograph", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    image = np.array(Image.open(arguments.photograph).convert("RGB"))
    figure, axes = plt.subplots(2, 3, figsize=(9, 5), dpi=80, layout="constrained")
    show(axes.flat[0], image, "photograph")
    for axis, k in zip(axes.flat[1:5], KS, strict=True):
        labels = segmented(image, k)
        show(axis, mean_colours(image, labels), f"k = {k}: {labels.max() + 1} regions")
    show(axes.flat[5], image, f"the first {BOXES} boxes")
    for i, (x1, y1, x2, y2) in enumerate(selective_search(image)[:BOXES]):
        axes.flat[5].add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=f"C{i % 10}", linewidth=1.2))
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    picture.quantize(128).save(arguments.output, optimize=True)


def segmented(image: np.ndarray, k: int) -> np.ndarray:
    planes = to_space(smooth(image), "lab")
    return segment(*sorted_edges(planes), image.shape[:2], k * LEVEL, 100)[0]


def mean_colours(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Fill each region with its mean colour, and draw white lines between regions."""
    total = np.stack([np.bincount(labels.ravel(), image[..., c].ravel()) for c in range(3)], axis=1)
    picture = (total / np.bincount(labels.ravel())[:, None])[labels].astype(np.uint8)
    picture[:, 1:][labels[:, 1:] != labels[:, :-1]] = 255
    picture[1:][labels[1:] != labels[:-1]] = 255
    return picture


def show(axis: Axes, picture: np.ndarray, title: str) -> None:
    axis.imshow(picture)
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()


if __name__ == "__main__":
    main()
