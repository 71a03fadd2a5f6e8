"""Build components from the settings, in the same way for train.py and evaluate.py.

The only module below the programs that knows the structure of the settings.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch

from detector.boxes import BoxCoder
from detector.data.check import Checked, accept, check_data, check_proposals, require_all_valid
from detector.data.classes import WithoutClasses, require_known, require_unlike
from detector.data.image import ImageOptions
from detector.data.joined import JoinedDataset, JoinedProposals, parts_of
from detector.data.loader import CROWD_IOA_THRESHOLD, DetectionDataset, Proposals, TransformedDataset
from detector.data.proposal_selection import Selection
from detector.data.subset import Subset
from detector.data.transforms import Augment, Resize
from detector.errors import InputError
from detector.inference.postprocess import Postprocess
from detector.inference.predict import DetectorConfig
from detector.models import FastRCNN, build_model
from detector.proposals.generate import proposals_for, store_path
from detector.runtime.device import Compute, resolve_compute
from detector.settings import build, find_class
from detector.training.engine import TrainingConfig
from detector.training.optimizers import default_rate, parameter_groups
from detector.training.targets import Sampling

logger = logging.getLogger(__name__)

# For each reader, the arguments besides `root`, and the setting of each for the part `train` or `val`. The first
# selects the images; a joined data set for which it is null is left out of that part.
READER_ARGUMENTS = {
    "detector.data.voc.VocDataset": {"split": "{}_split"},
    "detector.data.shapes.ShapesDataset": {"split": "{}_split"},
    "detector.data.coco.CocoDataset": {
        "json": "{}_json",
        "images": "{}_images",
        "drop_empty_boxes": "drop_empty_boxes",
    },
}


def build_compute(config: dict) -> Compute:
    """The device and precision in the settings. Raises InputError for a device that is not available."""
    return resolve_compute(config["device"], config["precision"])


def build_dataset(config: dict, part: str) -> DetectionDataset:
    """The data set of the part `train` or `val`, with its own classes except `data.exclude_classes`."""
    data = config["data"]
    limit, excluded = data.get("max_images"), data.get("exclude_classes")
    settings = [_part_settings(data, own) for own in data["parts"]] if data.get("parts") else [data]
    readers = [found for found in (_single_reader(item, part) for item in settings) if found is not None]
    if not readers:
        keys = {next(iter(_reader_arguments(item).values())).format(part) for item in settings}
        raise InputError(
            f"data: nothing says which images there are to {'train on' if part == 'train' else 'score'}: "
            f"give data.{' or data.'.join(sorted(keys))}"
        )
    reader: DetectionDataset = readers[0] if len(readers) == 1 else JoinedDataset(readers)
    if limit is not None and limit < len(reader):
        logger.info("data.max_images: the first %d of the %d images of %s", limit, len(reader), reader.name)
        reader = Subset(reader, range(limit))
    return WithoutClasses(reader, excluded) if excluded else reader


def unwrapped(reader: DetectionDataset) -> DetectionDataset:
    """The data set without `data.max_images` and `data.exclude_classes`."""
    while isinstance(reader, WithoutClasses | Subset):
        reader = reader.reader
    return reader


def _part_settings(data: dict, own: dict) -> dict:
    """The settings of one of `data.parts`: its own, else those of `data`; its root is relative to `data.root`."""
    root = own.get("root", "")
    if not isinstance(root, str):
        raise InputError(f"data.parts: {own} needs a folder as its root, inside data.root or by an absolute path")
    settings = data | own | {"root": str(Path(data["root"], root))}
    arguments = _reader_arguments(settings)
    known = {"reader", "root", *(key.format(part) for key in arguments.values() for part in ("train", "val"))}
    if own.keys() - known:
        raise InputError(
            f"data.parts: {own} has {', '.join(sorted(own.keys() - known))}; what {settings['reader']} takes is "
            f"{', '.join(sorted(known))}"
        )
    return settings


def _single_reader(data: dict, part: str) -> DetectionDataset | None:
    arguments = {name: data.get(key.format(part)) for name, key in _reader_arguments(data).items()}
    if next(iter(arguments.values())) is None:
        return None
    options = image_options(data)
    return build(
        {"_target_": data["reader"]}, ("detector.data.",), root=data["root"], image_options=options, **arguments
    )


def _reader_arguments(data: dict) -> dict[str, str]:
    if data.get("reader") not in READER_ARGUMENTS:
        raise InputError(f"data.reader={data.get('reader')}: must be one of {', '.join(READER_ARGUMENTS)}")
    return READER_ARGUMENTS[data["reader"]]


def resolve_classes(config: dict, *readers: DetectionDataset, more: Collection[str] = ()) -> tuple[str, ...]:
    """`data.classes`, else all names in these data sets and in `more`, without `data.exclude_classes`.

    `more` are the classes of result files. Without `data.classes`, raises InputError for names that differ only in
    case or spaces.
    """
    data = config["data"]
    require_known_exclusions(config, *readers, more=more)
    names = data.get("classes") or sorted({*more}.union(*(reader.classes for reader in readers)))
    chosen = tuple(name for name in names if name not in (data.get("exclude_classes") or ()))
    if not data.get("classes"):
        where = ", ".join(reader.name for reader in readers)
        require_unlike(chosen, f"{where} and the files of detections" if more else where)
    return chosen


def require_known_exclusions(config: dict, *readers: DetectionDataset, more: Collection[str] = ()) -> None:
    """Raise InputError for a name of `data.exclude_classes` that is neither in these data sets nor in `more`."""
    data = config["data"]
    known = {*more, *(data.get("classes") or ())}
    for reader in readers:
        known |= {*(reader.known if isinstance(reader, WithoutClasses) else reader.classes)}
    require_known(data.get("exclude_classes") or (), known)


def image_options(data: dict) -> ImageOptions:
    """How images are read, from the settings `data.exif` and `data.max_image_pixels`."""
    given = {"exif": data["exif"], "max_pixels": data["max_image_pixels"]}
    return ImageOptions(**{key: value for key, value in given.items() if value is not None})


def check(config: dict, reader: DetectionDataset, part: str) -> Checked:
    """Validate every image and annotation: a few bad ones are left out of `train`; none may be bad in `val`."""
    checked = check_data(reader)
    return accept(checked, config["data"]["max_bad_fraction"]) if part == "train" else require_all_valid(checked)


def build_transformed_dataset(config: dict, checked: Checked, part: str) -> TransformedDataset:
    """TransformedDataset of the part `train` (augmented) or `val`, with their proposals."""
    reader, image_hws = checked.reader, checked.image_hws
    proposals = build_proposals(config, reader, image_hws, part)
    logger.info("%s: %s", reader.name, check_proposals(proposals, reader.image_ids, image_hws))
    return transformed_dataset_with(config, reader, proposals, part)


def transformed_dataset_with(
    config: dict, reader: DetectionDataset, proposals: Proposals, part: str
) -> TransformedDataset:
    """TransformedDataset of the part with these proposals, which are not validated."""
    data = config["data"]
    return TransformedDataset(
        reader,
        proposals,
        Resize(data["short_side_px"], data["max_side_px"]),
        Augment(build_transforms(config["augment"]["transforms"])) if part == "train" else None,
        config["seed"],
        Selection(
            data["proposals_by_score"], data["min_proposal_px"], data["unique_proposals"], data[f"{part}_max_proposals"]
        ),
        data["use_difficult"],
        CROWD_IOA_THRESHOLD if part == "train" else None,
    )


def build_transforms(items: Sequence[dict]) -> list:
    """Build albumentations transforms, also nested ones, such as OneOf's. Raises InputError for anything else."""
    made = []
    for item in items:
        if not isinstance(item, dict):
            raise InputError(f"augment.transforms: {item!r} is not a transform, which has a _target_")
        if isinstance(item.get("transforms"), list):
            item = item | {"transforms": build_transforms(item["transforms"])}
        made.append(build(item, ("albumentations.",)))
    return made


def build_proposals(
    config: dict, reader: DetectionDataset, image_hws: Sequence[tuple[int, int]], part: str
) -> Proposals:
    """Proposals from one file, or for each part of a joined data set from its own file or by selective search."""
    files, settings = config["data"].get(f"{part}_proposals"), config["proposals"]
    mode, folder = settings["mode"], Path(settings["folder"])
    parts = parts_of(reader)
    if not isinstance(files, list) and (files or len(parts) == 1):
        return proposals_for(reader, image_hws, files, mode, folder)
    files = files or [None] * len(parts)
    if len(files) != len(parts):
        raise InputError(
            f"data.{part}_proposals: {len(files)} files for {len(parts)} data sets; for null selective search is run"
        )
    sources: dict[str, tuple[Proposals, str]] = {}
    for (single, positions), file in zip(parts, files, strict=True):
        if positions:
            proposals = proposals_for(single, [image_hws[position] for position in positions], file, mode, folder)
            ids = zip(positions, single.image_ids, strict=True)
            sources |= {reader.image_ids[position]: (proposals, own_id) for position, own_id in ids}
    return JoinedProposals(sources)


def kept_proposals(reader: DetectionDataset, folder: Path, mode: str) -> list[str | None]:
    """For each data set joined in `reader`, the file of generated proposals in `folder`, None where there is none."""
    paths = [store_path(folder, single, mode) for single, _ in parts_of(reader)]
    return [str(path) if path.is_file() else None for path in paths]


def build_training_config(config: dict, max_grad_norm: float | None = None) -> TrainingConfig:
    """How RoIs and their targets are sampled from a batch (`roi`, `seed`), and the limit of the gradient."""
    roi = {key: value for key, value in config["roi"].items() if key != "delta_std"}
    return TrainingConfig(Sampling(**roi), _box_coder(config), config["seed"], max_grad_norm)


def build_detector_config(config: dict) -> DetectorConfig:
    """How the network's outputs become detections: `detect`."""
    return DetectorConfig(_box_coder(config), Postprocess(**config["detect"]))


def _box_coder(config: dict) -> BoxCoder:
    return BoxCoder(config["roi"]["delta_std"])


def build_untrained_model(config: dict, num_classes: int) -> FastRCNN:
    """The untrained network. If pretrained weights are loaded next, its batch norm and first stages are frozen."""
    settings = dict(config["model"])
    pretrained = settings.pop("weights", None) is not None
    return build_model(**settings, num_classes=num_classes, pretrained=pretrained)


def build_trained_model(config: dict, state: dict, num_classes: int) -> FastRCNN:
    """The network with the weights of a checkpoint. Raises InputError, before allocating memory, if they do not fit."""
    with torch.device("meta"):
        wanted = {
            key: tuple(value.shape) for key, value in build_untrained_model(config, num_classes).state_dict().items()
        }
    given = {key: tuple(value.shape) for key, value in state.items()}
    wrong = sorted(key for key in {*wanted, *given} if wanted.get(key) != given.get(key))
    if wrong:
        key = wrong[0]
        raise InputError(
            f"the checkpoint does not fit its own settings of the network: {len(wrong)} tensors differ, {key} is "
            f"{given.get(key, 'missing')} in it, and {wanted.get(key, 'missing')} by model.backbone, model.head, ..."
        )
    model = build_untrained_model(config, num_classes)
    model.load_state_dict(state)
    return model


def build_optimizer(config: dict, model: FastRCNN) -> tuple[torch.optim.Optimizer, Callable[[int], float]]:
    """The optimizer, and the schedule: the factor on its learning rates at an iteration, counted from 0."""
    settings, train = dict(config["optimizer"]), config["train"]
    pretrained = config["model"].get("weights") is not None
    settings.pop("max_grad_norm", None)  # `train_step` applies it
    kind = str(settings.get("_target_"))
    find_class(kind, ("torch.optim.",))  # before its learning rate is looked up
    settings["lr"] = settings.get("lr") or default_rate(kind, train["images_per_batch"], pretrained)
    groups = parameter_groups(model, settings["lr"], settings["weight_decay"], settings.pop("bias_lr_factor", 1.0))
    optimizer = build(settings, ("torch.optim.",), params=groups)
    return optimizer, build(config["schedule"], ("detector.training.schedules.",), iterations=train["iterations"])
