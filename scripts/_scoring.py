"""Shared by the programs that compare detectors: detect on a dataset and score the result."""

import time

import detector
from detector.data.dataset import DetectionDataset
from detector.errors import InputError
from detector.evaluation.matching import match
from detector.evaluation.voc_ap import score_voc


def detect_and_score(
    model: detector.Detector, dataset: DetectionDataset, max_proposals: int | None = None
) -> tuple[float | None, float]:
    """mAP (area at IoU 0.5), and images per second from file to detections, selective search included."""
    indices = range(len(dataset))
    files = {dataset.image_ids[index]: dataset.image_path(index) for index in indices}
    threshold = model.settings.detect.score_threshold
    began, found = time.perf_counter(), []
    for result in model.stream(files, score_threshold=threshold, max_proposals=max_proposals):
        if isinstance(result, InputError):
            raise result
        found.append(result.detections)
    rate = len(files) / (time.perf_counter() - began)
    truths = [dataset.ground_truth(index) for index in indices]
    metrics, _ = score_voc(match(truths, found, len(dataset.classes)), dataset.classes)
    return metrics["area@0.50"]["mAP"], rate


def for_classes_of(model: detector.Detector, dataset: DetectionDataset) -> DetectionDataset:
    """The dataset with the classes of the network, without objects of others."""
    return dataset.without_classes({*dataset.classes} - {*model.classes}).with_classes(model.classes)
