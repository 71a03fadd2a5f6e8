"""COCO's twelve metrics and the AP of each class, computed by pycocotools (cocodataset.org/#detection-eval)."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.box_arrays import to_xywh
from detector.structures import Detections, GroundTruth

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")  # pycocotools' order


class _Evaluation(COCOeval):
    """COCO's rules for crowds, and VOC's for difficult objects: ignored, with any number of matching detections.

    In pycocotools one flag, `iscrowd`, means three things: the object is ignored; many detections can match it; its
    overlap is the fraction of the detection inside it, not the IoU. Only the first two apply to difficult objects, so
    their flag is cleared while overlaps are computed, which pycocotools does before matching.
    """

    def computeIoU(self, imgId: int, catId: int) -> np.ndarray | list:
        objects = self._gts[imgId, catId]
        for item in objects:
            item["iscrowd"] = item["crowd"]
        ious = super().computeIoU(imgId, catId)
        for item in objects:
            item["iscrowd"] = item["ignore"]
        return ious


def score_coco(truths: Sequence[GroundTruth], detections: Sequence[Detections], classes: Sequence[str]) -> dict:
    """Score by COCO's rules: the best scored 100 detections per image and class.

    Returns the twelve metrics by NAMES, and `classes`, the AP (mean over IoU 0.50:0.95) of each class; None without
    objects. Raises KeyError for detections of an image without a ground truth record.
    """
    image_number = {truth.image_id: number for number, truth in enumerate(truths, start=1)}
    objects = [
        {"image_id": image_number[truth.image_id], "category_id": int(label), "bbox": bbox, "area": float(area),
         "iscrowd": int(crowd or difficult), "crowd": int(crowd)}
        for truth in truths
        for label, bbox, area, crowd, difficult in zip(
            truth.labels, _xywh(truth.boxes), truth.areas, truth.crowd, truth.difficult, strict=True)
    ]  # fmt: skip
    found = [
        {"image_id": image_number[item.image_id], "category_id": label, "bbox": bbox, "area": bbox[2] * bbox[3],
         "score": score}
        for item in detections
        for label, bbox, score in zip(item.labels.tolist(), _xywh(item.boxes), item.scores.tolist(), strict=True)
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = _Evaluation(_coco(truths, objects, classes), _coco(truths, found, classes), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class; any size, 100 detections
    by_class = [precision[:, :, index] for index in range(len(classes))]
    return {name: _defined(value) for name, value in zip(NAMES, evaluation.stats, strict=True)} | {
        "classes": {name: _defined(values.mean()) for name, values in zip(classes, by_class, strict=True)}
    }


def _defined(value: float) -> float | None:
    return None if value < 0 else float(value)  # -1 means no object


def _xywh(boxes: np.ndarray) -> list[list[float]]:
    return to_xywh(boxes.astype(np.float64)).tolist()


def _coco(truths: Sequence[GroundTruth], annotations: list[dict], classes: Sequence[str]) -> COCO:
    """The COCO index for pycocotools. (Its own loadRes fails without detections.)"""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(1, len(truths) + 1)],
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes, start=1)],
        "annotations": [{"id": number, **item} for number, item in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco
