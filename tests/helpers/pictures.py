"""Training and evaluation without their figures, which take four fifths of the time of a tiny run."""

import numpy as np
import pytest


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Replace the figures of a run and of a report; tests/visualization and tests/evaluation test them."""
    for name in ("plot_errors", "plot_precision_recall"):
        patch.setattr(f"detector.evaluation.report.{name}", lambda *_: b"")
    patch.setattr("detector.training.trainer.draw_confusion", lambda *_: None)
    patch.setattr("detector.training.trainer.draw_sampled_rois", lambda *_: (None, []))
    patch.setattr("detector.training.trainer.pixels", lambda _: np.zeros((1, 1, 3), np.uint8))
