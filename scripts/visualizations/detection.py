"""Detection on one image: proposals, scores, refined boxes, detections after NMS.

Writes stages.png and .svg, four panels, and detection.gif (or .mp4).
"""

import argparse

from detector.visualization.detection import Stages, animate_stages, draw_stages
from detector.visualization.style import save_figure
from scripts.visualizations import _animation, _trained
from scripts.visualizations._animation import write_animation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _trained.add_arguments(parser)
    _animation.add_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    stages = stages_of(_trained.forward(arguments), arguments.score_threshold)
    save_figure(arguments.out, "stages", draw_stages(stages)[0])
    write_animation(arguments.out, "detection", arguments.animation, *animate_stages(stages))


def stages_of(seen: _trained.Pass, score_threshold: float) -> Stages:
    """The stages of a pass, as arrays."""
    found = seen.candidates
    return Stages(
        seen.image, seen.classes, seen.batch.proposals[0].numpy(), found.rows.numpy(), found.labels.numpy(),
        found.scores.numpy(), found.boxes.numpy(), seen.kept.numpy(), seen.scores.numpy(), score_threshold,
    )  # fmt: skip
