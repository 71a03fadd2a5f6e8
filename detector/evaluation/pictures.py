"""Pictures with captions of the worst errors of each kind and of the best detections."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from detector.errors import InputError
from detector.evaluation.error_analysis import KINDS, Errors
from detector.evaluation.matching import HIT, Matches
from detector.structures import GroundTruth
from detector.visualization.drawing import GROUND_TRUTH_COLOUR, draw_boxes

ERRORS_SHOWN, BEST_SHOWN = 4, 8  # per kind, each from a different image
DETECTION_COLOUR = (255, 80, 40)
LONG_SIDE_PX = 250


@dataclass(frozen=True)
class Picture:
    """A crop of an image with its boxes drawn."""

    caption: str
    jpeg: bytes  # empty if the image cannot be read; the caption says why


def draw_errors(
    matches: Matches,
    errors: Errors,
    truths: Sequence[GroundTruth],
    classes: Sequence[str],
    image: Callable[[int], np.ndarray],
) -> dict[str, list[Picture]]:
    """The highest scored detections by kind, for `missed` the largest objects, and as `best` the highest scored hits.

    Each is cropped from its image with a margin: the detection in orange, its object in white. `image` returns the
    image (H, W, 3) of a ground truth by index.
    """
    objects = matches.objects

    def of_detection(index: int) -> Picture:
        target = int(errors.target[index])
        caption = f"{classes[matches.labels[index] - 1]} {matches.scores[index]:.2f}"
        if target >= 0:
            caption += f", IoU {errors.iou[index]:.2f} with {classes[objects.labels[target] - 1]}"
        return draw(int(matches.images[index]), caption, target, matches.boxes[index])

    def of_object(index: int) -> Picture:
        return draw(int(objects.images[index]), classes[objects.labels[index] - 1], index)

    def draw(number: int, caption: str, target: int, box: np.ndarray | None = None) -> Picture:
        boxes, colours = np.zeros((0, 4)), []
        if target >= 0:
            boxes, colours = objects.boxes[[target]], [GROUND_TRUTH_COLOUR]
        if box is not None:
            boxes, colours = np.vstack([boxes, box]), [*colours, DETECTION_COLOUR]
        caption = f"{truths[number].image_id}: {caption}"
        try:
            return Picture(caption, _cut_out(image(number), boxes, colours))
        except InputError as error:  # detections from files can be scored without the images
            return Picture(f"{caption} ({error})", b"")

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


def _first_of_each_image(images: np.ndarray, order: np.ndarray, limit: int) -> np.ndarray:
    """The first `limit` entries of `order`, indices into images (N,), that are in different images."""
    _, first = np.unique(images[order], return_index=True)
    return order[np.sort(first)[:limit]]


def _cut_out(image: np.ndarray, boxes: np.ndarray, colours: list[tuple[int, int, int]]) -> bytes:
    """JPEG of a crop of the image around these boxes, with a margin of 0.75 of their extent, and the boxes drawn."""
    height, width = image.shape[:2]
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    margin = (high - low).max() * 0.75 + 8
    x1, y1 = np.maximum(np.floor(low - margin), 0).astype(int)
    x2, y2 = np.minimum(np.ceil(high + margin), (width, height)).astype(int)
    x1, y1 = min(x1, width - 1), min(y1, height - 1)  # a box from a file can be anywhere
    x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
    scale = LONG_SIDE_PX / max(x2 - x1, y2 - y1)
    size = max(round((x2 - x1) * scale), 1), max(round((y2 - y1) * scale), 1)
    part = cv2.resize(image[y1:y2, x1:x2], size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    drawn = draw_boxes(part, np.clip((boxes - [x1, y1, x1, y1]) * scale, -1e4, 1e4), colours, thickness=2)
    return cv2.imencode(".jpg", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))[1].tobytes()
