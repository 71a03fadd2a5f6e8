"""Write animations, for the commands that draw them."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detector.inference.video import VideoWriter
from detector.visualization.style import save_animation

FPS = 20  # of an .mp4: every duration is a multiple of 0.05 s


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--animation", choices=("gif", "mp4"), default="gif", help="kind of its file (default: %(default)s)"
    )


def write_animation(folder: Path, name: str, kind: str, frames: Sequence[np.ndarray], seconds: Sequence[float]) -> None:
    """Write FOLDER/NAME.gif or .mp4 from images (H, W, 3) uint8 of one size, with the duration of each."""
    if kind == "gif":
        save_animation(folder / f"{name}.gif", frames, seconds)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with VideoWriter(folder / f"{name}.mp4", FPS) as video:
        for frame, duration in zip(frames, seconds, strict=True):
            for _ in range(max(round(duration * FPS), 1)):
                video.write(frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2])  # the codec needs even sizes
