"""Selective search over a whole data set: parallel over images, and taken up again where it was stopped."""

import hashlib
import io
import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from detector.data.check import proposal_recall
from detector.data.loader import Reader
from detector.data.proposals import MatProposals, ProposalStore, open_proposals, require_images, write_store
from detector.errors import InputError
from detector.files import locked, write_atomically
from detector.selective_search import selective_search

logger = logging.getLogger(__name__)

SEED = 0
# Part of a generated file's name, so that boxes of an older algorithm are not taken for those of this one.
VERSION = 1
# Selective search finds 0.8 and more of most data sets' objects; boxes of other images find next to none.
LOW_RECALL = 0.3


def proposals_for(
    reader: Reader, image_hws: Sequence[tuple[int, int]], file: str | None, mode: str, folder: Path
) -> ProposalStore | MatProposals:
    """Proposals of a data set: those of `file`, or, without one, selective search's, made once and kept in `folder`.

    `image_hws` are the sizes of its images. Raises InputError if the file lacks an image or was made on images of
    another size.
    """
    if file is None:
        path = store_path(folder, reader, mode)
        generate_proposals(reader, path, mode, workers=os.cpu_count() or 1)
    else:
        path = Path(file)
    proposals = open_proposals(path)
    require_images(proposals, reader.image_ids, image_hws)
    checked = range(0, len(reader), max(len(reader) // 200, 1))
    recall = proposal_recall(reader, proposals, checked)
    logger.info(
        "proposals of %s from %s: recall %.3f at IoU 0.5, of %d images", reader.name, path, recall, len(checked)
    )
    if recall < LOW_RECALL:
        logger.warning("hardly any object has a proposal: are these boxes of other images, or in another order?")
    return proposals


def store_path(folder: Path, reader: Reader, mode: str) -> Path:
    """Where the proposals of this data set, made this way, are kept; the name depends on all that the boxes do."""
    return folder / f"{reader.name}-{mode}-{fingerprint(reader, mode)[:12]}.safetensors"


def fingerprint(reader: Reader, mode: str) -> str:
    """A digest of the ids and contents of the images, the mode, and the version of the algorithm."""
    exif = "" if reader.image_options.exif == "apply" else " exif ignored"
    digest = hashlib.sha256(f"{mode} {SEED} {VERSION}{exif}".encode())
    for index, image_id in enumerate(reader.image_ids):
        with open(reader.image_path(index), "rb") as file:
            digest.update(f"{image_id} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def generate_proposals(reader: Reader, path: Path, mode: str, workers: int) -> None:
    """Write the proposals of every image of the data set to the store `path`, unless it is there.

    Finished images are kept in the folder `path`.unfinished until all are done; the same call takes them up again.
    The outcome is the same bytes, whatever the number of workers and of interruptions. Of several processes that
    call this at once, one works and the others wait for it.
    """
    parts = path.with_name(path.name + ".unfinished")
    made_of = parts / "made_of"
    with locked(path.with_name(path.name + ".lock")):
        if path.is_file():
            return
        expected = fingerprint(reader, mode)
        if made_of.is_file() and made_of.read_text() != expected:
            raise InputError(f"{parts}: was begun for other images or another mode; delete it to begin anew")
        write_atomically(made_of, expected.encode())
        left = [index for index in range(len(reader)) if not _part(parts, index, reader).is_file()]
        counts = f"{len(left)} of {len(reader)} images left"
        logger.info("selective search (%s), %s, %d threads -> %s", mode, counts, workers, path)
        _search(reader, left, parts, mode, workers)
        boxes, image_hws = _read_parts(reader, parts)
        generator = {"name": "selective search", "mode": mode, "seed": SEED, "version": VERSION}
        write_store(path, reader.image_ids, boxes, image_hws, generator)
        shutil.rmtree(parts)


def _search(reader: Reader, indices: list[int], parts: Path, mode: str, workers: int) -> None:
    def search(index: int) -> None:
        image = reader.image(index)
        boxes = selective_search(image, mode=mode, seed=SEED, threads=1)
        data = io.BytesIO()
        np.savez(data, boxes=boxes, image_hw=image.shape[:2])
        write_atomically(_part(parts, index, reader), data.getvalue())

    with ThreadPoolExecutor(workers) as pool:
        try:
            found = pool.map(search, indices)
            for _ in tqdm(found, total=len(indices), unit="image", desc="proposals", disable=None):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _read_parts(reader: Reader, parts: Path) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    boxes, image_hws = [], []
    for index in range(len(reader)):
        with np.load(_part(parts, index, reader)) as part:
            boxes.append(part["boxes"])
            height, width = part["image_hw"]
            image_hws.append((int(height), int(width)))
    return boxes, image_hws


def _part(parts: Path, index: int, reader: Reader) -> Path:
    """File of one image's boxes; ids may hold anything, so the name is a digest."""
    return parts / f"{hashlib.sha256(reader.image_ids[index].encode()).hexdigest()[:24]}.npz"
