"""COCO's matching of detections with objects: the loops, compiled by numba."""

import numpy as np

from detector.evaluation.matching import HIT, IGNORED, MISS
from detector.runtime.compiled import compiled


@compiled
def judge(
    keys: np.ndarray,
    boxes: np.ndarray,
    object_keys: np.ndarray,
    objects: np.ndarray,
    crowd: np.ndarray,
    ignored_crowd: np.ndarray,
    ignored: np.ndarray,
    outside: np.ndarray,
    iou_thresholds: np.ndarray,
    max_detections: int,
) -> np.ndarray:
    """HIT, MISS or IGNORED of each detection, (A, T, N) int8, for A ranges of areas and T IoU thresholds.

    Detections and objects are sorted by ascending key (N,), (G,), which defines groups, and the detections of a group
    by descending score. Boxes (N, 4) and (G, 4) are x, y, width, height. crowd (G,): the fraction of the detection
    replaces the IoU; ignored_crowd (G,): many detections can match; ignored (A, G), outside (A, N): by the range of
    areas. After the first `max_detections` of a group the others are ignored.
    """
    judged = np.full((len(ignored), len(iou_thresholds), len(keys)), IGNORED, dtype=np.int8)
    start, first_object = 0, 0
    while start < len(keys):
        end = start
        while end < len(keys) and keys[end] == keys[start]:
            end += 1
        while first_object < len(object_keys) and object_keys[first_object] < keys[start]:
            first_object += 1
        last_object = first_object
        while last_object < len(object_keys) and object_keys[last_object] == keys[start]:
            last_object += 1
        last = min(end, start + max_detections)
        own = slice(first_object, last_object)
        ious = _ious(boxes[start:last], objects[own], crowd[own])
        for area in range(len(ignored)):
            for number in range(len(iou_thresholds)):
                _judge_group(
                    ious, ignored_crowd[own], ignored[area, own], outside[area, start:last],
                    iou_thresholds[number], judged[area, number, start:last],
                )  # fmt: skip
        start = end
    return judged


@compiled
def _ious(boxes: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU (N, G), or for a crowd the fraction of the detection in it; bitwise identical to pycocotools."""
    ious = np.zeros((len(boxes), len(objects)))
    for i in range(len(boxes)):
        x, y, width, height = boxes[i]
        for j in range(len(objects)):
            other_x, other_y, other_width, other_height = objects[j]
            shared_width = min(x + width, other_x + other_width) - max(x, other_x)
            shared_height = min(y + height, other_y + other_height) - max(y, other_y)
            if shared_width > 0 and shared_height > 0:
                shared = shared_width * shared_height
                union = width * height
                if not crowd[j]:
                    union += other_width * other_height - shared
                ious[i, j] = shared / union
    return ious


@compiled
def _judge_group(
    ious: np.ndarray,
    ignored_crowd: np.ndarray,
    ignored: np.ndarray,
    outside: np.ndarray,
    iou_threshold: float,
    judged: np.ndarray,
) -> None:
    """Match the detections of one group in order, each with the free object of the highest IoU; last if equal.

    An object that counts is preferred to all that are ignored.
    """
    taken = np.zeros(len(ignored), dtype=np.bool_)
    for i in range(len(judged)):
        best = -1
        for is_ignored in (False, True):
            if best >= 0:
                break
            least = min(iou_threshold, 1 - 1e-10)
            for j in range(len(ignored)):
                if ignored[j] == is_ignored and ious[i, j] >= least and (not taken[j] or ignored_crowd[j]):
                    least, best = ious[i, j], j
        if best < 0:
            judged[i] = IGNORED if outside[i] else MISS
        else:
            taken[best] = True
            judged[i] = IGNORED if ignored[best] else HIT
