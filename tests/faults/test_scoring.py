"""Scores where there is nothing to score: the case 59 of FAULTS.md, and 42 in part."""

import numpy as np

from detector.evaluation.matching import match
from detector.evaluation.voc_ap import score_voc
from detector.structures import Detections
from tests.conftest import ground_truth

NONE = Detections("a", np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))


def test_case_59_no_detection_at_all_scores_0():
    metrics, _ = score_voc(match([ground_truth("a", (1, 0, 0, 9, 9))], [NONE], 1), ("cat",))
    assert metrics["11point@0.50"] == metrics["area@0.50"] == {"AP": {"cat": 0.0}, "mAP": 0.0}


def test_case_42_nothing_to_find_and_nothing_found_is_no_score():
    metrics, _ = score_voc(match([ground_truth("a")], [NONE], 1), ("cat",))
    assert metrics["area@0.50"] == {"AP": {"cat": None}, "mAP": None}
