"""Drawing boxes on images."""

import colorsys
from collections.abc import Sequence
from itertools import product

import cv2
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from detector.structures import Detections, GroundTruth

# Okabe and Ito (2008): distinguishable with any colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
GROUND_TRUTH_COLOUR = (255, 255, 255)
SCREEN_PX = 1000  # images with a longer side are shown downscaled


def class_colour(label: int) -> str:
    """Colour "#RRGGBB" of a label 1..K: one of COLOURS, then others far apart on the colour wheel."""
    if label <= len(COLOURS):
        return COLOURS[label - 1]
    parts = colorsys.hsv_to_rgb(label * 137.5 / 360 % 1, 0.86, 1.0)  # the golden angle
    return "#" + "".join(f"{round(255 * part):02X}" for part in parts)


def is_dark(colour: Sequence[int]) -> bool:
    """Whether text on this colour (red, green, blue) must be light."""
    return bool(np.dot(colour, (0.299, 0.587, 0.114)) < 128)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    colours: Sequence[tuple[int, ...]],
    captions: Sequence[str] | None = None,
    thickness: int = 1,
) -> np.ndarray:
    """A copy of the image (H, W, 3) uint8 with boxes (N, 4) in its frame and captions drawn on it, in order.

    Line width and font size grow with images larger than a screen, so that they stay visible.
    """
    picture = np.ascontiguousarray(image).copy()
    grow = max(max(picture.shape[:2]) / SCREEN_PX, 1.0)
    corners = [(x1, y1, x2, y2) for x1, y1, x2, y2 in np.round(boxes).astype(int).tolist()]
    for (x1, y1, x2, y2), colour in zip(corners, colours, strict=True):
        cv2.rectangle(picture, (x1, y1), (x2 - 1, y2 - 1), colour, round(thickness * grow))
    return picture if captions is None else _draw_captions(picture, corners, colours, captions, 11 * grow)


def _draw_captions(
    picture: np.ndarray,
    corners: Sequence[tuple[int, int, int, int]],
    colours: Sequence[tuple[int, ...]],
    captions: Sequence[str],
    size_px: float,
) -> np.ndarray:
    """Draw each caption at its box, where it hides none of a later box if there is such a place."""
    canvas = Image.fromarray(picture)
    draw, font = ImageDraw.Draw(canvas), caption_font(captions, size_px)
    height = 1.3 * size_px
    places: list[tuple[float, float, float, float]] = []
    for box, text in zip(corners[::-1], captions[::-1], strict=True):
        places.append(_caption_place(box, (draw.textlength(text, font) + 0.4 * size_px, height), canvas.size, places))
    for (x1, y1, x2, y2), colour, text in zip(places[::-1], colours, captions, strict=True):
        draw.rectangle((x1, y1, x2, y2), fill=colour)
        ink = "white" if is_dark(colour) else "black"
        draw.text((x1 + 0.2 * size_px, (y1 + y2) / 2), text, ink, font, anchor="lm")
    return np.array(canvas)


def _caption_place(
    box: Sequence[int], size: tuple[float, float], canvas: tuple[int, int], taken: Sequence[tuple[float, ...]]
) -> tuple[float, float, float, float]:
    """The first free place, as (x1, y1, x2, y2): above the box, below it, or inside at its top or bottom."""
    (left, top, right, bottom), (width, height) = box, size
    places = []
    for y, x in product((top - height, bottom, top, bottom - height), (left, right - width)):
        x1, y1 = max(min(x, canvas[0] - width), 0), max(min(y, canvas[1] - height), 0)
        places.append((x1, y1, x1 + width, y1 + height))
    free = (
        (x1, y1, x2, y2)
        for x1, y1, x2, y2 in places
        if not any(x1 < other[2] and other[0] < x2 and y1 < other[3] and other[1] < y2 for other in taken)
    )
    return next(free, places[0])


def caption_font(texts: Sequence[str], size_px: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font for ASCII, else an installed one."""
    if all(text.isascii() for text in texts):
        return ImageFont.load_default(size_px)
    from detector.visualization.fonts import pillow_font  # loads matplotlib

    return pillow_font(texts, size_px)


def draw_detections(
    image: np.ndarray, truth: GroundTruth, detections: Detections, classes: Sequence[str], score_threshold: float = 0.3
) -> np.ndarray:
    """Draw ground truth in white, and detections of at least this score in their class colour with name and score.

    The best ones are on top.
    """
    picture = draw_boxes(image, truth.boxes, [GROUND_TRUTH_COLOUR] * len(truth.boxes), thickness=2)
    shown = np.flatnonzero(detections.scores >= score_threshold)[::-1]
    boxes, labels, scores = detections.boxes[shown], detections.labels[shown], detections.scores[shown]
    captions = [f"{classes[label - 1]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    return draw_boxes(picture, boxes, [ImageColor.getrgb(class_colour(label)) for label in labels], captions)
