"""From settings to the parts of a program: what train.py and evaluate.py put together in the same way.

The only place below the programs that knows how the settings are laid out.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from detector.boxes import BoxCoder
from detector.config import build
from detector.data.check import check_images
from detector.data.generate import proposals_for
from detector.data.loader import Reader, Samples
from detector.data.proposals import Selection
from detector.data.transforms import Augment, Resize
from detector.device import Compute, choose_compute
from detector.engine import Recipe
from detector.models import FastRCNN, build_model
from detector.optim import default_rate, parameter_groups
from detector.postprocess import Postprocess
from detector.targets import Sampling


def make_compute(config: dict) -> Compute:
    return choose_compute(config["device"], config["precision"], config["channels_last"])


def make_reader(config: dict, part: str) -> Reader:
    """The data set of the part `train` or `val`, with its own classes."""
    data = config["data"]
    return build({"_target_": data["reader"]}, root=data["root"], split=data[f"{part}_split"])


def make_samples(config: dict, reader: Reader, part: str) -> Samples:
    """Samples of the part `train` (augmented) or `val`, every image checked and with proposals."""
    data, proposals = config["data"], config["proposals"]
    image_hws = check_images(reader)
    return Samples(
        reader,
        proposals_for(reader, image_hws, data[f"{part}_proposals"], proposals["mode"], Path(proposals["folder"])),
        Resize(data["short_side_px"], data["max_side_px"]),
        Augment([build(item) for item in config["augment"]["transforms"]]) if part == "train" else None,
        config["seed"],
        Selection(
            data["proposals_by_score"], data["min_proposal_px"], data["unique_proposals"], data[f"{part}_max_proposals"]
        ),
        data["use_difficult"],
    )


def make_recipe(config: dict) -> Recipe:
    roi = dict(config["roi"])
    coder = BoxCoder(roi.pop("delta_std"))
    return Recipe(Sampling(**roi), coder, Postprocess(**config["detect"]), config["seed"])


def make_model(config: dict, num_classes: int) -> FastRCNN:
    """The untrained network. With pretrained weights to come, its batch norm and first stages are frozen."""
    settings = dict(config["model"])
    pretrained = settings.pop("weights") is not None
    return build_model(**settings, num_classes=num_classes, pretrained=pretrained)


def make_optimizer(config: dict, model: FastRCNN) -> tuple[torch.optim.Optimizer, Callable[[int], float]]:
    """The optimizer, and the schedule: the factor on its rates at an iteration, from 0."""
    settings, train = dict(config["optimizer"]), config["train"]
    pretrained = config["model"]["weights"] is not None
    settings["lr"] = settings["lr"] or default_rate(train["images_per_batch"], pretrained)
    groups = parameter_groups(model, settings["lr"], settings["weight_decay"])
    return build(settings, params=groups), build(config["schedule"], iterations=train["iterations"])
