"""Selective search: seconds, boxes and recall, ours against OpenCV's.

    python scripts/benchmark.py selective_search --data DIR --opencv-python ENV/bin/python

DIR is a dataset in Pascal VOC layout (JPEGImages, Annotations, ImageSets/Main). ENV is any environment with
numpy and opencv-contrib-python-headless, which the project itself does not depend on:

    python -m venv ENV && ENV/bin/pip install numpy opencv-contrib-python-headless

Both process the images in turn, one image each, on one thread. Without --opencv-python only ours is measured. AR is the
average recall over IoU 0.5, 0.55, ... 0.95 (and, in the first AR column, over classes).
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numba
import numpy as np
from defusedxml import ElementTree
from PIL import Image

from detector.selective_search import selective_search
from scripts._measure import processor

THRESHOLDS = np.arange(0.5, 0.96, 0.05)
COUNTS = (100, 300, 1000, 2000, None)

# Reads paths, one per line, and prints for each a line of JSON: seconds and boxes x1 y1 x2 y2.
OPENCV_WORKER = """
import json, sys, time
import cv2
cv2.setNumThreads(1)
print(json.dumps(cv2.__version__), flush=True)
for line in sys.stdin:
    image = cv2.imread(line.rstrip())
    start = time.perf_counter()
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    search.switchToSelectiveSearchFast() if sys.argv[1] == "fast" else search.switchToSelectiveSearchQuality()
    boxes = search.process()
    seconds = time.perf_counter() - start
    boxes[:, 2:] += boxes[:, :2]
    print(json.dumps([seconds, boxes.tolist()]), flush=True)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="dataset in Pascal VOC layout")
    parser.add_argument("--split", default="test", help="image set of the dataset (default: test)")
    parser.add_argument("--every", type=int, default=1, help="use every n-th image (default: 1)")
    parser.add_argument("--modes", nargs="+", default=["fast", "quality"], choices=["fast", "quality"])
    parser.add_argument("--opencv-python", help="Python interpreter of an environment with OpenCV contrib")


def run(arguments: argparse.Namespace) -> None:
    names = (
        (arguments.data / f"ImageSets/Main/{arguments.split}.txt")
        .read_text(encoding="utf-8")
        .split()[:: arguments.every]
    )
    paths = [arguments.data / f"JPEGImages/{name}.jpg" for name in names]
    objects = [read_objects(arguments.data / f"Annotations/{name}.xml") for name in names]
    print(f"{len(names)} images; {machine()}\n")
    selective_search(np.zeros((8, 8, 3), np.uint8))  # compiles the kernels
    if not arguments.opencv_python:
        print("Only ours: --opencv-python was not given.\n")
    rows = []
    for mode in arguments.modes:
        found = {"ours": ours(paths, mode, threads=1)}
        if arguments.opencv_python:
            found = in_turns(paths, mode, arguments.opencv_python)
        for name, results in found.items():
            rows += table_rows(f"{name}, {mode}", results, objects)
    classes = sorted({label for labels, _ in objects for label in labels})
    print_table(
        ["", "s/image", "boxes", "AR", *(f"{c} {what}" for c in classes for what in ("0.5", "0.7", "AR"))],
        rows,
    )
    print()
    print_threads(paths)


def machine() -> str:
    versions = f"Python {platform.python_version()}, numba {numba.__version__}, numpy {np.__version__}"
    return f"{processor()}, {os.cpu_count()} cores; {versions}"


def read_objects(path: Path) -> tuple[list[str], np.ndarray]:
    """Class names (G,) and boxes (G, 4) x1 y1 x2 y2 of an annotation file."""
    names, boxes = [], []
    for element in ElementTree.parse(path).getroot().iter("object"):
        x1, y1, x2, y2 = (float(element.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
        names.append(element.findtext("name"))
        boxes.append((x1 - 1, y1 - 1, x2, y2))
    return names, np.array(boxes).reshape(-1, 4)


def timed(path: Path, mode: str, threads: int) -> tuple[float, np.ndarray]:
    image = np.asarray(Image.open(path).convert("RGB"))
    start = time.perf_counter()
    boxes = selective_search(image, mode, threads=threads)
    return time.perf_counter() - start, boxes


def ours(paths: list[Path], mode: str, threads: int) -> list[tuple[float, np.ndarray]]:
    return [timed(path, mode, threads) for path in paths]


def in_turns(paths: list[Path], mode: str, python: str) -> dict[str, list[tuple[float, np.ndarray]]]:
    """Results of ours and of OpenCV, image by image, so that other load on the machine affects both."""
    command = [python, "-c", OPENCV_WORKER, mode]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        name = f"OpenCV {json.loads(worker.stdout.readline())}"
        results: dict[str, list[tuple[float, np.ndarray]]] = {"ours": [], name: []}
        for path in paths:
            results["ours"].append(timed(path, mode, threads=1))
            print(path, file=worker.stdin, flush=True)
            seconds, boxes = json.loads(worker.stdout.readline())
            results[name].append((seconds, np.array(boxes)))
        worker.stdin.close()
    return results


def best_ious(boxes: np.ndarray, gt_boxes: np.ndarray) -> np.ndarray:
    """The highest IoU of each of (G, 4) with any of (P, 4)."""
    low = np.maximum(boxes[:, None, :2], gt_boxes[:, :2])
    high = np.minimum(boxes[:, None, 2:], gt_boxes[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    area, gt_area = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes.astype(float), gt_boxes))
    return (shared / (area[:, None] + gt_area - shared)).max(axis=0)


def table_rows(name: str, results: list, objects: list) -> Iterator[list[str]]:
    """For each number of proposals: median seconds, mean boxes, average recall, and recall of each class."""
    seconds = np.median([seconds for seconds, _ in results])
    labels = np.array([label for names, _ in objects for label in names])
    for count in COUNTS:
        ious = np.concatenate(
            [best_ious(b[:count], gt) for (_, b), (_, gt) in zip(results, objects, strict=True) if len(gt)]
        )
        cells, averages = [], []
        for label in sorted(set(labels)):
            recalls = (ious[labels == label][:, None] >= THRESHOLDS - 1e-9).mean(axis=0)
            averages.append(recalls.mean())
            cells += [f"{recalls[0]:.3f}", f"{recalls[4]:.3f}", f"{recalls.mean():.3f}"]
        used = np.mean([len(boxes[:count]) for _, boxes in results])
        yield [
            f"{name}, {f'first {count}' if count else 'all'}",
            f"{seconds:.3f}",
            f"{used:.0f}",
            f"{np.mean(averages):.3f}",
            *cells,
        ]


def print_table(head: list[str], rows: list[list[str]]) -> None:
    for row in (head, ["---"] * len(head), *rows):
        print("|", " | ".join(row), "|")


def print_threads(paths: list[Path]) -> None:
    """Time one image with 1 and with 2 threads, in turns, and print the best of 5."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for path in paths:
        turns = [{threads: timed(path, "fast", threads)[0] for threads in seconds} for _ in range(5)]
        for threads, measured in seconds.items():
            measured.append(min(turn[threads] for turn in turns))
    one, two = (np.median(measured) for measured in seconds.values())
    print(f"Fast, one image: 1 thread {one:.4f} s, 2 threads {two:.4f} s, {one / two:.2f} times")
