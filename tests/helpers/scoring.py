"""Objects, detections and datasets to score, and a plain, slow scorer."""

import json
import math
import re
from pathlib import Path

import numpy as np

from detector.data.dataset import DetectionDataset, Record
from detector.errors import InputError
from detector.structures import Detections, GroundTruth
from tests.conftest import ground_truth


def found(image_id: str, *detections: tuple) -> Detections:
    """Detections as (label, score, x1, y1, x2, y2)."""
    return Detections(
        image_id,
        np.array([d[2:] for d in detections], dtype=np.float32).reshape(-1, 4),
        np.array([d[0] for d in detections], dtype=np.int64),
        np.array([d[1] for d in detections], dtype=np.float32),
    )


def slow_ap(truths, detections, label, overlap, area_range=(0, math.inf)):
    """The rules once more, one detection after the other. Returns both metrics."""

    def fits(area):
        return area_range[0] <= area <= area_range[1]

    def shared(box, other):
        w, h = min(box[2], other[2]) - max(box[0], other[0]), min(box[3], other[3]) - max(box[1], other[1])
        return float(w) * float(h) if w > 0 and h > 0 else 0.0

    def area(box):
        return float(box[2] - box[0]) * float(box[3] - box[1])

    by_id = {t.image_id: t for t in truths}
    number = {t.image_id: i for i, t in enumerate(truths)}
    found = set()
    objects = sum(
        of == label and not difficult and not crowd and fits(area)
        for t in truths
        for of, difficult, crowd, area in zip(t.labels, t.difficult, t.crowd, t.areas, strict=True)
    )
    rows = [(-s, number[d.image_id], i, d.image_id, b) for d in detections
            for i, (s, b, of) in enumerate(zip(d.scores, d.boxes, d.labels, strict=True)) if of == label]  # fmt: skip
    points, hits, tried = [], 0, 0
    for _, _, _, image_id, box in sorted(rows, key=lambda row: row[:3]):
        t, best, best_iou, in_crowd = by_id[image_id], -1, 0.0, False
        for index in range(len(t.labels)):
            inter = shared(box, t.boxes[index])
            if t.labels[index] != label:
                continue
            if t.crowd[index]:
                in_crowd |= inter / area(box) >= overlap
            elif inter / (area(box) + area(t.boxes[index]) - inter) > best_iou:
                best, best_iou = index, inter / (area(box) + area(t.boxes[index]) - inter)
        reached = best >= 0 and best_iou >= overlap
        if reached and (t.difficult[best] or not fits(t.areas[best])):
            continue
        hit = reached and (image_id, best) not in found
        if hit:
            found.add((image_id, best))
        elif in_crowd or not fits(area(box)):
            continue
        hits, tried = hits + hit, tried + 1
        points.append((hits / objects if objects else 0.0, hits / tried))
    if not objects:
        return None, None
    eleven = sum(max([p for r, p in points if r >= level], default=0.0) for level in (n / 10 for n in range(11))) / 11
    under, last = 0.0, 0.0
    for index, (recall, _) in enumerate(points):
        under += (recall - last) * max(p for _, p in points[index:])
        last = recall
    return eleven, under


def random_case(generator: np.random.Generator) -> tuple[list[GroundTruth], list[Detections]]:
    """Boxes on a coarse grid, so that overlaps, thresholds, sizes and scores often tie."""
    truths, detections = [], []
    for number in range(generator.integers(1, 4)):

        def boxes(count):
            corner = generator.integers(0, 4, (count, 2)) * 2
            return np.concatenate([corner, corner + generator.integers(1, 4, (count, 2)) * 2], axis=1)

        g, n = generator.integers(0, 5), generator.integers(0, 6)
        flags = generator.random((2, g)) < [[0.3], [0.2]]
        truths.append(ground_truth(str(number), *zip(generator.integers(1, 3, g), *boxes(g).T, *flags, strict=True)))
        detections.append(
            Detections(
                str(number), boxes(n).astype(np.float32), generator.integers(1, 3, n), generator.integers(1, 6, n) / 8
            )
        )
    return truths, detections


EVIL = "traffic light <script>&" + "ж" * 38  # of 99 bytes; a class may have 100
TRUTHS = [
    ground_truth("<a>", (1, 0, 0, 10, 10), (2, 50, 10, 90, 40), (2, 5, 20, 25, 30)),
    ground_truth("b", (1, 20, 20, 60, 60)),
]
FOUND = [
    found("<a>", (1, 0.9, 0, 0, 10, 8), (1, 0.8, 50, 10, 90, 40), (1, 0.7, 0, 0, 10, 8)),
    found("b", (1, 0.6, 20, 20, 60, 35), (2, 0.5, 80, 5, 200, 9)),
]
CLASSES = [EVIL, "dog", "unicorn"]


def dataset_of(truths, classes, name="set", image: Path | InputError = Path("gone")) -> DetectionDataset:
    records = [
        Record(truth.image_id, image, Path("a.xml"), tuple(classes[label - 1] for label in truth.labels), truth.boxes,
               truth.difficult, truth.crowd, truth.areas)
        for truth in truths
    ]  # fmt: skip
    return DetectionDataset(name, tuple(classes), records)


def embedded(page: Path) -> dict:
    [text] = re.findall('<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(text)
