"""Datasets with as little in them as a user's may have, in VOC layout; also by hand:

python -m tests.helpers.degenerate KIND FOLDER [IMAGES]
"""

import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from detector.data.formats.shapes import draw_scene
from detector.data.formats.voc import annotation_xml

Scene = tuple[np.ndarray, list[dict]]


def _one_object(number: int, image: np.ndarray, objects: list[dict]) -> Scene:
    return image, objects[:1]


def _twenty_classes(number: int, image: np.ndarray, objects: list[dict]) -> Scene:
    return image, [item | {"name": f"class{(5 * number + place) % 20:02d}"} for place, item in enumerate(objects)]


def _tiny_objects(number: int, image: np.ndarray, objects: list[dict]) -> Scene:
    """The scene at a fifth of its size, in a corner of an empty one: objects of 6 to 25 pixels."""
    small = cv2.resize(image, None, fx=0.2, fy=0.2, interpolation=cv2.INTER_AREA)
    wide = np.full_like(image, 120)
    y, x = 10 * (number % 15), 17 * (number % 11)
    wide[y : y + small.shape[0], x : x + small.shape[1]] = small
    return wide, [item | {"box": tuple(np.array(item["box"]) * 0.2 + [x, y, x, y])} for item in objects]


def _mostly_empty(number: int, image: np.ndarray, objects: list[dict]) -> Scene:
    return image, objects if number % 10 == 0 else []


KINDS: dict[str, tuple[int | None, Callable[[int, np.ndarray, list[dict]], Scene]]] = {
    "one image": (1, lambda number, image, objects: (image, objects)),
    "two images": (2, lambda number, image, objects: (image, objects)),
    "20 classes": (None, _twenty_classes),
    "tiny objects": (None, _tiny_objects),
    "one object per image": (None, _one_object),
    "90% without objects": (None, _mostly_empty),
}


def make_degenerate(kind: str, root: Path, images: int) -> Path:
    """Write the dataset; its splits trainval and test have `images` and three images, or as few as its kind says."""
    count, change = KINDS[kind]
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, first, number_of_images in (("trainval", 0, count or images), ("test", 10_000, 3)):
        ids = [f"{split}_{number:04d}" for number in range(number_of_images)]
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
        for number, image_id in enumerate(ids):
            image, objects = draw_scene(np.random.default_rng([3, first + number]))
            image, objects = change(number, image, [item | {"difficult": False} for item in objects])
            Image.fromarray(image).save(root / f"JPEGImages/{image_id}.jpg", quality=92)
            (root / f"Annotations/{image_id}.xml").write_text(annotation_xml(f"{image_id}.jpg", image.shape, objects))
    return root


if __name__ == "__main__":
    make_degenerate(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 40)
