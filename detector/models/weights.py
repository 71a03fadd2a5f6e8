"""Pretrained weights: torchvision's ImageNet weights, or a file."""

import logging
import pickle
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision import models

from detector.errors import InputError, first_few
from detector.models.backbones import CONV3_TO_5, split_name
from detector.models.fast_rcnn import FastRCNN
from detector.models.timm_body import TimmBody, name_prefixes
from detector.runtime.files import read_json, reading

logger = logging.getLogger(__name__)

OUTPUT_LAYERS = ("cls_score.", "bbox_pred.")
DELTA_STATISTICS = ("delta_mean", "delta_std")  # see FastRCNN
FC6_WEIGHT = "head.fc6.weight"
FC6_SIDES = {512 * 7 * 7: 7, 256 * 6 * 6: 6}  # inputs of the first fully connected layer -> pool size: VGG, AlexNet
REFUSED = (
    "not a checkpoint and not a file of plain weights, or cut off; files that hold anything but tensors and plain "
    "values, code above all, are refused"
)
CLASSIFIER_SHAPE = (4096, 4096)  # of the second one, in both


def torchvision_prefixes(backbone: str) -> dict[str, str]:
    """Prefixes of torchvision's classification network -> prefixes of this program's model."""
    if not backbone.startswith("resnet"):
        fc6, fc7 = (1, 4) if backbone == "alexnet" else (0, 3)
        return {
            "features.": "backbone.features.", f"classifier.{fc6}.": "head.fc6.", f"classifier.{fc7}.": "head.fc7.",
        }  # fmt: skip
    names = {"conv1.": "backbone.stem.0.", "bn1.": "backbone.stem.1."}
    names |= {f"layer{number}.": f"backbone.layer{number}." for number in (1, 2, 3)}
    return names | {"layer4.": "backbone.layer4." if split_name(backbone)[1] else "head.layer4."}


def load_weights(model: FastRCNN, backbone: str, weights: str, classes: Sequence[str]) -> bool:
    """Load weights into the model from `imagenet` or from a file, and log which layers keep their initialization.
    Returns whether the box regression was loaded; it then predicts targets normalised by `roi.delta_std` alone.

    The file has the state dict of a classification network with torchvision's names, or is a checkpoint of this
    program; if its classes are not these, in this order, the two output layers are not loaded. Raises InputError if the
    file is missing, unreadable, or does not match the model.
    """
    if weights == "imagenet":
        source, state = "torchvision's ImageNet weights", _imagenet_state(backbone)
    else:
        if not Path(weights).exists():
            raise InputError(f"model.weights={weights}: no such file; it is imagenet, null, or a file of weights")
        source, state = weights, read_state(Path(weights))
    theirs = _classes_of(weights, state)
    of_checkpoint = isinstance(state.get("model"), dict)
    wrapped = state["model"] if of_checkpoint else state.get("state_dict")
    state = {
        name.removeprefix("module."): value  # DataParallel adds this prefix
        for name, value in (wrapped if isinstance(wrapped, dict) else state).items()
        if isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
    }
    if isinstance(model.backbone, TimmBody) and not of_checkpoint:
        state = {_renamed(key, name_prefixes(model.backbone.net)): value for key, value in state.items()}
    elif not of_checkpoint:
        state = _from_classifier(state, backbone)
    state = _without_statistics(state, source)
    if theirs != [*classes]:
        if theirs is not None:
            logger.info("its classes differ, so its output layers are not loaded: %s", ", ".join(map(str, theirs)))
        state = {key: value for key, value in state.items() if not key.startswith(OUTPUT_LAYERS)}
    own = {key: value for key, value in model.state_dict().items() if key not in DELTA_STATISTICS}
    fitting = {key: value for key, value in state.items() if key in own and _fits(value, own[key])}
    trunk = [key for key in own if key.startswith("backbone.") and not key.startswith("backbone.fpn.")]
    lacking = [key for key in trunk if "num_batches" not in key and key not in fitting]
    statistics = [key for key in state if key.startswith("backbone.") and "running_mean" in key and key not in own]
    if statistics and not lacking and not isinstance(model.backbone, TimmBody):  # of which a part is not used
        raise InputError(
            f"model.norm=group: {source} has statistics of batch norm: it takes model.norm=frozen or batch"
        )
    if lacking:
        raise InputError(f"model.weights: {source} does not fit {backbone}: it lacks {first_few(lacking)}")
    model.load_state_dict(fitting, strict=False)
    new = sorted({key.rpartition(".")[0] for key in own if key not in fitting and "num_batches" not in key})
    logger.info("weights from %s; not in it and trained from scratch: %s", source, first_few(new, 12) or "nothing")
    return "bbox_pred.weight" in fitting


def _fits(value: Tensor, own: Tensor) -> bool:
    is_alike = value.is_floating_point() == own.is_floating_point() and not value.is_complex()
    return value.shape == own.shape and is_alike and value.device.type == "cpu"


def _without_statistics(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights with the statistics of its targets, if it has them, as a part of the box regression."""
    if not all(key in state for key in (*DELTA_STATISTICS, "bbox_pred.weight", "bbox_pred.bias")):
        return state
    weight, bias = state["bbox_pred.weight"], state["bbox_pred.bias"]
    mean, std = (state[key].flatten() for key in DELTA_STATISTICS)
    if weight.dim() != 2 or not mean.shape == std.shape == bias.shape == weight.shape[:1]:
        raise InputError(f"model.weights: {source}: the statistics of its targets do not fit its box regression")
    return state | {"bbox_pred.weight": weight * std[:, None], "bbox_pred.bias": bias * std + mean}


def _classes_of(weights: str, state: dict) -> list | None:
    """Class names from a checkpoint, or from the .json beside a .safetensors file; None if there are none."""
    about = state
    if weights.endswith(".safetensors"):
        try:
            about = read_json(Path(weights).with_suffix(".json"))
        except InputError:
            return None
    classes = about.get("classes") if isinstance(about, dict) else None
    return classes if isinstance(classes, list) else None


def read_state(path: Path) -> dict:
    """Read a file of tensors and plain values; a file with anything else, such as code, is rejected."""
    if path.is_dir():
        best = path / "checkpoints" / "best.pt"
        raise InputError(f"{path}: is a folder, not a file{f': {best} is one' if best.is_file() else ''}")
    with reading(path, REFUSED, sys.maxsize):
        if path.suffix == ".safetensors":
            return load_file(path)
        require_stored(path)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # torch's text advises to load it unsafely
            raise ValueError("it contains something other than tensors") from None
    if not isinstance(state, dict):
        raise InputError(f"{path}: holds a {type(state).__name__}, not a dict of tensors")
    return state


def require_stored(path: Path) -> None:
    """Raise ValueError for a zip file with compressed members: torch writes none, and decompresses to any size."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{member.filename} is packed")


def imagenet_url(backbone: str) -> str:
    """Where torchvision's first ImageNet weights of this network are."""
    if backbone in CONV3_TO_5 or backbone.startswith("timm/"):
        raise InputError(f"model.weights=imagenet: torchvision has none for {backbone}: give a file, or null")
    return models.get_model_weights(split_name(backbone)[0])["IMAGENET1K_V1"].url


def _imagenet_state(backbone: str) -> dict:
    url = imagenet_url(backbone)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        return torch.hub.load_state_dict_from_url(
            url, model_dir=str(folder), map_location="cpu", weights_only=True, check_hash=True
        )
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(
            f"model.weights=imagenet: {url} cannot be downloaded ({error}). Download it elsewhere and put it "
            f"into {folder} under the same name, or train from scratch with model.weights=null"
        ) from None


def _from_classifier(state: dict, backbone: str) -> dict:
    """Convert names and weight order of torchvision's networks to this program's."""
    renamed = {_renamed(key, torchvision_prefixes(backbone)): value for key, value in state.items()}
    weight = renamed.get(FC6_WEIGHT)
    if weight is not None and weight.dim() == 2 and weight.shape[1] in FC6_SIDES:  # (c, h, w) -> (h, w, c): heads.py
        side = FC6_SIDES[weight.shape[1]]
        renamed[FC6_WEIGHT] = weight.unflatten(1, (-1, side, side)).permute(0, 2, 3, 1).flatten(1)
    return renamed


def to_torchvision(state: dict[str, Tensor], backbone: str) -> dict[str, Tensor]:
    """The part of a state dict that exists in torchvision's classification network, under torchvision's names."""
    if backbone.startswith("timm/"):
        raise InputError(f"model.backbone={backbone}: is no network of torchvision")
    prefixes = {ours: theirs for theirs, ours in torchvision_prefixes(backbone).items()}
    state = dict(state)
    weight, second = state.get(FC6_WEIGHT), state.get("head.fc7.weight")
    if weight is not None and second is not None and second.shape == CLASSIFIER_SHAPE and weight.shape[1] in FC6_SIDES:
        side = FC6_SIDES[weight.shape[1]]
        state[FC6_WEIGHT] = weight.unflatten(1, (side, side, -1)).permute(0, 3, 1, 2).flatten(1)
    else:
        state = {key: value for key, value in state.items() if not key.startswith(("head.fc6.", "head.fc7."))}
    return {_renamed(key, prefixes): value for key, value in state.items() if key.startswith(tuple(prefixes))}


def _renamed(key: str, prefixes: dict[str, str]) -> str:
    for old, new in prefixes.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key
