"""From settings to the parts of a program: what train.py and evaluate.py put together in the same way.

The only place below the programs that knows how the settings are laid out.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from detector.boxes import BoxCoder
from detector.config import build
from detector.data.check import Checked, accept, check_data, check_proposals, require_whole
from detector.data.generate import proposals_for
from detector.data.image import ImageOptions
from detector.data.loader import Reader, Samples
from detector.data.transforms import Augment, Resize
from detector.device import Compute, choose_compute
from detector.engine import Recipe
from detector.errors import InputError
from detector.models import FastRCNN, build_model
from detector.optim import default_rate, parameter_groups
from detector.postprocess import Postprocess
from detector.targets import Sampling

logger = logging.getLogger(__name__)


def make_compute(config: dict) -> Compute:
    return choose_compute(config["device"], config["precision"], config["channels_last"])


def make_reader(config: dict, part: str) -> Reader:
    """The data set of the part `train` or `val`, with its own classes."""
    data = config["data"]
    return build(
        {"_target_": data["reader"]},
        ("detector.data.",),
        root=data["root"],
        split=data.get(f"{part}_split"),
        image_options=ImageOptions(data["exif"], data["max_image_pixels"]),
    )


def check(config: dict, reader: Reader, part: str) -> Checked:
    """Every image and annotation looked at: a few bad ones are left out of `train`, of `val` none may be bad."""
    checked = check_data(reader)
    return accept(checked, config["data"]["max_bad_fraction"]) if part == "train" else require_whole(checked)


def make_samples(config: dict, checked: Checked, part: str) -> Samples:
    """Samples of the part `train` (augmented) or `val`, with their proposals."""
    data, settings, reader, image_hws = config["data"], config["proposals"], checked.reader, checked.image_hws
    folder = Path(settings["folder"])
    proposals = proposals_for(reader, image_hws, data.get(f"{part}_proposals"), settings["mode"], folder)
    logger.info("%s: %s", reader.name, check_proposals(proposals, reader.image_ids, image_hws))
    return Samples(
        reader,
        proposals,
        Resize(data["short_side_px"], data["max_side_px"]),
        Augment([build(item, ("albumentations.",)) for item in config["augment"]["transforms"]])
        if part == "train"
        else None,
        config["seed"],
        data[f"{part}_max_proposals"],
        data["use_difficult"],
    )


def make_recipe(config: dict) -> Recipe:
    roi = dict(config["roi"])
    coder = BoxCoder(roi.pop("delta_std"))
    return Recipe(Sampling(**roi), coder, Postprocess(**config["detect"]), config["seed"])


def make_model(config: dict, num_classes: int) -> FastRCNN:
    """The untrained network. With pretrained weights to come, its batch norm and first stages are frozen."""
    settings = dict(config["model"])
    pretrained = settings.pop("weights", None) is not None
    return build_model(**settings, num_classes=num_classes, pretrained=pretrained)


def make_trained_model(config: dict, state: dict, num_classes: int) -> FastRCNN:
    """The network with the weights of a checkpoint. Raises InputError, before memory is taken, if they do not fit."""
    with torch.device("meta"):
        wanted = {key: tuple(value.shape) for key, value in make_model(config, num_classes).state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    wrong = sorted(key for key in {*wanted, *given} if wanted.get(key) != given.get(key))
    if wrong:
        key = wrong[0]
        raise InputError(
            f"the checkpoint does not fit its own settings of the network: {len(wrong)} tensors differ, {key} has "
            f"{given.get(key, 'no place')} in it, and {wanted.get(key, 'no place')} by model.backbone, model.head, ..."
        )
    model = make_model(config, num_classes)
    model.load_state_dict(state)
    return model


def make_optimizer(config: dict, model: FastRCNN) -> tuple[torch.optim.Optimizer, Callable[[int], float]]:
    """The optimizer, and the schedule: the factor on its rates at an iteration, from 0."""
    settings, train = dict(config["optimizer"]), config["train"]
    pretrained = config["model"].get("weights") is not None
    settings["lr"] = settings.get("lr") or default_rate(train["images_per_batch"], pretrained)
    groups = parameter_groups(model, settings["lr"], settings["weight_decay"])
    optimizer = build(settings, ("torch.optim.",), params=groups)
    return optimizer, build(config["schedule"], ("detector.schedules.",), iterations=train["iterations"])
