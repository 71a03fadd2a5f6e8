"""Files of detections: VOC devkit result files and COCO results."""

import json
import math
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from detector.box_arrays import to_xywh
from detector.errors import InputError, first_few
from detector.runtime.files import read_json, reading, write_atomically
from detector.structures import Detections

RESULT_FILE = "comp4_det_test_{}.txt"


def write_result_files(folder: Path, detections: Sequence[Detections], classes: Sequence[str], devkit: bool) -> None:
    """Write one file per class, each line `image_id score x1 y1 x2 y2` with 1-based inclusive corners, for the devkit.

    devkit: three decimals for scores and one for corners, as in the original. Otherwise enough decimals that scoring
    the files gives the same result as scoring the detections.
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


def round_trip_results(
    folder: Path, detections: Sequence[Detections], classes: Sequence[str], devkit: bool
) -> list[Detections]:
    """Write the result files and return the detections to score: with `devkit`, the rounded values in the files."""
    write_result_files(folder, detections, classes, devkit)
    if devkit:
        return read_result_files(folder, [item.image_id for item in detections], classes)
    return list(detections)


def result_classes(folder: Path) -> list[str]:
    """Classes with a result file in the folder, sorted. Raises InputError if there are none."""
    if not folder.is_dir():
        raise InputError(f"detections: there is no folder {folder}")
    prefix, suffix = RESULT_FILE.split("{}")
    names = sorted(path.name[len(prefix) : -len(suffix)] for path in folder.glob(RESULT_FILE.format("*")))
    if not names:
        raise InputError(f"detections: {folder} has no file {RESULT_FILE.format('CLASS')}")
    return names


def read_result_files(
    folder: Path, image_ids: Sequence[str], classes: Sequence[str], known_ids: Sequence[str] = ()
) -> list[Detections]:
    """Detections of every image, in the order of `image_ids`; a class without a file has none.

    Other images in `known_ids` are ignored. Raises InputError, naming the file and line, for an invalid line or an
    image that is in neither.
    """
    numbers = _numbers(image_ids, known_ids)
    tables, images = [np.zeros((0, 5))], [np.zeros(0, dtype=np.int64)]
    for name in classes:
        path = folder / RESULT_FILE.format(name)
        lines = _lines(path) if path.exists() else []
        fields: list[str] = []
        for line in lines:
            fields += line.rsplit(maxsplit=5)  # an id can contain spaces
        ids = fields[::6]
        del fields[::6]
        try:  # a line has at most 6 fields, so the shape matches only if each has 6
            table = np.array(list(map(float, fields))).reshape(len(lines), 5)
            images.append(np.array([numbers[image_id] for image_id in ids], dtype=np.int64))
        except (ValueError, KeyError):
            raise _first_bad_line(path, lines, image_ids, numbers) from None
        if not np.isfinite(table).all():
            raise _first_bad_line(path, lines, image_ids, numbers)
        tables.append(table)
    labels = np.repeat(np.arange(len(classes)) + 1, [len(table) for table in tables[1:]])
    table = np.concatenate(tables)
    tables.clear()
    table[:, 1:3] -= 1
    return _by_image(image_ids, np.concatenate(images), labels, table[:, 0], table[:, 1:])


def _lines(path: Path) -> list[str]:
    with reading(path, "not UTF-8 text"):
        return path.read_text(encoding="utf-8").splitlines()


def _first_bad_line(path: Path, lines: list[str], image_ids: Sequence[str], known: Collection[str]) -> InputError:
    for number, line in enumerate(lines, start=1):
        image_id, *values = line.rsplit(maxsplit=5) or [""]
        if len(values) != 5 or not all(map(_is_finite, values)):
            return InputError(f"{path}, line {number}: not `image_id score x1 y1 x2 y2`: {line!r}")
        if image_id not in known:
            return InputError(f"{path}, line {number}: {_unknown_image(image_id, image_ids)}")
    raise AssertionError(f"{path}: no line is wrong")


def _is_finite(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _unknown_image(image_id: str, image_ids: Sequence[str]) -> str:
    return (
        f"image '{image_id}' is not in the split that is scored, which has {first_few(list(image_ids), 3)}: "
        "is it the right data.val_split?"
    )


def _numbers(image_ids: Sequence[str], known_ids: Sequence[str]) -> dict[str, int]:
    """The number of each image; images only in `known_ids` all have the next free number."""
    return dict.fromkeys(known_ids, len(image_ids)) | {image_id: number for number, image_id in enumerate(image_ids)}


def _by_image(
    image_ids: Sequence[str], images: np.ndarray, labels: np.ndarray, scores: np.ndarray, boxes: np.ndarray
) -> list[Detections]:
    """Split rows of all images, with image numbers (N,), into the detections of each image, best first."""
    order = np.lexsort((-scores, images))
    *parts, _ = np.split(order, np.searchsorted(images[order], np.arange(1, len(image_ids) + 1)))
    return [
        Detections(image_id, boxes[part], labels[part], scores[part])
        for image_id, part in zip(image_ids, parts, strict=True)
    ]


def write_coco_results(
    path: Path, detections: Sequence[Detections], classes: Sequence[str], category_ids: Mapping[str, int]
) -> None:
    """Write a JSON list of `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`, 0-based pixels.

    An image id that is an integer, as in COCO, is written as a number. Each entry also has its `category_name`, so that
    it remains valid with another selection or order of classes. There is one entry per line.
    """
    rows = []
    for item in detections:
        boxes = item.boxes.astype(np.float64)
        xywh = to_xywh(boxes).round(5).tolist()
        image_id = int(item.image_id) if re.fullmatch("0|[1-9][0-9]*", item.image_id) else item.image_id
        for label, score, bbox in zip(item.labels.tolist(), item.scores.tolist(), xywh, strict=True):
            name = classes[label - 1]
            rows.append(
                {"image_id": image_id, "category_id": category_ids[name], "category_name": name, "bbox": bbox,
                 "score": score}
            )  # fmt: skip
    write_atomically(path, "".join(["[\n", ",\n".join(map(json.dumps, rows)), "\n]\n"]).encode())


def read_coco_results(
    path: Path,
    image_ids: Sequence[str],
    classes: Sequence[str],
    category_ids: Mapping[str, int],
    known_ids: Sequence[str] = (),
) -> list[Detections]:
    """Detections of every image, in the order of `image_ids`, from a file as above; only those of `classes`.

    An entry without `category_name` gets that of its `category_id`; other images in `known_ids` are ignored. Raises
    InputError, naming the file and the entry, for an invalid entry, an unknown image or category, and if no entry is of
    these classes.
    """
    entries = read_json(path, sys.maxsize)
    if not isinstance(entries, list):
        raise InputError(f"detections: {path} has no COCO results, which are a list")
    numbers = _numbers(image_ids, known_ids)
    name_of = {id: name for name, id in category_ids.items()}
    label_of = {name: label for label, name in enumerate(classes, start=1)}
    images, labels, rows = [], [], []
    for place, entry in enumerate(entries, start=1):
        try:
            image_id, category = str(entry["image_id"]), entry["category_id"]
            name = entry.get("category_name", name_of.get(category))
            label = label_of.get(name, 0)
            x, y, width, height = map(float, entry["bbox"])
            row: tuple[float, ...] = (float(entry["score"]), x, y, x + width, y + height)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            row = (math.nan,)
        if not all(map(math.isfinite, row)):
            raise InputError(f"{path}, entry {place}: not image_id, category_id, bbox of four, score: {entry!r:.200}")
        if image_id not in numbers:
            raise InputError(f"{path}, entry {place}: {_unknown_image(image_id, image_ids)}")
        if name is None:
            known = first_few([f"{id} ({name})" for id, name in name_of.items()])
            raise InputError(
                f"{path}, entry {place}: the category {category!r} is not among those of the dataset: {known}"
            )
        if label:
            images.append(numbers[image_id])
            labels.append(label)
            rows.append(row)
    if entries and not rows:
        raise InputError(f"detections: {path} has no detection of the classes {first_few(list(classes))}")
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    return _by_image(image_ids, np.array(images, np.int64), np.array(labels, np.int64), table[:, 0], table[:, 1:])
