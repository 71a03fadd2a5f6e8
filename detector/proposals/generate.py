"""Selective search over a whole dataset: parallel over images and machines, and resumable."""

import hashlib
import io
import itertools
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from detector.data.check import proposal_recall
from detector.data.dataset import DetectionDataset
from detector.data.image import read_image_hw
from detector.errors import InputError, first_few
from detector.proposals.box_format import LOW_RECALL, OtherOrder, require_box_format
from detector.proposals.formats.records import ImageProposals
from detector.proposals.search import MIN_BOXES, SEED, grid_boxes, search_image
from detector.proposals.store import (
    OpenedProposals,
    ProposalStore,
    open_proposals,
    require_exif,
    require_images,
    stream_store,
    write_store,
)
from detector.runtime.files import digest_of, write_atomically
from detector.runtime.locks import locked
from detector.runtime.ranks import cores
from detector.runtime.threads import thread_pool

logger = logging.getLogger(__name__)

# Part of the name of a generated file, so that boxes of an older algorithm version are not used.
VERSION = 2
BASELINE_PARTS = (1, 2, 4, 8, 16)  # of a grid as a baseline: 1245 windows
OF_ONE_SHARD: dict = {"shard": None, "unreadable": None}  # metadata that can differ between the shards of a dataset
LOG_EVERY_S = 30  # without a terminal for a progress bar


def proposals_for(
    dataset: DetectionDataset, image_hws: Sequence[tuple[int, int]], file: str | None, mode: str, folder: Path
) -> OpenedProposals:
    """Proposals of a dataset: those of `file`, or of selective search, generated once and kept in `folder`.

    `image_hws` are the sizes of its images. Raises InputError if the file lacks an image, was made on images of another
    size, or has boxes that are certainly in another order; for a .mat, which has no image sizes, also if the boxes
    match images and objects poorly. For a store without image sizes the latter is a warning. Low recall is a warning
    for every file.
    """
    if file is None:
        path = store_path(folder, dataset, mode)
        generate_proposals(dataset, path, mode, workers=cores())
    else:
        path = Path(file)
    proposals = open_proposals(path)
    require_images(proposals, dataset.image_ids, image_hws)
    require_exif(proposals, dataset.image_options.exif)
    if not isinstance(proposals, ProposalStore):
        require_box_format(proposals.raw, dataset, image_hws, proposals.box_format)
    elif file is not None:
        try:
            require_box_format(proposals.raw, dataset, image_hws, proposals.raw.box_format)
        except OtherOrder:
            raise
        except InputError as error:  # the boxes can be poor on purpose, and in the format that the store declares
            if any(proposals.image_hw(image_id) is None for image_id in dataset.image_ids):
                logger.warning("%s", error)
    checked = range(0, len(dataset), max(len(dataset) // 200, 1))
    recall = proposal_recall(dataset, proposals, checked)
    logger.info(
        "proposals of %s from %s: recall %.3f at IoU 0.5, of %d images", dataset.name, path, recall, len(checked)
    )
    if recall < LOW_RECALL:
        logger.warning(
            "%s: hardly any object has a proposal: are these boxes of other images, or in another order?", path
        )
    return proposals


def store_path(folder: Path, dataset: DetectionDataset, mode: str) -> Path:
    """Path of the proposals of this dataset and mode; the name depends on everything that determines the boxes."""
    return folder / f"{dataset.name}-{mode}-{fingerprint(dataset, mode)[:12]}.safetensors"


def fingerprint(dataset: DetectionDataset, mode: str) -> str:
    """Digest of image ids, image file contents, mode and algorithm version."""
    exif = "" if dataset.image_options.exif == "apply" else " exif ignored"
    digest = hashlib.sha256(f"{mode} {SEED} {VERSION}{exif}".encode())
    for index, image_id in enumerate(dataset.image_ids):
        try:
            content = digest_of(dataset.image_path(index))
        except InputError:  # `_search` decides whether there are too many of these
            content = "unreadable"
        digest.update(f"{image_id} {content}\n".encode())
    return digest.hexdigest()


def generate_proposals(
    dataset: DetectionDataset,
    path: Path,
    mode: str,
    workers: int,
    shard: tuple[int, int] | None = None,
    max_bad_fraction: float = 0.0,
) -> None:
    """Write the proposals of every image of the dataset to the store `path`, unless it exists.

    `shard` (i, n), from (1, n) to (n, n), restricts this to every n-th image, starting at the i-th: see `merge_shards`.
    An image that cannot be read has no boxes in the store, and the reason is recorded; raises InputError as soon as
    these are more than the fraction `max_bad_fraction` of the images.

    Finished images are kept in the folder `path`.unfinished until all are done; the same call resumes from there. The
    result is bitwise identical for any number of workers and interruptions. If several processes call this at once,
    one works and the others wait for it.
    """
    generator: dict = {"name": "selective search", "mode": mode, "seed": SEED, "version": VERSION}
    generator["exif"] = dataset.image_options.exif
    if shard is not None:
        generator |= {"shard": [*shard], "data_set": _digest_of_ids(dataset.image_ids)}
        dataset = dataset.subset(range(shard[0] - 1, len(dataset), shard[1]))
    parts = path.with_name(path.name + ".unfinished")
    fingerprints = parts / "fingerprints"
    with locked(path.with_name(path.name + ".lock")):
        if path.is_file():
            shutil.rmtree(parts, ignore_errors=True)  # left by a process that was killed at the very end
            return
        expected = fingerprint(dataset, mode)
        if fingerprints.is_file() and fingerprints.read_text(encoding="utf-8") != expected:
            raise InputError(f"{parts}: was started for other images or another mode: delete it to start again")
        write_atomically(fingerprints, expected.encode())
        left = [index for index in range(len(dataset)) if not _part(parts, index, dataset).is_file()]
        counts = f"{len(left)} of {len(dataset)} images left"
        logger.info("selective search (%s), %s, %d threads -> %s", mode, counts, workers, path)
        _search(dataset, left, parts, mode, workers, max_bad_fraction)
        if unreadable := _read_reasons(dataset, parts):
            generator["unreadable"] = unreadable
        with_grid: list[str] = []
        stream_store(parts / "store", _read_parts(dataset, parts, with_grid), generator)
        os.replace(parts / "store", path)
        shutil.rmtree(parts)
    if with_grid:
        logger.info(
            "%d images gave fewer than %d boxes and have the boxes of a grid appended: %s",
            len(with_grid), MIN_BOXES, first_few(with_grid, 20),
        )  # fmt: skip
    for image_id, reason in unreadable.items():
        logger.warning("no proposals for %s: %s", image_id, reason)


def merge_shards(paths: Sequence[Path], target: Path) -> None:
    """Merge the stores of all shards of a dataset; the result is bitwise identical to the store of a single run.

    Raises InputError for a store that is not a shard, for a shard of another dataset, mode or count, and for
    duplicate and missing shards.
    """
    stores = [ProposalStore(path) for path in paths]
    by_number: dict[int, ProposalStore] = {}
    for store in stores:
        number, count = _shard_of(store)
        if store.generator | OF_ONE_SHARD != stores[0].generator | OF_ONE_SHARD:
            raise InputError(f"{store.path}: is of another dataset, mode or version than {stores[0].path}")
        if count != stores[0].generator["shard"][1]:
            raise InputError(
                f"{store.path}: is shard {number} of {count}, but {stores[0].path} has another number of shards"
            )
        if number in by_number:
            raise InputError(f"{store.path}: is shard {number} of {count}, as {by_number[number].path} is")
        by_number[number] = store
    if missing := [number for number in range(1, count + 1) if number not in by_number]:
        raise InputError(
            f"{target}: {len(missing)} of {count} shards are missing, numbered {first_few(missing)}: generate them "
            f"with --shard {missing[0]}/{count}"
        )
    in_order = [by_number[number] for number in range(1, count + 1)]
    total = sum(map(len, in_order))
    image_ids = [in_order[index % count].image_ids[index // count] for index in range(total)]
    generator = {key: value for key, value in in_order[0].generator.items() if key not in {*OF_ONE_SHARD, "data_set"}}
    unreadable = {id: reason for store in stores for id, reason in store.unreadable.items()}
    if unreadable:
        generator["unreadable"] = {id: unreadable[id] for id in image_ids if id in unreadable}
    if _digest_of_ids(image_ids) != in_order[0].generator.get("data_set"):
        raise InputError(f"{target}: the shards do not have the images of their dataset: generate them again")
    in_turn = zip(image_ids, itertools.cycle(in_order), strict=False)
    images = (ImageProposals(id, store[id], image_hw=store.image_hw(id)) for id, store in in_turn)
    stream_store(target, images, generator)


def _shard_of(store: ProposalStore) -> tuple[int, int]:
    shard = store.generator.get("shard")
    if isinstance(shard, list) and len(shard) == 2 and all(type(value) is int for value in shard):
        number, count = shard
        if 1 <= number <= count:
            return number, count
    raise InputError(f"{store.path}: was not made with --shard")


def write_grid(dataset: DetectionDataset, path: Path) -> None:
    """Write the windows of a grid for each image: a baseline, which does not look at the image."""
    hws = [read_image_hw(dataset.image_path(index), dataset.image_options) for index in range(len(dataset))]
    boxes = [grid_boxes(hw, BASELINE_PARTS) for hw in hws]
    generator = {"name": "grid", "parts": list(BASELINE_PARTS), "exif": dataset.image_options.exif}
    write_store(path, dataset.image_ids, boxes, hws, generator)


def _digest_of_ids(image_ids: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(image_ids).encode()).hexdigest()


def _search(
    dataset: DetectionDataset, indices: list[int], parts: Path, mode: str, workers: int, max_bad_fraction: float
) -> None:
    unreadable = _read_reasons(dataset, parts)  # of an interrupted run

    def require_few_unreadable() -> None:
        if len(unreadable) > max_bad_fraction * len(dataset):
            reasons = [f"{image_id}: {reason}" for image_id, reason in unreadable.items()]
            raise InputError(
                f"{dataset.name}: more than the fraction {max_bad_fraction:g} of its {len(dataset)} images cannot be "
                f"read: {first_few(reasons)}. Repair them, remove them from the split, or allow a larger fraction "
                f"(--max-bad-fraction). After a change of the images, delete {parts}"
            )

    def search(index: int) -> None:
        try:
            image = dataset.image(index)
        except InputError as error:
            reason = str(error).partition(": ")[2] or str(error)  # without the path, which differs between machines
            unreadable[dataset.image_ids[index]] = reason
            require_few_unreadable()
            data = io.BytesIO()
            np.savez(data, boxes=np.zeros((0, 4), np.float32), image_hw=(0, 0), with_grid=False, reason=reason)
            write_atomically(_part(parts, index, dataset), data.getvalue())
            return
        boxes, with_grid = search_image(image, mode, threads=1)
        data = io.BytesIO()
        np.savez(data, boxes=boxes, image_hw=image.shape[:2], with_grid=with_grid)
        write_atomically(_part(parts, index, dataset), data.getvalue())

    require_few_unreadable()
    with thread_pool(workers) as pool:
        found = pool.map(search, indices)
        with tqdm(found, total=len(indices), unit="image", desc="proposals", disable=None) as progress:
            began = logged = time.monotonic()
            for done, _ in enumerate(progress, start=1):
                now = time.monotonic()
                if progress.disable and now - logged >= LOG_EVERY_S:
                    logged = now
                    logger.info("%d images left, %.2f per second", len(indices) - done, done / (now - began))


def _read_parts(dataset: DetectionDataset, parts: Path, with_grid: list[str]) -> Iterator[ImageProposals]:
    """Proposals found, image by image; the ids of images with a grid are appended to `with_grid`."""
    for index, image_id in enumerate(dataset.image_ids):
        with np.load(_part(parts, index, dataset)) as part:
            height, width = part["image_hw"].tolist()
            if part["with_grid"]:
                with_grid.append(image_id)
            yield ImageProposals(image_id, part["boxes"], image_hw=(height, width))


def _read_reasons(dataset: DetectionDataset, parts: Path) -> dict[str, str]:
    """Reasons why processed images could not be read, by id."""
    reasons = {}
    for index, image_id in enumerate(dataset.image_ids):
        path = _part(parts, index, dataset)
        if path.is_file():
            with np.load(path) as part:
                if "reason" in part:
                    reasons[image_id] = str(part["reason"])
    return reasons


def _part(parts: Path, index: int, dataset: DetectionDataset) -> Path:
    """File of the boxes of one image; ids can contain any character, so the name is a digest."""
    return parts / f"{hashlib.sha256(dataset.image_ids[index].encode()).hexdigest()[:24]}.npz"
