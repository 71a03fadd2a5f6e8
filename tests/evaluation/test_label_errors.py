import csv
import io

import numpy as np

from detector.evaluation.error_analysis import find_errors
from detector.evaluation.label_errors import find_label_errors, label_errors_csv
from detector.evaluation.matching import match
from detector.structures import Detections
from tests.conftest import ground_truth

CAT, DOG = 1, 2
CLASSES = ["cat", "dog"]


def suspects_of(truths, detections):
    matches = match(truths, detections, 2)
    suspects = find_label_errors(matches, find_errors(matches), 0.5)
    text = label_errors_csv(suspects, matches, [truth.image_id for truth in truths], CLASSES)
    return suspects, list(csv.DictReader(io.StringIO(text)))


def scene(generator: np.random.Generator, image_id: str):
    """Four objects far apart, and what a good network finds: all of them, and boxes with low scores anywhere."""
    objects = [
        [int(generator.integers(1, 3)), 150 * place + 10, 20, 150 * place + 10 + size, 20 + size]
        for place, size in enumerate(generator.integers(40, 100, 4).tolist())
    ]
    boxes = np.array([item[1:] for item in objects]) + generator.normal(0, 2, (4, 4))
    noise = np.array([[x, y, x + 50, y + 50] for x, y in generator.uniform(0, 500, (6, 2))])
    scores = np.concatenate([generator.uniform(0.7, 0.95, 4), generator.uniform(0.05, 0.3, 6)]).astype(np.float32)
    labels = np.array([item[0] for item in objects] + generator.integers(1, 3, 6).tolist())
    return objects, Detections(image_id, np.vstack([boxes, noise]).astype(np.float32), labels, scores)


def test_planted_errors_rank_first():
    generator = np.random.default_rng(0)
    names = [f"image{number}" for number in range(40)]
    scenes = [scene(generator, name) for name in names]
    labels = [objects for objects, _ in scenes]
    removed = labels[3].pop(1)
    labels[7][2][0] = swapped = 3 - labels[7][2][0]
    labels[11].append([CAT, 620, 300, 690, 360])  # nothing is there
    x1, y1, x2, y2 = labels[15][0][1:]
    labels[15][0][1:] = moved = [x1, y1, x1 + 0.3 * (x2 - x1), y2]
    truths = [ground_truth(name, *objects) for name, objects in zip(names, labels, strict=True)]
    suspects, rows = suspects_of(truths, [found for _, found in scenes])
    first = {row["kind"]: row for row in rows[:3]}
    assert {kind: row["image"] for kind, row in first.items()} == {
        "missing": "image3", "class": "image7", "spurious": "image11",
    }  # fmt: skip
    assert np.allclose([float(first["missing"][key]) for key in ("x1", "y1", "x2", "y2")], removed[1:], atol=10)
    assert (first["missing"]["label"], first["missing"]["found"]) == ("", CLASSES[removed[0] - 1])
    assert (first["class"]["label"], first["class"]["found"]) == (CLASSES[swapped - 1], CLASSES[2 - swapped])
    assert (first["spurious"]["label"], first["spurious"]["found"]) == ("cat", "")
    box = next(row for row in rows if row["kind"] == "box")
    assert (box["image"], [float(box[key]) for key in ("x1", "y1", "x2", "y2")]) == ("image15", moved)
    assert suspects[3].suspicion < suspects[2].suspicion - 0.2  # the planted ones stand out
    assert [float(row["suspicion"]) for row in rows] == [round(suspect.suspicion, 4) for suspect in suspects]


def test_formulas():
    truths = [ground_truth("a", (CAT, 0, 0, 10, 10), (CAT, 100, 0, 110, 10)), ground_truth("b", (DOG, 0, 0, 10, 10))]
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [300, 0, 310, 10]], np.float32)
    detections = [
        Detections("a", boxes, np.array([CAT, DOG, DOG]), np.array([0.5, 0.75, 0.625], np.float32)),
        Detections("b", np.array([[0, 0, 10, 3]], np.float32), np.array([DOG]), np.array([0.5], np.float32)),
    ]
    suspects, _ = suspects_of(truths, detections)
    assert [(suspect.kind, round(suspect.suspicion, 6)) for suspect in suspects] == [
        ("missing", 0.625),
        ("spurious", 0.5),  # half the cats are found
        ("class", 0.25),  # 0.75 - 0.5
        ("box", 0.2),  # 0.5 (1 - 0.3 / 0.5)
    ]


def test_difficult_objects_and_crowds_are_no_suspects():
    truths = [ground_truth("a", (CAT, 0, 0, 10, 10, True), (CAT, 50, 0, 90, 40, True, True), (DOG, 200, 0, 210, 10))]
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 4], [60, 10, 70, 20], [200, 0, 210, 10]], np.float32)
    found = Detections("a", boxes, np.array([DOG, CAT, CAT, DOG]), np.array([0.9, 0.8, 0.7, 1.0], np.float32))
    assert suspects_of(truths, [found])[0] == []


def test_nothing_to_suspect():
    assert suspects_of([ground_truth("a")], [])[0] == []
    assert suspects_of([ground_truth("a", (CAT, 0, 0, 10, 10))], [])[0] == []  # no network to ask
