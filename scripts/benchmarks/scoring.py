"""Scoring: seconds and memory for a large set of detections, ours against a plain evaluator.

    python scripts/benchmark.py scoring [--images 5000 --classes 20 --detections 100 --repeats 3]

Generates a case of the size of VOC 2007's test set (seeded, in a temporary folder: XML annotations and the devkit's
result files) and scores it in a separate process: reading annotations and result files; matching and AP by both metrics
at 0.5 and over 0.50:0.95; sizes and errors by kind; COCO's numbers. The plain evaluator was written for this
comparison. Like the published Python code, it processes one detection after the other, and computes AP only at 0.5.
Everything runs on one core. The minimum of the repeats is shown, as elapsed time and as processor time, which other
work on the machine affects less.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.formats.voc import read_voc
from detector.evaluation.coco_ap import score_coco
from detector.evaluation.error_analysis import error_costs, find_errors
from detector.evaluation.matching import match
from detector.evaluation.results import RESULT_FILE, read_result_files
from detector.evaluation.voc_ap import area_ap, score_sizes, score_voc
from detector.structures import GroundTruth
from scripts._measure import at_least_one, machine

IMAGE_WH = np.array([500, 375])
PEAK = "peak memory before the plain evaluator, MiB"
OBJECT = "<object><name>{}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>{}</difficult><bndbox>" \
    "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"  # fmt: skip
HEAD = "<annotation><folder>VOC2007</folder><filename>{0}.jpg</filename><source><database>made up</database></source>" \
    "<size><width>500</width><height>375</height><depth>3</depth></size><segmented>0</segmented>"  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=at_least_one, default=5000)
    parser.add_argument("--classes", type=at_least_one, default=20)
    parser.add_argument("--detections", type=at_least_one, default=100, help="per image (default: 100)")
    parser.add_argument("--repeats", type=at_least_one, default=3)


def make_case(root: Path, images: int, classes: int, detections: int) -> None:
    """Three objects per image on average, one in ten difficult; detections around them, half of the correct class."""
    generator = np.random.default_rng(0)
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages", "results"):
        (root / folder).mkdir(parents=True)
    ids = [f"{number:06}" for number in range(images)]
    (root / "ImageSets/Main/test.txt").write_text("\n".join(ids), encoding="utf-8")
    names = [f"class{number:02}" for number in range(classes)]
    lines: dict[str, list[str]] = {name: [] for name in names}
    for image_id in ids:
        objects = 1 + generator.poisson(2)
        corners = np.sort(generator.random((objects, 2, 2)) * (IMAGE_WH - 2) + 1, axis=1).round().reshape(-1, 4)
        corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2])
        labels = generator.integers(0, classes, objects)
        xml = [
            OBJECT.format(names[label], int(generator.random() < 0.1), *map(int, corner))
            for label, corner in zip(labels, corners, strict=True)
        ]
        (root / f"Annotations/{image_id}.xml").write_text(
            "\n".join([HEAD.format(image_id), *xml, "</annotation>"]), encoding="utf-8"
        )
        near = generator.integers(0, objects, detections)
        boxes = np.sort((corners[near] + generator.normal(0, 15, (detections, 4))).reshape(-1, 2, 2), axis=1)
        correct = generator.random(detections) < 0.5
        found = np.where(correct, labels[near], generator.integers(0, classes, detections))
        scores = generator.random(detections)
        for label, score, box in zip(found, scores, boxes.reshape(-1, 4), strict=True):
            lines[names[label]].append(f"{image_id} {score:.9g} " + " ".join(f"{value:.5f}" for value in box) + "\n")
    for name, content in lines.items():
        (root / "results" / RESULT_FILE.format(name)).write_text("".join(content), encoding="utf-8")


def measure(root: Path) -> dict[str, list[float]]:
    """Seconds and processor seconds of each stage, and the peak memory of this process in MiB."""
    seconds = {}

    def timed(stage: str, function: Callable[..., Any], *arguments: Any) -> Any:
        start, start_cpu = time.perf_counter(), time.process_time()
        result = function(*arguments)
        seconds[stage] = [time.perf_counter() - start, time.process_time() - start_cpu]
        return result

    dataset = timed("read annotations", read_voc, root, "test")
    truths = [dataset.ground_truth(index) for index in range(len(dataset))]
    detections = timed("read result files", read_result_files, root / "results", dataset.image_ids, dataset.classes)
    matches = timed("match", match, truths, detections, len(dataset.classes))
    timed("VOC AP", score_voc, matches, dataset.classes)
    timed("AP by size", score_sizes, matches, dataset.classes, 0.5)
    timed("errors by kind", lambda: error_costs(matches, find_errors(matches)))
    timed("COCO", score_coco, matches, dataset.classes)
    ours = [area_ap(curve) for curve in matches.curves(0.5)]
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    plain = timed("plain evaluator", plain_evaluator, root / "results", truths, dataset.classes)
    np.testing.assert_allclose(plain, ours, atol=1e-9)
    return seconds | {PEAK: [int(peak[1]) / 1024 if peak else float("nan")]}


def plain_evaluator(folder: Path, truths: list[GroundTruth], classes: tuple[str, ...]) -> list[float]:
    """AP (area) of each class at 0.5, by the published rules, one detection after the other."""
    result = []
    for label, name in enumerate(classes, start=1):
        objects, number = {}, 0
        for truth in truths:
            mine = truth.labels == label
            objects[truth.image_id] = (truth.boxes[mine].astype(float), truth.difficult[mine], [False] * mine.sum())
            number += int((~truth.difficult[mine]).sum())
        rows = [line.split() for line in (folder / RESULT_FILE.format(name)).read_text(encoding="utf-8").splitlines()]
        scores = np.array([float(row[1]) for row in rows])
        corners = np.array([[float(value) for value in row[2:]] for row in rows]) - [1, 1, 0, 0]
        hits = misses = 0
        points = []
        for index in np.argsort(-scores, kind="stable"):
            boxes, difficult, taken = objects[rows[index][0]]
            box, best = corners[index], -1.0
            if len(boxes):
                low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
                shared = np.clip(high - low, 0, None).prod(axis=1)
                area = (box[2] - box[0]) * (box[3] - box[1]) + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
                ious = shared / (area - shared)
                index_of_best = int(ious.argmax())
                best = ious[index_of_best]
            if best >= 0.5 and difficult[index_of_best]:
                continue
            if best >= 0.5 and not taken[index_of_best]:
                taken[index_of_best] = True
                hits += 1
            else:
                misses += 1
            points.append((hits / number, hits / (hits + misses)))
        recall = np.concatenate([[0.0], [point[0] for point in points]])
        precision = np.maximum.accumulate(np.array([point[1] for point in points])[::-1])[::-1]
        result.append(float((np.diff(recall) * precision).sum()))
    return result


PROCESS = """
import json, sys
from pathlib import Path
from scripts.benchmarks.scoring import measure
print(json.dumps(measure(Path(sys.argv[1]))))
"""


def run(arguments: argparse.Namespace) -> None:
    project = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "case"
        make_case(root, arguments.images, arguments.classes, arguments.detections)
        command = [sys.executable, "-c", PROCESS, str(root)]
        environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PATH": ""}
        rows = []
        for _ in range(arguments.repeats):
            result = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=True)
            rows.append(json.loads(result.stdout))
    total = arguments.images * arguments.detections
    print(f"{arguments.images} images, {arguments.classes} classes, {total} detections; {machine()}\n")
    print("| stage | s | processor s |\n| --- | --- | --- |")
    for stage in rows[0]:
        least = [min(values) for values in zip(*(row[stage] for row in rows), strict=True)]
        cells = [f"{least[0]:.0f}", ""] if stage == PEAK else [f"{value:.2f}" for value in least]
        print(f"| {stage} | " + " | ".join(cells) + " |")
