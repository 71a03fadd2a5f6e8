"""Overview of a dataset: contact sheets of its objects, statistics, and one page of HTML with both."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw

from detector.box_arrays import box_iou_array
from detector.data.dataset import DetectionDataset
from detector.visualization.drawing import COLOURS, caption_font, class_colour
from detector.visualization.style import new_figure, pixels, styled

THUMBNAIL_PX, CAPTION_PX, COLUMNS = 130, 20, 8
PER_SHEET = 24
MARGIN = 0.35  # of an object's longer side, around it
BORDER_PX = 1.0
CLASSES_SHOWN = 30
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }}
img {{ max-width: 100%; height: auto }} h2 {{ margin-top: 2rem }}
</style></head><body>
<h1>{title}</h1>
<p>{summary}</p>
{sections}
</body></html>
"""


@dataclass(frozen=True)
class Objects:
    """All objects of a dataset, concatenated."""

    images: np.ndarray  # (N,) index of the image
    labels: np.ndarray  # (N,) in 1..K
    boxes: np.ndarray  # (N, 4)
    at_border: np.ndarray  # (N,) bool
    overlap: np.ndarray  # (N,): highest IoU with another object of the image

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2): width and height in pixels."""
        return self.boxes[:, 2:] - self.boxes[:, :2]


def collect_objects(dataset: DetectionDataset, image_hws: Sequence[tuple[int, int]]) -> Objects:
    """The objects of a dataset whose images have these sizes."""
    images, labels, boxes, at_border, overlap = [], [], [], [], []
    for index, (height, width) in enumerate(image_hws):
        truth = dataset.ground_truth(index)
        images.append(np.full(len(truth.boxes), index))
        labels.append(truth.labels)
        boxes.append(truth.boxes)
        inside = np.array([width, height]) - BORDER_PX
        at_border.append((truth.boxes[:, :2] <= BORDER_PX).any(axis=1) | (truth.boxes[:, 2:] >= inside).any(axis=1))
        iou = box_iou_array(truth.boxes, truth.boxes)
        np.fill_diagonal(iou, 0)
        overlap.append(iou.max(axis=1, initial=0))
    if not images:
        none = np.zeros(0, dtype=np.int64)
        return Objects(none, none, np.zeros((0, 4), np.float32), none.astype(bool), none.astype(np.float32))
    return Objects(*(np.concatenate(part) for part in (images, labels, boxes, at_border, overlap)))


def choose_objects(objects: Objects, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """The objects of each contact sheet, by its title: of each class, largest, smallest, at the border, overlapping."""
    by_area = np.argsort(objects.sizes.prod(axis=1), kind="stable")
    by_overlap = np.argsort(-objects.overlap, kind="stable")
    chosen = {
        "Largest objects": by_area[::-1],
        "Smallest objects": by_area,
        "Objects that overlap others most": by_overlap[objects.overlap[by_overlap] > 0],
        "Objects at the border of the image": by_area[::-1][objects.at_border[by_area[::-1]]],
    }
    for label, name in enumerate(classes, start=1):
        own = np.flatnonzero(objects.labels == label)
        chosen[f"Class: {name} ({len(own)})"] = own[:: max(len(own) // PER_SHEET, 1)]  # from the whole dataset
    return {title: indices[:PER_SHEET] for title, indices in chosen.items() if len(indices)}


def draw_contact_sheet(dataset: DetectionDataset, objects: Objects, indices: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: a crop around each of these objects, with its box, its class and its size."""
    rows = -(-len(indices) // COLUMNS)
    columns = min(len(indices), COLUMNS)
    sheet = Image.new("RGB", (columns * THUMBNAIL_PX, rows * (THUMBNAIL_PX + CAPTION_PX)), "white")
    draw, font = ImageDraw.Draw(sheet), caption_font(dataset.classes, 12)
    for place, index in enumerate(indices.tolist()):
        x = place % COLUMNS * THUMBNAIL_PX
        y = place // COLUMNS * (THUMBNAIL_PX + CAPTION_PX)
        label = int(objects.labels[index])
        image = Image.fromarray(dataset.image(int(objects.images[index])))
        sheet.paste(_cut_out(image, objects.boxes[index], class_colour(label)), (x, y + CAPTION_PX))
        width, height = objects.sizes[index].tolist()
        size = f" {width:.0f} x {height:.0f}"
        name = dataset.classes[label - 1]
        while len(name) > 1 and draw.textlength(name + size, font) > THUMBNAIL_PX - 6:
            name = name[:-1]
        draw.text((x + 2, y + CAPTION_PX / 2), name + size, "#1a1a1a", font, anchor="lm")
    return np.array(sheet)


def _cut_out(image: Image.Image, box: np.ndarray, colour: str) -> Image.Image:
    """A square crop around the object, scaled to a thumbnail, white outside the image."""
    x1, y1, x2, y2 = box.tolist()
    half = max((0.5 + MARGIN) * max(x2 - x1, y2 - y1), 8.0)
    left, top = (x1 + x2) / 2 - half, (y1 + y2) / 2 - half
    side, scale = THUMBNAIL_PX - 4, (THUMBNAIL_PX - 4) / (2 * half)
    window = (left, top, left + 2 * half, top + 2 * half)
    part = image.transform((side, side), Image.Transform.EXTENT, window, Image.Resampling.BILINEAR, fillcolor="white")
    corners = [(value - start) * scale for value, start in zip((x1, y1, x2, y2), (left, top) * 2, strict=True)]
    ImageDraw.Draw(part).rectangle(corners, outline=colour, width=3)
    return part


@styled
def draw_statistics(objects: Objects, classes: Sequence[str], num_images: int) -> tuple[Figure, list[tuple[int, int]]]:
    """Objects and images by class, objects per image, box sizes and aspect ratios.

    Returns (objects, images) of each class, most objects first, as drawn.
    """
    counts = np.bincount(objects.labels, minlength=len(classes) + 1)[1:]
    with_class = [len(np.unique(objects.images[objects.labels == label])) for label in range(1, len(classes) + 1)]
    order = np.argsort(-counts, kind="stable")[:CLASSES_SHOWN]
    figure = new_figure(12, max(8.0, 4 + 0.35 * len(order)))
    (by_class, per_image), (by_size, by_shape) = figure.subplots(2, 2, height_ratios=(max(len(order) / 8, 1), 1))
    places = np.arange(len(order))
    bars = by_class.barh(places - 0.2, counts[order], 0.4, label="objects", color=COLOURS[0])
    by_class.bar_label(bars, padding=3, fontsize=10)
    bars = by_class.barh(places + 0.2, [with_class[index] for index in order], 0.4, label="images", color=COLOURS[1])
    by_class.bar_label(bars, padding=3, fontsize=10)
    by_class.set_yticks(places, [classes[index] for index in order])
    by_class.invert_yaxis()
    by_class.margins(x=0.35)
    by_class.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)  # beside the title, not on bars
    by_class.set_title(
        ("1 class" if len(classes) == 1 else f"{len(classes)} classes")
        + (f", the first {len(order)}" if len(order) < len(classes) else "")
    )
    numbers = np.bincount(objects.images, minlength=num_images)
    per_image.hist(numbers, bins=np.arange(numbers.max(initial=0) + 2) - 0.5, color=COLOURS[0], rwidth=0.9)
    per_image.set(xlabel="objects in an image", ylabel="images")
    per_image.xaxis.set_major_locator(MaxNLocator(integer=True))
    per_image.set_title(f"{len(objects.labels)} objects in {num_images} images")
    sizes = objects.sizes
    by_size.scatter(sizes[:, 0], sizes[:, 1], s=14, alpha=0.5, color=COLOURS[2], linewidth=0)
    by_size.set(xlabel="width in pixels", ylabel="height in pixels", xscale="log", yscale="log")
    by_size.set_title("Size of the boxes")
    for axis in (by_size.xaxis, by_size.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "25" else "")
    ratio = np.log2(sizes[:, 0] / np.maximum(sizes[:, 1], 1e-6))
    by_shape.hist(np.clip(ratio, -3.4, 3.4), bins=np.linspace(-3.5, 3.5, 29), color=COLOURS[4])
    by_shape.set_xticks([-3, -2, -1, 0, 1, 2, 3], ["1:8", "1:4", "1:2", "1:1", "2:1", "4:1", "8:1"])
    by_shape.set(xlabel="width : height", ylabel="objects")
    by_shape.set_title("Aspect ratio of the boxes")
    return figure, [(int(counts[index]), with_class[index]) for index in order]


def dataset_page(title: str, summary: str, statistics: Figure, sheets: dict[str, np.ndarray]) -> str:
    """One self-contained HTML page."""
    sections = [("Statistics", pixels(statistics)), *sheets.items()]
    parts = [f"<h2>{escape(name)}</h2>\n{_embedded(picture, name)}" for name, picture in sections]
    return PAGE.format(title=escape(title), summary=escape(summary), sections="\n".join(parts))


def _embedded(picture: np.ndarray, name: str) -> str:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=88)
    return f'<img alt="{escape(name)}" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'
