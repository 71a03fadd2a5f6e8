"""Pictures with captions of the worst errors of each kind, of the best detections and of suspected label errors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from detector.data.dataset import DetectionDataset
from detector.errors import InputError
from detector.evaluation.error_analysis import KINDS, Errors
from detector.evaluation.label_errors import Suspect, place_of
from detector.evaluation.matching import HIT, Matches

ERRORS_SHOWN, BEST_SHOWN = 4, 8  # per kind, each from a different image
SUSPECTS_SHOWN = 24
LONG_SIDE_PX = 480


@dataclass(frozen=True)
class Mark:
    """A box to draw over a picture."""

    role: str  # detection, object or proposal: a class in style.css
    box: np.ndarray  # (4,), in the frame of the picture it is drawn on


@dataclass(frozen=True)
class Picture:
    """A crop of an image, with the boxes to draw over it."""

    caption: str
    jpeg: bytes = b""  # empty if the image cannot be read; the caption says why
    width: int = 0
    height: int = 0
    marks: tuple[Mark, ...] = ()


def draw_errors(matches: Matches, errors: Errors, dataset: DetectionDataset) -> dict[str, list[Picture]]:
    """The highest scored detections by kind, for `missed` the largest objects, and as `best` the highest scored hits.

    Each picture has the detection, the proposal that it was refined from, and its object.
    """
    objects, image_ids, classes = matches.objects, dataset.image_ids, dataset.classes

    def of_detection(index: int) -> Picture:
        target = int(errors.target[index])
        caption = f"{classes[matches.labels[index] - 1]} {matches.scores[index]:.2f}"
        if target >= 0:
            caption += f", IoU {errors.iou[index]:.2f} with {classes[objects.labels[target] - 1]}"
        number = int(matches.images[index])
        return cut_out(dataset.image, number, f"{image_ids[number]}: {caption}", marks_of(matches, index, target))

    def of_object(index: int) -> Picture:
        number = int(objects.images[index])
        caption = f"{image_ids[number]}: {classes[objects.labels[index] - 1]}"
        return cut_out(dataset.image, number, caption, [Mark("object", objects.boxes[index])])

    pictures = {}
    for kind in KINDS:
        indices = errors.of_kind(kind)
        rank = objects.areas[indices] if kind == "missed" else matches.scores[indices]
        images = (objects if kind == "missed" else matches).images[indices]
        chosen = indices[_first_of_each_image(images, np.argsort(-rank, kind="stable"), ERRORS_SHOWN)]
        pictures[kind] = [of_object(index) if kind == "missed" else of_detection(index) for index in chosen]
    hits = np.flatnonzero(errors.judged == HIT)
    place_in_class = np.arange(len(hits)) - np.searchsorted(matches.labels[hits], matches.labels[hits])
    order = np.lexsort((-matches.scores[hits], place_in_class))  # first the best of each class, then the second ...
    best = hits[_first_of_each_image(matches.images[hits], order, BEST_SHOWN)]
    return pictures | {"best": [of_detection(index) for index in best]}


def draw_suspects(suspects: Sequence[Suspect], matches: Matches, dataset: DetectionDataset) -> list[Picture]:
    """The first of the suspected label errors, ranked."""
    pictures, classes = [], dataset.classes
    for rank, suspect in enumerate(suspects[:SUSPECTS_SHOWN], start=1):
        number, _ = place_of(suspect, matches)
        said = []
        if suspect.target >= 0:
            said.append(f"labelled {classes[matches.objects.labels[suspect.target] - 1]}")
        if suspect.detection >= 0:
            said.append(
                f"found {classes[matches.labels[suspect.detection] - 1]} {matches.scores[suspect.detection]:.2f}"
            )
            marks = marks_of(matches, suspect.detection, suspect.target)
        else:
            marks = [Mark("object", matches.objects.boxes[suspect.target])]
        caption = f"{rank}. {suspect.kind} {suspect.suspicion:.2f}, {dataset.image_ids[number]}: {', '.join(said)}"
        pictures.append(cut_out(dataset.image, number, caption, marks))
    return pictures


def marks_of(matches: Matches, detection: int, target: int = -1) -> list[Mark]:
    """The boxes of a detection, of its proposal if that is known, and of an object if `target` is not -1."""
    marks = [Mark("object", matches.objects.boxes[target])] if target >= 0 else []
    if np.isfinite(matches.proposals[detection]).all():
        marks.append(Mark("proposal", matches.proposals[detection]))
    return [*marks, Mark("detection", matches.boxes[detection])]


def _first_of_each_image(images: np.ndarray, order: np.ndarray, limit: int) -> np.ndarray:
    """The first `limit` entries of `order`, indices into images (N,), that are in different images."""
    _, first = np.unique(images[order], return_index=True)
    return order[np.sort(first)[:limit]]


def cut_out(read: Callable[[int], np.ndarray], number: int, caption: str, marks: Sequence[Mark]) -> Picture:
    """The part of the image `read(number)` around these boxes, with a margin of 0.75 of their extent."""
    try:
        image = read(number)
    except InputError as error:  # detections from files can be scored without the images
        return Picture(f"{caption} ({error})")
    height, width = image.shape[:2]
    boxes = np.array([mark.box for mark in marks], dtype=np.float64)
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    margin = (high - low).max() * 0.75 + 8
    x1, y1 = np.maximum(np.floor(low - margin), 0).astype(int)
    x2, y2 = np.minimum(np.ceil(high + margin), (width, height)).astype(int)
    x1, y1 = min(x1, width - 1), min(y1, height - 1)  # a box from a file can be anywhere
    x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
    scale = LONG_SIDE_PX / max(x2 - x1, y2 - y1)
    size = max(round((x2 - x1) * scale), 1), max(round((y2 - y1) * scale), 1)
    part = cv2.resize(image[y1:y2, x1:x2], size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    jpeg = cv2.imencode(".jpg", cv2.cvtColor(part, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
    moved = np.clip((boxes - [x1, y1, x1, y1]) * scale, -1e4, 1e4)
    shown = tuple(Mark(mark.role, box) for mark, box in zip(marks, moved, strict=True))
    return Picture(caption, jpeg, *size, shown)
