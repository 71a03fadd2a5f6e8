"""Class names in any script, drawn by matplotlib and by Pillow."""

import numpy as np
import pytest

from detector.evaluation.matching import Curve
from detector.evaluation.report import plot_precision_recall
from detector.visualization import fonts
from detector.visualization.drawing import draw_boxes

NAME = "\u24b6"  # a sign that STIXGeneral has and DejaVu Sans lacks; matplotlib ships both
CURVES = {"0.50": Curve(np.ones(2), np.ones(2), 1)}


@pytest.fixture(autouse=True)
def _as_new(monkeypatch):
    monkeypatch.setattr(fonts, "_is_noted", False)
    monkeypatch.setattr(fonts, "OTHERS", ())
    fonts.families.cache_clear()
    yield
    fonts.families.cache_clear()


def drawn() -> tuple[bytes, bytes]:
    picture = draw_boxes(np.zeros((60, 80, 3), np.uint8), np.array([[5, 30, 60, 50]]), [(255, 0, 0)], [NAME])
    return picture.tobytes(), plot_precision_recall(NAME, CURVES)


def test_names_are_drawn_with_an_installed_font_that_has_them(monkeypatch, caplog):
    without = drawn()
    assert "pictures show empty boxes" in caplog.text
    caplog.clear()
    monkeypatch.setattr(fonts, "OTHERS", ("No Such Font", "STIXGeneral"))
    fonts.families.cache_clear()
    assert fonts.families() == ["DejaVu Sans", "STIXGeneral"]
    assert all(a != b for a, b in zip(without, drawn(), strict=True))
    assert caplog.text == ""
    assert fonts.pillow_font(["cat"], 12).getname()[0] == "DejaVu Sans"


def test_missing_characters_are_noted_once_without_warnings(caplog, recwarn):
    for name in ("浣熊", "Waschbär"):
        plot_precision_recall(name, CURVES)
    draw_boxes(np.zeros((60, 80, 3), np.uint8), np.array([[5, 30, 60, 50]]), [(255, 0, 0)], ["猫 0.9"])
    assert [record.message for record in caplog.records] == [
        "pictures show empty boxes for 浣熊: install a font that has them, such as Noto Sans CJK"
    ]
    assert [str(warning.message) for warning in recwarn] == []
