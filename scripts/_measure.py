"""Shared by the programs that measure: time, machine, tables, and speed and mAP of a trained detector."""

import argparse
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import detector
from detector.data.dataset import DetectionDataset
from detector.errors import InputError
from detector.evaluation.matching import match
from detector.evaluation.voc_ap import score_voc


def at_least_one(text: str) -> int:
    """The value of an option of argparse that counts something. Raises an error of argparse below 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more")
    return number


def seconds(function: Callable[[], object]) -> float:
    """The time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def processor() -> str:
    """The name of the processor, such as "AMD EPYC"."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return name[1] if name else platform.processor() or platform.machine()


def machine() -> str:
    """The processor, and the versions that its speed depends on."""
    versions = f"Python {platform.python_version()}, numba {version('numba')}, numpy {version('numpy')}"
    return f"{processor()}, {os.cpu_count()} cores; {versions}"


def show(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows with the same keys as a table in Markdown, numbers with three digits."""
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print(
            "| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row.values()) + " |"
        )


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
