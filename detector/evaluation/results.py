"""Files of an evaluation: the devkit's result files, metrics.json, and the table for people."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from detector.errors import InputError, first_few
from detector.files import write_atomically
from detector.structures import Detections

RESULT_FILE = "comp4_det_test_{}.txt"


def write_result_files(folder: Path, detections: Sequence[Detections], classes: Sequence[str], devkit: bool) -> None:
    """One file a class, each line `image_id score x1 y1 x2 y2`, 1-based inclusive corners, as the VOC devkit reads.

    devkit: three decimals for scores and one for corners, as the original writes them. Otherwise enough of them that
    scoring the files gives what scoring the detections gave.
    """
    form = "{} {:.3f} {:.1f} {:.1f} {:.1f} {:.1f}\n" if devkit else "{} {:.9g} {:.5f} {:.5f} {:.5f} {:.5f}\n"
    for label, name in enumerate(classes, start=1):
        lines = []
        for item in detections:
            mine = item.labels == label
            corners = item.boxes[mine].astype(np.float64) + (1, 1, 0, 0)
            for score, corner in zip(item.scores[mine], corners, strict=True):
                lines.append(form.format(item.image_id, score, *corner))
        write_atomically(folder / RESULT_FILE.format(name), "".join(lines).encode())


def through_files(
    folder: Path, detections: Sequence[Detections], classes: Sequence[str], devkit: bool
) -> list[Detections]:
    """Write the result files, and return what is to be scored: with `devkit` the rounded values that they hold."""
    write_result_files(folder, detections, classes, devkit)
    if devkit:
        return read_result_files(folder, [item.image_id for item in detections], classes)
    return list(detections)


def result_classes(folder: Path) -> list[str]:
    """Classes that the folder has a result file for, sorted. Raises InputError without any."""
    if not folder.is_dir():
        raise InputError(f"detections: there is no folder {folder}")
    prefix, suffix = RESULT_FILE.split("{}")
    names = sorted(path.name[len(prefix) : -len(suffix)] for path in folder.glob(RESULT_FILE.format("*")))
    if not names:
        raise InputError(f"detections: {folder} holds no file {RESULT_FILE.format('CLASS')}")
    return names


def read_result_files(folder: Path, image_ids: Sequence[str], classes: Sequence[str]) -> list[Detections]:
    """Detections of every image, in the order of `image_ids`; a class without a file has none.

    Raises InputError, naming the file and line, for a line of another form or an image that is not in `image_ids`.
    """
    numbers = {image_id: number for number, image_id in enumerate(image_ids)}
    rows, images, labels = [], [], []
    for label, name in enumerate(classes, start=1):
        path = folder / RESULT_FILE.format(name)
        for line_number, line in enumerate(path.read_text().splitlines() if path.is_file() else [], start=1):
            image_id, *values = line.rsplit(maxsplit=5) or [""]  # an id may hold spaces
            try:
                row = [float(value) for value in values]
            except ValueError:
                row = []
            if len(row) != 5 or not all(map(math.isfinite, row)):
                raise InputError(f"{path}, line {line_number}: not `image_id score x1 y1 x2 y2`: {line!r}")
            if image_id not in numbers:
                raise InputError(
                    f"{path}, line {line_number}: image '{image_id}' is not in the split that is scored, which has "
                    f"{first_few(list(image_ids), 3)}: is it the right data.val_split?"
                )
            rows.append(row)
            images.append(numbers[image_id])
            labels.append(label)
    table = np.array(rows, dtype=np.float64).reshape(-1, 5) - (0, 1, 1, 0, 0)
    image_of, label_of = np.array(images, dtype=np.int64), np.array(labels, dtype=np.int64)
    order = np.argsort(image_of, kind="stable")
    parts = np.split(order, np.searchsorted(image_of[order], np.arange(1, len(image_ids))))
    return [
        Detections(image_id, table[part, 1:], label_of[part], table[part, 0])
        for image_id, part in zip(image_ids, parts, strict=True)
    ]


def write_metrics(path: Path, metrics: dict) -> None:
    """Write metrics.json."""
    write_atomically(path, (json.dumps(metrics, indent=1) + "\n").encode())


def ap_table(voc: dict) -> str:
    """The AP of each class and the mean, a column for each metric, as text."""
    columns = list(voc)
    classes = list(voc[columns[0]]["AP"])
    width = max(len(name) for name in [*classes, "class"])
    lines = [f"{'class':{width}}  " + "  ".join(f"{column:>13}" for column in columns)]
    for name in classes:
        lines.append(f"{name:{width}}  " + "  ".join(f"{_number(voc[column]['AP'][name]):>13}" for column in columns))
    lines.append(f"{'mAP':{width}}  " + "  ".join(f"{_number(voc[column]['mAP']):>13}" for column in columns))
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "no object" if value is None else f"{value:.4f}"


def file_name(name: str) -> str:
    """A class's name as part of a file's name; different names stay different."""
    return quote(name, safe=" ")
