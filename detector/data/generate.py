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
from detector.files import write_atomically
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
        if not path.is_file():
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
    """Where the proposals of this data set, made this way, are kept.

    The name holds a digest of all that the boxes depend on: images (ids and sizes of their files), mode, version.
    """
    images = [(id, reader.image_path(index).stat().st_size) for index, id in enumerate(reader.image_ids)]
    digest = hashlib.sha256(repr((images, mode, SEED, VERSION)).encode()).hexdigest()
    return folder / f"{reader.name}-{mode}-{digest[:12]}.safetensors"


def generate_proposals(reader: Reader, path: Path, mode: str, workers: int) -> None:
    """Write the proposals of every image of the data set to the store `path`.

    Finished images are kept in the folder `path`.unfinished until all are done; the same call takes them up again.
    The outcome is the same bytes, whatever the number of workers and of interruptions.
    """
    parts = path.with_name(path.name + ".unfinished")
    settings = f"{mode} {SEED} {VERSION}\n"
    if parts.is_dir() and (parts / "settings").read_text() != settings:
        raise InputError(f"{parts}: was begun with other settings: delete it, or finish it with those")
    write_atomically(parts / "settings", settings.encode())
    left = [index for index in range(len(reader)) if not _part(parts, index, reader).is_file()]
    logger.info(
        "selective search (%s), %d of %d images left, %d threads -> %s", mode, len(left), len(reader), workers, path
    )

    def search(index: int) -> None:
        image = reader.image(index)
        boxes = selective_search(image, mode=mode, seed=SEED, threads=1)
        data = io.BytesIO()
        np.savez(data, boxes=boxes, image_hw=image.shape[:2])
        write_atomically(_part(parts, index, reader), data.getvalue())

    with ThreadPoolExecutor(workers) as pool:
        try:
            for _ in tqdm(pool.map(search, left), total=len(left), unit="image", desc="proposals", disable=None):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    done = [np.load(_part(parts, index, reader)) for index in range(len(reader))]
    write_store(
        path,
        reader.image_ids,
        [item["boxes"] for item in done],
        [(int(item["image_hw"][0]), int(item["image_hw"][1])) for item in done],
        {"name": "selective search", "mode": mode, "seed": SEED, "version": VERSION},
    )
    shutil.rmtree(parts)


def _part(parts: Path, index: int, reader: Reader) -> Path:
    """File of one image's boxes; ids may hold anything, so the name is a digest."""
    return parts / f"{hashlib.sha256(reader.image_ids[index].encode()).hexdigest()[:24]}.npz"
