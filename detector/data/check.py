"""Data validation before training and evaluation.

`check_data` decodes every image completely, once. It caches the digests of valid images in the user's cache folder, so
that the next start only reads the files. User files are not changed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import __version__ as PILLOW
from tqdm import tqdm

from detector.box_arrays import box_iou_array, clip_array
from detector.data.dataset import DetectionDataset
from detector.data.image import read_image, stored_hw
from detector.errors import InputError, first_few
from detector.runtime.files import digest_of, write_atomically
from detector.runtime.locks import locked
from detector.runtime.ranks import cores
from detector.runtime.threads import thread_pool

if TYPE_CHECKING:  # check_data runs without torch
    from detector.data.loader import Proposals

logger = logging.getLogger(__name__)

SHOWN = 20  # maximum number of problems listed
HARDLY_CUT = "cut by a pixel or less"  # so common that these objects are counted but not listed
VERSION = 1  # of the validity rules


@dataclass(frozen=True)
class Checked:
    """A validated dataset and the problems found. `dataset` lacks the images that cannot be used."""

    dataset: DetectionDataset
    image_hws: list[tuple[int, int]]  # of the images of `dataset`
    digests: list[str]  # of the contents of their files
    found: int  # images with a file, usable or not
    empty: int  # images without an object: background
    bad: list[tuple[str, str]]  # images that cannot be used: (missing, corrupt or misannotated; reason)
    repairs: list[tuple[str, str]]  # objects skipped or cut at the border: (repair, object)
    notes: list[str] = field(default_factory=list)  # further remarks on the dataset

    def summary(self) -> str:
        """One line: N images found, M missing, E empty, C corrupt, ..., R objects repaired (how)."""
        kinds, repairs = Counter(kind for kind, _ in self.bad), Counter(how for how, _ in self.repairs)
        how = ", ".join(f"{count} {what}" for what, count in sorted(repairs.items()))
        return (
            f"{self.dataset.name}: {self.found} images found, {kinds['missing']} missing, {self.empty} empty, "
            f"{kinds['corrupt']} corrupt, {kinds['misannotated']} misannotated, {len(self.repairs)} objects repaired"
            + (f" ({how})" if how else "")
        )

    def details(self) -> list[str]:
        """The first problems, each with file, object and value, worst first, then the notes."""
        lines = [f"{kind}: {text}" for kind, text in [*self.bad, *self.repairs] if kind != HARDLY_CUT]
        more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        return lines[:SHOWN] + more + self.notes


def check_data(dataset: DetectionDataset) -> Checked:
    """Validate every image and annotation of a dataset. The caller decides which problems are errors."""
    folder = hashlib.sha256(str(dataset.records[0].annotation.resolve().parent).encode()).hexdigest()[:8]
    cache = cache_folder() / f"{dataset.name}-{folder}.json"
    made_by = [VERSION, PILLOW, *astuple(dataset.image_options)]
    with ExitStack() as stack:
        with suppress(OSError):  # no cache can be written here: each process decodes the images itself
            # Serializes the processes of a run: the first one decodes the images, the others read the cache.
            stack.enter_context(locked(cache.with_name(f"{cache.name}.lock")))
        known = _read_cache(cache, made_by)
        with thread_pool(cores()) as pool:
            looked = pool.map(functools.partial(_look, dataset, known), range(len(dataset)))
            results = list(tqdm(looked, total=len(dataset), unit="image", desc="check", leave=False, disable=None))
        sound = {look.digest: look.image_hw for look in results if look.image_hw}
        if sound != known:
            _write_cache(cache, made_by, sound)
    good = [index for index, look in enumerate(results) if look.problem is None]
    empty = sum(len(results[index].corners) == 0 for index in good)
    notes = _counted_from_0(
        look for index, look in enumerate(results) if dataset.records[index].annotation.suffix == ".xml"
    )
    if good and empty == len(good):
        notes.append("no image has an object: there is nothing to learn here, and nothing to find")
    return Checked(
        dataset=dataset if len(good) == len(dataset) else dataset.subset(good),
        image_hws=[hw for look in results if look.problem is None and (hw := look.image_hw)],
        digests=[results[index].digest for index in good],
        found=sum(bool(look.digest) for look in results),
        empty=empty,
        bad=[look.problem for look in results if look.problem is not None],
        repairs=[repair for look in results if look.problem is None for repair in look.repairs],
        notes=notes,
    )


def accept(checked: Checked, max_bad_fraction: float) -> Checked:
    """Log the result; raise InputError if more than this fraction of the images cannot be used."""
    total = len(checked.bad) + len(checked.dataset)
    logger.info("%s", checked.summary())
    if len(checked.bad) > max_bad_fraction * total or not len(checked.dataset):
        raise InputError(
            f"{len(checked.bad)} of {total} images of {checked.dataset.name} cannot be used, more than "
            f"data.max_bad_fraction={max_bad_fraction:g} allows; fix them or remove them from the split:\n  "
            + "\n  ".join(checked.details())
        )
    for line in checked.details():
        logger.warning("%s: %s", checked.dataset.name, line)
    return checked


def require_all_valid(checked: Checked) -> Checked:
    """Log the result; raise InputError if an image or an object would be skipped: the score would be wrong."""
    skipped = [(kind, text) for kind, text in checked.repairs if not kind.startswith("cut")]
    if checked.bad or skipped:
        raise InputError(
            f"{checked.summary()}.\nA score needs every image and object; fix these or remove them from the split:\n  "
            + "\n  ".join(f"{kind}: {text}" for kind, text in [*checked.bad, *skipped][:SHOWN])
        )
    return accept(checked, 0)


def require_readable(dataset: DetectionDataset) -> None:
    """Raise InputError if an annotation or an object cannot be used. For a score that needs no images."""
    problems: list[str] = []
    for record in dataset.records:
        problems += [str(record.invalid)] if record.invalid else record.skipped
    if problems:
        raise InputError(
            f"{len(problems)} objects or annotations of {dataset.name} cannot be used, and a score needs all:\n  "
            + "\n  ".join(problems[:SHOWN])
        )


def warn_leakage(train: Checked, val: Checked) -> list[str]:
    """Log a warning if `val` contains images of `train`, by file contents; return their ids in `val`."""
    seen = {*train.digests}
    both = [id for id, digest in zip(val.dataset.image_ids, val.digests, strict=True) if digest in seen]
    if both:
        logger.warning(
            "%d of the %d images of %s are in %s too, so scores will be optimistic: %s",
            len(both), len(val.dataset), val.dataset.name, train.dataset.name, first_few(both),
        )  # fmt: skip
    return both


def check_proposals(proposals: Proposals, image_ids: Sequence[str], image_hws: Sequence[tuple[int, int]]) -> str:
    """One line on the proposals of these images: how many, and how many of them training and detection skip."""
    total = not_numbers = outside = without = 0
    for image_id, (height, width) in zip(image_ids, image_hws, strict=True):
        boxes = np.asarray(proposals[image_id])
        finite = np.isfinite(boxes).all(axis=1)
        cut = clip_array(boxes, (height, width))
        usable = finite & (cut[:, 2:] > cut[:, :2]).all(axis=1)
        total += len(boxes)
        not_numbers += int((~finite).sum())
        outside += int((finite & ~usable).sum())
        without += not usable.any()
    return (
        f"{total} proposals of {len(image_ids)} images, {total / max(len(image_ids), 1):.0f} per image; skipped: "
        f"{not_numbers} not numbers, {outside} without area in their image; {without} images have none"
    )


def proposal_recall(dataset: DetectionDataset, proposals: Proposals, indices: Sequence[int], iou: float = 0.5) -> float:
    """Fraction of the objects in these images that a proposal covers with an IoU of at least `iou`; 1 without objects.

    Difficult objects and crowds are not counted, as in evaluation/recall.py.
    """
    found = total = 0
    for index in indices:
        truth = dataset.ground_truth(index)
        boxes = proposals[truth.image_id]
        objects = truth.boxes[~truth.crowd & ~truth.difficult]
        total += len(objects)
        if len(boxes) and len(objects):
            found += int((box_iou_array(objects, boxes).max(axis=1) >= iou - 1e-6).sum())  # float32 tolerance
    return found / total if total else 1.0


@dataclass
class _Look:
    """Result for one image."""

    digest: str = ""  # of the file contents; empty without a file
    image_hw: tuple[int, int] | None = None  # None until decoded
    problem: tuple[str, str] | None = None  # why it cannot be used
    corners: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))  # x1, y1 of its objects
    repairs: list[tuple[str, str]] = field(default_factory=list)


def _look(dataset: DetectionDataset, known: dict[str, tuple[int, int]], index: int) -> _Look:
    look, stage = _Look(), "missing"
    try:
        path = dataset.image_path(index)
        look.digest = digest_of(path)
        stage = "corrupt"
        look.image_hw = known.get(look.digest)
        if look.image_hw is None:
            height, width = read_image(path, dataset.image_options).shape[:2]
            look.image_hw = height, width
        stage = "misannotated"
        _require_size(dataset, index, look.image_hw)
        boxes = dataset.ground_truth(index).boxes
        look.corners = boxes[:, :2]
        record = dataset.records[index]
        look.repairs += [("skipped", text) for text in record.skipped]
        look.repairs += _repairs(boxes, look.image_hw, record.annotation)
    except InputError as error:
        look.problem = stage, str(error)
    return look


def _require_size(dataset: DetectionDataset, index: int, image_hw: tuple[int, int]) -> None:
    annotation, annotated = dataset.records[index].annotation, dataset.records[index].annotated_hw
    path = dataset.image_path(index)
    if annotated in (None, image_hw):
        return
    sizes = f"is for an image of {annotated[1]}x{annotated[0]}, but {path} is {image_hw[1]}x{image_hw[0]}"
    if dataset.image_options.exif == "apply" and stored_hw(path) == annotated:
        raise InputError(
            f"{annotation}: {sizes} once it is turned upright as its EXIF says: it was annotated "
            "without EXIF. With data.exif=ignore images are used as they are stored"
        )
    raise InputError(
        f"{annotation}: {sizes}: the boxes belong to another version of the image. If they do fit, "
        "remove the size from the annotation"
    )


def _repairs(boxes: np.ndarray, image_hw: tuple[int, int], annotation: Path) -> Iterable[tuple[str, str]]:
    """How training handles boxes that extend beyond their image; up to one pixel is counted but not listed."""
    height, width = image_hw
    for number, (x1, y1, x2, y2) in enumerate(boxes, start=1):
        where = f"box {number} x from {x1:g} to {x2:g}, y from {y1:g} to {y2:g} in an image of {width}x{height}"
        if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
            yield "skipped", f"{annotation}: {where}: lies outside its image"
        elif max(-x1, -y1, x2 - width, y2 - height) > 1:
            yield "cut at the border", f"{annotation}: {where}: extends beyond it"
        elif max(-x1, -y1, x2 - width, y2 - height) > 0:
            yield HARDLY_CUT, f"{annotation}: {where}"


def _counted_from_0(looks: Iterable[_Look]) -> list[str]:
    corners = np.concatenate([np.zeros((0, 2)), *(look.corners for look in looks)])
    if not (corners == -1).any():
        return []
    return [
        f"{int((corners == -1).any(axis=1).sum())} objects have xmin or ymin 0, so these files seem to count pixels "
        "from 0; they are read from 1, as VOC defines it, and every box is shifted one pixel up and left"
    ]


def cache_folder() -> Path:
    """Folder of the cache of valid images: fast-rcnn/checked in the user's cache folder (XDG_CACHE_HOME)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fast-rcnn" / "checked"


def _read_cache(path: Path, made_by: list) -> dict[str, tuple[int, int]]:
    """Sizes of valid images by digest; empty if the cache is missing, corrupt or written by another version."""
    try:
        content = json.loads(path.read_bytes())
        if content["made by"] != made_by:
            return {}
        return {str(digest): (int(height), int(width)) for digest, (height, width) in content["sound"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return {}


def _write_cache(path: Path, made_by: list, sound: dict[str, tuple[int, int]]) -> None:
    try:
        write_atomically(path, json.dumps({"made by": made_by, "sound": sound}).encode())
    except OSError as error:
        logger.warning("%s cannot be written (%s): images will be decoded again at the next start", path, error)
