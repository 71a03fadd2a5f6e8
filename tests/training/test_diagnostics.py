import math

import pytest
import torch

from detector.training.diagnostics import CollapseDetector, DivergenceDetector

QUARTER = torch.tensor([480, 160])  # labels of ten steps of 64 RoIs
ENTROPY = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))


def feed(detector: CollapseDetector, accuracies: list[float], loss_cls: float = 0.3, counts=QUARTER) -> list[bool]:
    return [
        detector.add(10 * number + 1, 10 * number + 10, accuracy, loss_cls, counts)
        for number, accuracy in enumerate(accuracies)
    ]


def test_no_foreground_right_for_a_window_is_a_collapse():
    detector = CollapseDetector(window=30)
    assert feed(detector, [0.5, 0, 0, 0, 0, 0.1, 0]) == [False, False, False, True, True, False, False]
    assert detector.since is None


def test_a_collapse_remembers_where_it_began():
    detector = CollapseDetector(window=30)
    feed(detector, [0.5, 0, 0, 0, 0, 0])
    assert detector.since == 11


@pytest.mark.parametrize(("loss_cls", "expected"), [(ENTROPY, True), (0.99 * ENTROPY, True), (0.9 * ENTROPY, False)])
def test_hardly_any_right_at_the_loss_of_a_constant_is_a_collapse(loss_cls, expected):
    assert feed(CollapseDetector(window=30), [0.004] * 3, loss_cls)[-1] is expected


def test_a_loss_at_the_entropy_alone_is_none():
    assert feed(CollapseDetector(window=30), [0.2] * 3, ENTROPY)[-1] is False


def test_without_foreground_nothing_is_said():
    assert feed(CollapseDetector(window=30), [math.nan] * 5)[-1] is False
    assert feed(CollapseDetector(window=30), [math.nan, 0, math.nan])[-1] is True


def test_intervals_longer_than_the_window_count_whole():
    detector = CollapseDetector(window=30)
    assert detector.add(1, 100, 0.0, 0.6, QUARTER)
    assert not detector.add(101, 200, 0.4, 0.6, QUARTER)


def norms(*values: float) -> list[float | None]:
    detector = DivergenceDetector()
    return [detector.add(value) for value in values]


def test_a_gradient_grown_a_hundredfold_three_times_in_a_row_diverges():
    assert norms(*[2.0] * 20, 300, 400, 500, 600)[-4:] == [None, None, 2.0, None]


def test_one_large_gradient_and_a_large_beginning_are_no_divergence():
    assert norms(1000, *[2.0] * 20, 300, 2, 300, 300, 2) == [None] * 26
    assert norms(1.0, 500, 500, 500) == [None] * 4
