import numpy as np

from detector.evaluation.counts import confusion_matrix, count_by_threshold
from detector.evaluation.matching import match
from detector.structures import Detections
from detector.visualization.confusion import draw_confusion
from tests.conftest import ground_truth

TRUTHS = [
    ground_truth("a", (1, 0, 0, 10, 10), (2, 20, 0, 30, 10), (1, 40, 0, 50, 10, True)),
    ground_truth("b", (1, 0, 0, 10, 10)),
]
DETECTIONS = [
    Detections(
        "a",
        np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [0, 0, 10, 9]], np.float32),
        np.array([1, 1, 1, 1]),
        np.array([0.9, 0.8, 0.7, 0.6], np.float32),
    ),
    Detections("b", np.array([[0, 0, 10, 10], [50, 50, 60, 60]], np.float32), np.array([1, 2]), np.array([0.2, 0.4])),
]  # fmt: skip


def test_hits_and_misses_by_score_threshold():
    one, other = count_by_threshold(match(TRUTHS, DETECTIONS, 2), 0.5)
    assert [counts.tolist() for counts in (one.hits[[0, 20, 21, 90, 91]], one.misses[[0, 60, 61, 81]])] == [
        [2, 2, 1, 1, 0],  # scores 0.9 and 0.2
        [2, 2, 1, 0],  # scores 0.8 and 0.6; the difficult object is ignored
    ]
    assert one.not_found[[0, 100]].tolist() == [0, 2]
    assert (other.hits.max(), other.misses[0], other.misses[41], other.not_found[0]) == (0, 1, 0, 1)


def test_class_without_objects_has_misses_only():
    [_, other] = count_by_threshold(match(TRUTHS[1:], DETECTIONS[1:], 2), 0.5)
    assert (other.num_objects, other.misses[0], other.misses[41]) == (0, 1, 0)


def test_confusions_of_classes_and_background():
    matrix = confusion_matrix(match(TRUTHS, DETECTIONS, 2))
    assert matrix.tolist() == [
        [0, 1, 1],  # without an object: the second detection of one, and the one of class 2
        [1, 1, 0],  # class 1: not found in the second image, where the score is below 0.3
        [0, 1, 0],  # class 2: found as class 1
    ]
    assert confusion_matrix(match(TRUTHS, DETECTIONS, 2), score_threshold=0.1)[1].tolist() == [0, 2, 0]
    texts = [text.get_text() for text in draw_confusion(matrix, ["cat", "dog"]).axes[0].texts]
    assert texts == ["1", "0", "1", "1", "0", "0", "1", "1"]  # background last
