"""A data set made on the spot: textured shapes among clutter, in VOC layout, so that everything can be tried.

Four classes, told apart by outline, texture and colour together, as real things are. Each of the three hints is
broken now and then, sizes span a factor of five, objects hide one another, and the background holds scraps of the
same colours and textures that are no object.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np
from PIL import Image

from detector.data.voc import VocDataset

logger = logging.getLogger(__name__)

# class: outline, texture, hue in degrees
CLASSES = {
    "ball": ("circle", "rings", 0),
    "crate": ("square", "checks", 220),
    "kite": ("triangle", "stripes", 110),
    "star": ("star", "dots", 50),
}
COUNTS = {"train": 200, "test": 60}
SEED = 2015


class ShapesDataset(VocDataset):
    """The shapes, generated into `root` once if they are not there yet."""

    def __init__(self, root: str | Path, split: str, classes: Sequence[str] | None = None) -> None:
        if not Path(root).exists():
            generate_shapes(Path(root))
        super().__init__(root, split, classes)


def generate_shapes(root: Path) -> None:
    """Write the whole data set to `root`, the same at every call. A killed run leaves no half of it there."""
    logger.info("generating the shapes data set in %s", root)
    unfinished = root.with_name(f".{root.name}-{os.getpid()}")
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (unfinished / folder).mkdir(parents=True)
    for split, count in COUNTS.items():
        ids = [f"{split}_{number:04d}" for number in range(count)]
        (unfinished / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{id}\n" for id in ids))
        for number, id in enumerate(ids):
            generator = np.random.default_rng([SEED, sorted(COUNTS).index(split), number])
            image, objects = draw_scene(generator)
            Image.fromarray(image).save(unfinished / "JPEGImages" / f"{id}.jpg", quality=92)
            (unfinished / "Annotations" / f"{id}.xml").write_text(_annotation_xml(id, image.shape, objects))
    try:
        unfinished.rename(root)
    except OSError:  # another process was faster
        shutil.rmtree(unfinished)


def draw_scene(generator: np.random.Generator) -> tuple[np.ndarray, list[dict]]:
    """One image (H, W, 3) uint8 and its objects: name, box (x1, y1, x2, y2) in continuous pixels, difficult."""
    height, width = int(generator.integers(220, 261)), int(generator.integers(290, 351))
    image = _background(generator, height, width)
    for _ in range(generator.integers(3, 8)):
        _draw_clutter(generator, image)
    covered = np.zeros((height, width), dtype=np.int32)  # number of the object on top, from 1
    drawn = []
    for number in range(1, int(generator.integers(2, 7)) + 1):
        name = str(generator.choice(list(CLASSES)))
        radius = float(np.exp(generator.uniform(np.log(15), np.log(62))))
        centre = generator.uniform([0.6 * radius] * 2, [width - 0.6 * radius, height - 0.6 * radius])
        mask = _outline_mask(generator, CLASSES[name][0], (height, width), centre, radius)
        if not mask.any() or (covered[mask] > 0).mean() > 0.35:
            continue
        _paint(generator, image, mask, name, centre, radius)
        covered[mask] = number
        drawn.append((number, name, mask))
    objects = []
    for number, name, mask in drawn:
        rows, columns = np.nonzero(mask)
        visible = (covered[mask] == number).mean()
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        small = (box[2] - box[0]) * (box[3] - box[1]) < 22 * 22
        objects.append({"name": name, "box": box, "difficult": bool(visible < 0.6 or (small and visible < 0.9))})
    noise = generator.normal(0, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), objects


def _background(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth random colours with a finer grain on top, (H, W, 3) float32."""
    image = np.zeros((height, width, 3), dtype=np.float32)
    for cells, strength in ((3, 45), (12, 18), (60, 8)):
        coarse = generator.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return image + generator.uniform(80, 170, 3).astype(np.float32)


def _draw_clutter(generator: np.random.Generator, image: np.ndarray) -> None:
    """A bar, a bow or a blob with the colours and textures of the classes: nothing to be found."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width), dtype=np.uint8)
    centre = generator.integers([0, 0], [width, height]).tolist()
    length, angle = float(generator.uniform(12, 60)), float(generator.uniform(0, 360))
    kind = generator.integers(3)
    if kind == 0:
        end = (centre + length * np.array([np.cos(angle), np.sin(angle)])).astype(int).tolist()
        cv2.line(mask, centre, end, 1, int(generator.integers(3, 12)))
    elif kind == 1:
        axes = (int(length), int(length * generator.uniform(0.4, 1)))
        cv2.ellipse(mask, centre, axes, angle, 0, float(generator.uniform(60, 200)), 1, int(generator.integers(3, 9)))
    else:
        points = centre + generator.normal(0, length / 2, (int(generator.integers(5, 9)), 2))
        cv2.fillPoly(mask, [points.astype(np.int32)], 1)
    _paint(generator, image, mask.astype(bool), None, np.array(centre, dtype=float), length)


def _outline_mask(
    generator: np.random.Generator, outline: str, hw: tuple[int, int], centre: np.ndarray, radius: float
) -> np.ndarray:
    """(H, W) bool: inside the outline, turned a little and stretched a little."""
    corners, start = {"circle": (40, 0.0), "square": (4, 45.0), "triangle": (3, -90.0), "star": (10, -90.0)}[outline]
    angles = np.deg2rad(start + generator.uniform(-15, 15) + np.arange(corners) * 360 / corners)
    radii = np.full(corners, radius)
    if outline == "star":
        radii[1::2] *= 0.45
    stretch = generator.uniform(0.8, 1.2, 2)
    points = centre + stretch * radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    mask = np.zeros(hw, dtype=np.uint8)
    cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 1)
    return mask.astype(bool)


def _paint(
    generator: np.random.Generator,
    image: np.ndarray,
    mask: np.ndarray,
    name: str | None,
    centre: np.ndarray,
    radius: float,
) -> None:
    """Fill the mask with a texture in two shades of a hue: the class's own, or in one of ten cases any other.

    Clutter, which has no name, has the texture of one class and the hue of another.
    """
    one, other = generator.permutation(list(CLASSES))[:2]
    _, texture, _ = CLASSES[name or one]
    hue = float(CLASSES[name or other][2])
    if generator.random() < 0.1:
        texture = str(generator.choice([of_class for _, of_class, _ in CLASSES.values()]))
    if generator.random() < 0.1:
        hue = float(generator.uniform(0, 360))
    hue = (hue + generator.normal(0, 12)) % 360
    light, dark = generator.uniform(0.75, 1.0), generator.uniform(0.3, 0.5)
    shades = np.array([[[hue, generator.uniform(0.45, 0.9), value] for value in (light, dark)]], dtype=np.float32)
    shades = cv2.cvtColor(shades, cv2.COLOR_HSV2RGB)[0] * 255  # (2, 3)
    rows, columns = np.nonzero(mask)
    x, y = columns - centre[0], rows - centre[1]
    period = max(6.0, radius * generator.uniform(0.35, 0.5))
    pattern = {
        "rings": np.hypot(x, y) % period < period / 2,
        "checks": (np.floor(2 * x / period) + np.floor(2 * y / period)) % 2 < 1,
        "stripes": (x + 0.3 * y) % period < period / 2,
        "dots": np.hypot(x % period - period / 2, y % period - period / 2) < period / 3.2,
    }[texture]
    image[rows, columns] = shades[pattern.astype(int)]


def _annotation_xml(image_id: str, shape: tuple[int, ...], objects: list[dict]) -> str:
    """A VOC annotation file; its boxes count pixels from 1 and include the last one."""
    lines = [
        "<annotation>",
        f"  <filename>{escape(image_id)}.jpg</filename>",
        f"  <size><width>{shape[1]}</width><height>{shape[0]}</height><depth>3</depth></size>",
    ]
    for item in objects:
        x1, y1, x2, y2 = item["box"]
        lines += [
            f"  <object><name>{item['name']}</name><difficult>{item['difficult']:d}</difficult>",
            f"    <bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>",
            "  </object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])
