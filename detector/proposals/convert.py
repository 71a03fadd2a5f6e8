"""Conversion between proposal formats."""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from detector.data.dataset import DetectionDataset
from detector.data.image import read_image_hw
from detector.errors import InputError, first_few
from detector.proposals.box_format import require_box_format
from detector.proposals.formats import coco_json, edge_boxes, masks, mat, pickles, tables
from detector.proposals.formats.records import BoxFormat, ImageProposals, RawProposals
from detector.proposals.store import ProposalStore, stream_store

logger = logging.getLogger(__name__)


READERS: dict[str, Callable[[Path], RawProposals]] = {
    "store": lambda path: ProposalStore(path).raw,
    **mat.READERS,
    **tables.READERS,
    "coco-json": coco_json.read_coco_json,
    "sam-json": masks.read_masks,
    "edge-boxes": edge_boxes.read_edge_boxes,
    **pickles.READERS,
}
WRITERS: dict[str, Callable[[Path, Iterable[ImageProposals]], None]] = {
    "store": lambda path, images: stream_store(path, images, {"name": "converted"}),
    **mat.WRITERS,
    **tables.WRITERS,
    "coco-json": coco_json.write_coco_json,
    **pickles.WRITERS,
}


def convert(
    source: Path,
    source_format: str,
    target: Path,
    target_format: str,
    order: str | None = None,
    pixel_origin: str | None = None,
    dataset: DetectionDataset | None = None,
    trusted: bool = False,
) -> tuple[int, int]:
    """Write the proposals in `source` to `target`; returns the numbers of images and boxes.

    `order` and `pixel_origin` override what the format states. With a dataset, only its images are written, in its
    order and with their sizes, and the box format is verified on its ground truth. A pickle is read only if `trusted`.
    Raises InputError as the readers and `require_box_format` do, and if the box format is unknown or the target exists.
    """
    if target.exists():
        raise InputError(f"{target} already exists and is not overwritten")
    if source_format in pickles.READERS and not trusted:
        raise InputError(
            f"{source}: a pickle can run any code when it is read. If you trust its author, add "
            "--i-trust-this-file; else ask for the boxes as .npz, .csv or .json"
        )
    raw = READERS[source_format](source)
    stated = raw.box_format
    order = order or (stated.order if stated else raw.order)
    pixel_origin = pixel_origin or (stated.pixel_origin if stated else None)
    box_format = BoxFormat(order, pixel_origin) if order and pixel_origin else None
    if dataset is not None:
        images = _of_data_set(raw, box_format, dataset)
    elif box_format is not None:
        images = (_image(raw, box_format, id) for id in raw.rows)
    else:
        lacks = " and ".join(name for name, value in (("--order", order), ("--base", pixel_origin)) if not value)
        raise InputError(
            f"{source}: the file does not say what its numbers mean: give {lacks}; with --data and --split each "
            "possibility is tried on the objects there"
        )
    num_images = len(raw.rows) if dataset is None else len(dataset)
    shown = tqdm(images, total=num_images, unit="image", desc="convert", leave=False, disable=None)
    counts: list[int] = []
    WRITERS[target_format](target, _counted(source, shown, counts))
    return num_images, sum(counts)


def _counted(source: Path, images: Iterable[ImageProposals], counts: list[int]) -> Iterator[ImageProposals]:
    """The images; their numbers of boxes are appended to `counts`. Raises InputError if only some have scores."""
    first = None
    for image in images:
        if len(image.boxes):
            first = first or image
            if (image.scores is None) != (first.scores is None):
                raise InputError(f"{source}: of {first.image_id} and {image.image_id} only one has scores")
        counts.append(len(image.boxes))
        yield image


def _of_data_set(
    raw: RawProposals, box_format: BoxFormat | None, dataset: DetectionDataset
) -> Iterator[ImageProposals]:
    wanted = set(dataset.image_ids)
    missing = [id for id in dataset.image_ids if id not in raw.rows]
    if missing:
        raise InputError(
            f"{raw.path}: no proposals for {len(missing)} of the {len(dataset)} images of {dataset.name}: "
            f"{first_few(missing)}. It has {len(raw.rows)} images: {first_few(list(raw.rows))}. Is it the file of "
            "another split?"
        )
    extra = sum(id not in wanted for id in raw.rows)
    if extra:
        logger.info("%d images of %s are not in %s and are skipped", extra, raw.path, dataset.name)
    image_hws = [read_image_hw(dataset.image_path(index), dataset.image_options) for index in range(len(dataset))]
    require_box_format(raw, dataset, image_hws, box_format)
    assert box_format is not None  # require_box_format raises otherwise
    return (
        _image(raw, box_format, id, image_hws[index], dataset.image_path(index))
        for index, id in enumerate(dataset.image_ids)
    )


def _image(
    raw: RawProposals,
    box_format: BoxFormat,
    image_id: str,
    image_hw: tuple[int, int] | None = None,
    path: Path | None = None,
) -> ImageProposals:
    return ImageProposals(image_id, raw.boxes(image_id, box_format), raw.scores(image_id), image_hw, path)
