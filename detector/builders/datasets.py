"""Build the data of a run from its settings: datasets, proposals, and samples for the network."""

import importlib.util
import inspect
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detector.allowlist import instantiate
from detector.data.check import Checked, accept, check_data, check_proposals, require_all_valid
from detector.data.classes import check_classes, require_known, require_unlike
from detector.data.dataset import DetectionDataset, join, split_into_parts
from detector.data.epoch_order import EpochOrder, repeat_factors
from detector.data.formats.voc import is_unlabelled, read_voc_images
from detector.data.image import image_options
from detector.data.loader import CROWD_IOA_THRESHOLD, Proposals, TransformedDataset
from detector.data.proposal_selection import selection_of
from detector.data.transforms import Augment, Resize, scored_side_px, short_sides
from detector.errors import InputError
from detector.proposals.generate import proposals_for, store_path
from detector.schema import LAYOUT, parse, walk
from detector.settings import CommonSettings, Data, TrainSettings

logger = logging.getLogger(__name__)

NOT_SETTINGS = ("root", "classes", "image_options")  # arguments of a reader that are no settings of a layout


def build_dataset(data: Data, part: str) -> DetectionDataset:
    """The dataset of the part `train` or `val`, with its own classes except `data.exclude_classes`."""
    return restricted(read_dataset(data, part), data)


def read_dataset(data: Data, part: str) -> DetectionDataset:
    """All images and classes of the part `train` or `val`."""
    if data.root is None:
        raise InputError("data.root: must be given: data.root=DIR")
    sources = _sources(data)
    if data.parts is None:
        require_taken(data, [item.key for item in walk(data) if LAYOUT in item.policies and item.value is not None])
    found = [dataset for dataset in (_read_single(source, part) for source in sources) if dataset is not None]
    if not found:
        keys = {next(iter(_reader_arguments(source, part))) for source in sources} or {"parts"}
        raise InputError(
            f"data: no images to {'train on' if part == 'train' else 'score'} are selected: "
            f"give data.{' or data.'.join(sorted(keys))}"
        )
    return found[0] if len(found) == 1 else join(found)


def build_unlabelled(data: Data, classes: Sequence[str], submission: bool) -> DetectionDataset | None:
    """The images of a VOC split for an evaluation server: with `submission`, or if none has an annotation; else None.

    Raises InputError for a VOC split in a dataset without Annotations/.
    """
    is_voc = data.reader == "voc" and data.parts is None
    if submission and not is_voc:
        raise InputError("submission=true: writes the files of VOC: it needs one dataset in VOC layout")
    if not is_voc or data.root is None or data.val_split is None:
        return None
    if not submission:
        if not is_unlabelled(data.root, data.val_split):
            return None
        if not (folder := Path(data.root, "Annotations")).is_dir():
            raise InputError(
                f"{folder}: no such folder, and a score needs annotations; submission=true writes the files for an "
                "evaluation server without them"
            )
    whole = read_voc_images(data.root, data.val_split, classes, image_options(data))
    return restricted(whole, data.with_values(exclude_classes=None))


def restricted(dataset: DetectionDataset, data: Data) -> DetectionDataset:
    """The dataset without the objects of `data.exclude_classes`, and its first `data.max_images` images."""
    limit = data.max_images
    if limit is not None and limit < len(dataset):
        logger.info("data.max_images: the first %d of the %d images of %s", limit, len(dataset), dataset.name)
        dataset = dataset.subset(range(limit))
    return dataset.without_classes(data.exclude_classes) if data.exclude_classes else dataset


def _sources(data: Data) -> list[Data]:
    """The settings of each dataset that is joined, of which there is usually one."""
    return [data] if data.parts is None else [_part_of(data, own) for own in data.parts]


def _part_of(data: Data, own: dict) -> Data:
    """The settings of one of `data.parts`: its own, else those of `data`; its root is relative to `data.root`."""
    taken = {key: value for key, value in own.items() if key in Data.model_fields}
    settings = parse(Data, data.plain() | taken, f"data.parts: {own}")
    known = {"reader", "root", *_reader_arguments(settings, "train"), *_reader_arguments(settings, "val")}
    if own.keys() - known:
        raise InputError(
            f"data.parts: {own} has {', '.join(sorted(own.keys() - known))}; {settings.reader} accepts "
            f"{', '.join(sorted(known))}"
        )
    return settings.with_values(root=str(Path(data.root or "", own.get("root") or "")), parts=None)


def require_taken(data: Data, keys: Collection[str]) -> None:
    """Raise InputError if one of these settings of layouts does not exist for any layout of the dataset."""
    sources = _sources(data)
    taken = {key for source in sources for part in ("train", "val") for key in _reader_arguments(source, part)}
    for key in keys:
        if key not in taken:
            raise InputError(
                f"data.{key}={getattr(data, key)}: not a setting of data.reader={sources[0].reader}, which has "
                f"{', '.join(sorted(taken))}"
            )


def _read_single(data: Data, part: str) -> DetectionDataset | None:
    """The dataset of the part; None if its first argument, which selects the images, is null."""
    arguments = {name: getattr(data, key) for key, name in _reader_arguments(data, part).items()}
    if next(iter(arguments.values())) is None:
        return None
    given = {name: value for name, value in arguments.items() if value is not None}
    return _reader(data)(data.root, image_options=image_options(data), **given)


def _reader(data: Data) -> Callable[..., DetectionDataset]:
    """The function that reads the layout. A config may be untrusted, so it must be in detector/data/formats/."""
    module = f"detector.data.formats.{data.reader}"
    found = importlib.util.find_spec(module) and getattr(importlib.import_module(module), f"read_{data.reader}", None)
    if not found or "root" not in inspect.signature(found).parameters:  # such as read_image in image.py
        raise InputError(f"data.reader={data.reader}: there is no such layout: give data=voc data.root=DIR")
    return found


def _reader_arguments(data: Data, part: str) -> dict[str, str]:
    """The settings that the reader takes for this part, such as `val_split`, and the argument that each becomes."""
    names = [name for name in inspect.signature(_reader(data)).parameters if name not in NOT_SETTINGS]
    return {f"{part}_{name}" if f"{part}_{name}" in Data.model_fields else name: name for name in names}


def resolve_classes(data: Data, *datasets: DetectionDataset, more: Collection[str] = ()) -> tuple[str, ...]:
    """`data.classes`, else all names in these datasets and in `more`, without `data.exclude_classes`.

    `more` are the classes of result files. Without `data.classes`, raises InputError for names that differ only in
    case or spaces.
    """
    require_known_exclusions(data, *datasets, more=more)
    found = sorted({*more}.union(*(dataset.classes for dataset in datasets)))
    names = check_classes("data.classes", data.classes) if data.classes else found
    chosen = tuple(name for name in names if name not in (data.exclude_classes or ()))
    if not data.classes:
        where = ", ".join(dataset.name for dataset in datasets)
        require_unlike(chosen, f"{where} and the files of detections" if more else where)
    return chosen


def require_known_exclusions(data: Data, *datasets: DetectionDataset, more: Collection[str] = ()) -> None:
    """Raise InputError for a name of `data.exclude_classes` that is neither in these datasets nor in `more`."""
    known = {*more, *(data.classes or ())}
    for dataset in datasets:
        known |= {*dataset.classes, *dataset.excluded}
    require_known(data.exclude_classes or (), known)


def check(data: Data, dataset: DetectionDataset, part: str) -> Checked:
    """Validate every image and annotation. A few invalid ones are skipped in `train`; in `val` any is an error."""
    checked = check_data(dataset)
    return accept(checked, data.max_bad_fraction) if part == "train" else require_all_valid(checked)


def build_transformed_dataset(settings: CommonSettings, checked: Checked, part: str) -> TransformedDataset:
    """TransformedDataset of the part `train` (augmented) or `val`, with their proposals."""
    dataset, image_hws = checked.dataset, checked.image_hws
    proposals = build_proposals(settings, dataset, image_hws, part)
    logger.info("%s: %s", dataset.name, check_proposals(proposals, dataset.image_ids, image_hws))
    return transformed_dataset_with(settings, dataset, proposals, part)


def transformed_dataset_with(
    settings: CommonSettings, dataset: DetectionDataset, proposals: Proposals, part: str
) -> TransformedDataset:
    """TransformedDataset of the part with these proposals, which are not validated."""
    data, augment = settings.data, None
    if part == "train" and isinstance(settings, TrainSettings):
        augment = Augment(build_transforms(settings.augment.transforms))
    return TransformedDataset(
        dataset,
        proposals,
        Resize(short_sides(data) if part == "train" else (scored_side_px(data),), data.max_side_px),
        augment,
        settings.seed,
        selection_of(data, part),
        data.use_difficult,
        CROWD_IOA_THRESHOLD if part == "train" else None,
    )


def build_epoch_order(settings: TrainSettings, checked: Checked) -> EpochOrder:
    """The order of the training images."""
    data, records = settings.data, checked.dataset.records
    repeats, is_portrait = None, None
    if data.repeat_rare is not None:
        repeats = repeat_factors([record.names for record in records], data.repeat_rare)
        logger.info("data.repeat_rare: %d images give epochs of %.0f", len(records), repeats.sum())
    if data.group_by_aspect:
        is_portrait = np.array([height > width for height, width in checked.image_hws])
    return EpochOrder(len(records), settings.seed, repeats, is_portrait, settings.train.images_per_batch)


def build_transforms(items: Sequence[dict]) -> list:
    """Build albumentations transforms, also nested ones, such as OneOf's. Raises InputError for anything else."""
    made = []
    for item in items:
        if not isinstance(item, dict):
            raise InputError(f"augment.transforms: {item!r} is not a transform, which has a _target_")
        if isinstance(item.get("transforms"), list):
            item = item | {"transforms": build_transforms(item["transforms"])}
        made.append(instantiate(item, ("albumentations.",)))
    return made


def build_proposals(
    settings: CommonSettings, dataset: DetectionDataset, image_hws: Sequence[tuple[int, int]], part: str
) -> Proposals:
    """Proposals from one file, or for each part of a joined dataset from its own file or by selective search."""
    files = settings.data.train_proposals if part == "train" else settings.data.val_proposals
    mode, folder = settings.proposals.mode, Path(settings.proposals.folder or ".")
    parts = split_into_parts(dataset)
    if isinstance(files, str) or (files is None and len(parts) == 1):
        file = files or released_proposals(settings.data, dataset, mode)
        return proposals_for(dataset, image_hws, file, mode, folder)
    files = files or (None,) * len(parts)
    if len(files) != len(parts):
        raise InputError(
            f"data.{part}_proposals: {len(files)} files for {len(parts)} datasets; null selects selective search"
        )
    sources: dict[str, tuple[Proposals, str]] = {}
    for (single, positions), file in zip(parts, files, strict=True):
        if positions:
            file = file or released_proposals(settings.data, single, mode)
            proposals = proposals_for(single, [image_hws[position] for position in positions], file, mode, folder)
            ids = zip(positions, single.image_ids, strict=True)
            sources |= {dataset.image_ids[position]: (proposals, own_id) for position, own_id in ids}
    return JoinedProposals(sources)


@dataclass(frozen=True)
class JoinedProposals:
    """Proposals of a joined dataset; `sources` maps an image id to (proposals of its part, image id there)."""

    sources: Mapping[str, tuple[Proposals, str]]

    def __getitem__(self, image_id: str) -> np.ndarray:
        """Boxes (P, 4) float32 of one image."""
        proposals, own_id = self.sources[image_id]
        return proposals[own_id]

    def scores(self, image_id: str) -> np.ndarray | None:
        """Scores (P,) float32 of its boxes, or None if its part has no scores."""
        proposals, own_id = self.sources[image_id]
        return proposals.scores(own_id)


def released_proposals(data: Data, dataset: DetectionDataset, mode: str | None = None) -> str | None:
    """The file of the paper's released proposals of a VOC split, or None; with `mode`, logs what is used instead.

    The files of trainval have the images of train and val too.
    """
    found = re.fullmatch(r"VOC(\d{4})-(train|val|trainval|test)", dataset.name)
    if data.released_proposals is None or found is None:
        return None
    year, split = found.groups()
    names = [f"voc_{year}_{name}.mat" for name in (split, *(["trainval"] if split in ("train", "val") else []))]
    for path in (Path(data.released_proposals, name) for name in names):
        if path.is_file():
            return str(path)
    if mode is not None:
        logger.info(
            "%s: there is no %s of the paper's proposals in %s, where scripts/download_voc.py puts it: selective "
            "search (%s) is used instead", dataset.name, names[-1], data.released_proposals, mode,
        )  # fmt: skip
    return None


def kept_proposals(data: Data, dataset: DetectionDataset, folder: Path, mode: str) -> list[str | None]:
    """For each dataset joined in `dataset`, the file of generated proposals in `folder`; None if there is none, or if
    there are released ones.
    """
    parts = [single for single, _ in split_into_parts(dataset)]
    paths = [None if released_proposals(data, single) else store_path(folder, single, mode) for single in parts]
    return [str(path) if path and path.is_file() else None for path in paths]
