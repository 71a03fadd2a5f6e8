"""RoI pooling step by step, on the map of an article or any other.

Writes steps_overlapping (the sections of the kernels) and, where each section has a cell, steps_disjoint (the sections
of the article "Region of Interest Pooling Explained") and comparison, as .png and .svg, and roi_pool.gif (or .mp4).
"""

import argparse
import warnings
from pathlib import Path

import numpy as np

from detector.errors import InputError
from detector.visualization.pooling import (
    ARTICLE_MAP,
    ARTICLE_OUTPUT_HW,
    ARTICLE_REGION,
    pool_disjoint,
    pool_overlapping,
)
from detector.visualization.pooling_figures import animate, draw_comparison, draw_steps
from detector.visualization.style import save_figure
from scripts.visualizations import _animation
from scripts.visualizations._animation import write_animation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--map", type=Path, help="one channel (H, W) as .npy or .csv (default: the article's 8x8 map)")
    parser.add_argument(
        "--region", type=float, nargs=4, metavar=("X1", "Y1", "X2", "Y2"), default=ARTICLE_REGION,
        help="in cells from 0, both corners included; rounded as by the layer (default: 0 3 6 7)",
    )  # fmt: skip
    parser.add_argument(
        "--output-size", type=int, nargs=2, metavar=("H", "W"), default=ARTICLE_OUTPUT_HW, help="default: 2 2"
    )
    _animation.add_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    features = ARTICLE_MAP if arguments.map is None else read_map(arguments.map)
    size = features, arguments.region, tuple(arguments.output_size)
    disjoint, overlapping = pool_disjoint(*size), pool_overlapping(*size)
    save_figure(arguments.out, "steps_overlapping", draw_steps(overlapping)[0])
    if disjoint is not None:
        save_figure(arguments.out, "steps_disjoint", draw_steps(disjoint)[0])
        save_figure(arguments.out, "comparison", draw_comparison(disjoint, overlapping)[0])
    frames, seconds = animate([pooling for pooling in (disjoint, overlapping) if pooling is not None])
    write_animation(arguments.out, "roi_pool", arguments.animation, frames, seconds)


def read_map(path: Path) -> np.ndarray:
    """The array in the file. Raises InputError if it has none."""
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        with warnings.catch_warnings(action="error"):  # of an empty file
            return np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=2)
    except (OSError, ValueError, EOFError, UserWarning) as error:
        raise InputError(f"--map: {path} cannot be read as {path.suffix or 'csv'}: {error}") from None
