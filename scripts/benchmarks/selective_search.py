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
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from detector.box_arrays import box_iou_array
from detector.data.dataset import DetectionDataset
from detector.data.formats.voc import read_voc
from detector.selective_search import selective_search
from scripts._measure import at_least_one, machine, show

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
    parser.add_argument("--every", type=at_least_one, default=1, help="use every n-th image (default: 1)")
    parser.add_argument("--modes", nargs="+", default=["fast", "quality"], choices=["fast", "quality"])
    parser.add_argument("--opencv-python", help="Python interpreter of an environment with OpenCV contrib")


def run(arguments: argparse.Namespace) -> None:
    dataset = read_voc(arguments.data, arguments.split)
    dataset = dataset.subset(range(0, len(dataset), arguments.every))
    paths = [dataset.image_path(index) for index in range(len(dataset))]
    print(f"{len(paths)} images; {machine()}\n")
    selective_search(np.zeros((8, 8, 3), np.uint8))  # compiles the kernels
    if not arguments.opencv_python:
        print("Only ours: --opencv-python was not given.\n")
    rows: list[dict[str, str]] = []
    for mode in arguments.modes:
        if arguments.opencv_python:
            found = in_turns(paths, mode, arguments.opencv_python)
        else:
            found = {"ours": [timed(path, mode, threads=1) for path in paths]}
        for name, results in found.items():
            rows += table_rows(f"{name}, {mode}", results, dataset)
    show(rows)
    print()
    print_threads(paths)


def timed(path: Path, mode: str, threads: int) -> tuple[float, np.ndarray]:
    image = np.asarray(Image.open(path).convert("RGB"))
    start = time.perf_counter()
    boxes = selective_search(image, mode, threads=threads)
    return time.perf_counter() - start, boxes


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


def table_rows(
    name: str, results: list[tuple[float, np.ndarray]], dataset: DetectionDataset
) -> Iterator[dict[str, str]]:
    """For each number of proposals: median seconds, mean boxes, average recall, and recall of each class."""
    labels = np.array([label for record in dataset.records for label in record.names])
    for count in COUNTS:
        pairs = [
            (record.boxes.astype(float), boxes[:count])
            for record, (_, boxes) in zip(dataset.records, results, strict=True)
        ]
        ious = np.concatenate([box_iou_array(gt_boxes, boxes).max(axis=1) for gt_boxes, boxes in pairs])
        recalls = {label: (ious[labels == label, None] >= THRESHOLDS - 1e-9).mean(axis=0) for label in dataset.classes}
        row = {
            "": f"{name}, {f'first {count}' if count else 'all'}",
            "s/image": f"{np.median([seconds for seconds, _ in results]):.3f}",
            "boxes": f"{np.mean([len(boxes) for _, boxes in pairs]):.0f}",
            "AR": f"{np.mean([recall.mean() for recall in recalls.values()]):.3f}",
        }
        for label, recall in recalls.items():
            values = {"0.5": recall[0], "0.7": recall[4], "AR": recall.mean()}
            row |= {f"{label} {what}": f"{value:.3f}" for what, value in values.items()}
        yield row


def print_threads(paths: list[Path]) -> None:
    """Time one image with 1 and with 2 threads, in turns, and print the best of 5."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for path in paths:
        turns = [{threads: timed(path, "fast", threads)[0] for threads in seconds} for _ in range(5)]
        for threads, measured in seconds.items():
            measured.append(min(turn[threads] for turn in turns))
    one, two = (np.median(measured) for measured in seconds.values())
    print(f"Fast, one image: 1 thread {one:.4f} s, 2 threads {two:.4f} s, {one / two:.2f} times")
