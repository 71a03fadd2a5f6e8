import numpy as np
from PIL.ImageColor import getrgb

from detector.structures import Detections
from detector.visualization.drawing import (
    COLOURS,
    GROUND_TRUTH_COLOUR,
    class_colour,
    draw_detections,
)
from tests.conftest import ground_truth

BLACK = np.zeros((60, 80, 3), dtype=np.uint8)


def colours_in(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}


def test_classes_have_colours_of_their_own():
    colours = [class_colour(label) for label in range(1, 21)]
    assert len({*colours}) == 20
    assert colours[:7] == [*COLOURS]


def test_detections_below_the_threshold_are_not_drawn():
    truth = ground_truth("a", (1, 30, 30, 50, 50))
    boxes = np.array([[5, 5, 20, 20], [55, 20, 75, 40]], np.float32)
    picture = draw_detections(
        BLACK, truth, Detections("a", boxes, np.array([1, 2]), np.array([0.9, 0.1])), ["cat", "dog"]
    )
    assert picture[5, 5].tolist() == list(getrgb(class_colour(1)))
    assert picture[49, 40].tolist() == list(GROUND_TRUTH_COLOUR)
    assert getrgb(class_colour(2)) not in colours_in(picture)
    assert not BLACK.any()


def test_captions_stay_in_the_picture_and_hide_no_better_one():
    image = np.zeros((600, 1500, 3), dtype=np.uint8)  # as wide as one and a half screens
    boxes = np.array([[1400, 0, 1500, 300], [1390, 5, 1500, 300]], np.float32)
    found = Detections("a", boxes, np.array([1, 2]), np.array([0.9, 0.5]))
    picture = draw_detections(image, ground_truth("a"), found, ["cat", "a long name, Ünïcödé"])
    best, other = getrgb(class_colour(1)), getrgb(class_colour(2))
    assert (picture[1, 1400:1450] == best).all(axis=1).mean() > 0.5
    columns = np.flatnonzero((picture[300:320] == other).all(axis=2).any(axis=0))  # below: the best one is above
    assert 1200 < columns[0] < 1350  # moved to the left, to end inside
    assert [tuple(picture[200, x]) for x in (1400, 1401, 1402)] == [best, best, (0, 0, 0)]  # a thicker line


def test_captions_of_a_crowd_hide_none_of_each_other():
    corners = np.stack(np.meshgrid(np.arange(40, 360, 40), np.arange(60, 360, 40)), axis=-1).reshape(-1, 2)
    boxes = np.concatenate([corners, corners + 36], axis=1).astype(np.float32)
    count = len(boxes)
    image = np.zeros((400, 400, 3), dtype=np.uint8)
    found = Detections("a", boxes, np.arange(count) + 1, np.linspace(0.9, 0.4, count))
    picture = draw_detections(image, ground_truth("a"), found, ["o"] * count)
    areas = [(picture == getrgb(class_colour(label + 1))).all(axis=2).sum() for label in range(count)]
    assert min(areas) > 0.8 * max(areas)
