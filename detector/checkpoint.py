"""Checkpoints: one file with the weights and all that is needed to build the network around them.

Two forms: `.pt`, which training writes, and for sharing `.safetensors` with a `.json` of the same name beside it, which
`scripts/export.py` writes. Either may come from a stranger, and can only be wrong, not dangerous: neither is able to
hold code, and what they say is checked before it is used.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from detector.classes import check_classes
from detector.errors import InputError
from detector.files import write_atomically
from detector.models.weights import read_state

SHARED_FORMAT = "fast-rcnn weights 1"
MAX_JSON_BYTES = 10_000_000
GROUPS = ("data", "model", "roi", "detect", "proposals")  # of settings that evaluation takes from training


def save_checkpoint(path: Path, model: nn.Module, config: dict, classes: tuple[str, ...], iteration: int) -> None:
    """Write `model` (state dict), `config` (the run's, resolved), `classes` and `iteration`, whole or not at all."""
    content = {"model": model.state_dict(), "config": config, "classes": list(classes), "iteration": iteration}
    data = io.BytesIO()
    torch.save(content, data)
    write_atomically(path, data.getvalue())


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint, in either form; tensors and plain values only, so that a stranger's file can run nothing.

    Raises InputError if the file is not there, is damaged, or is no checkpoint of this program.
    """
    content = read_state(path)
    if path.suffix == ".safetensors":
        content = {"model": content} | _read_json(path.with_suffix(".json"))
    missing = {"model", "config", "classes", "iteration"} - content.keys()
    if missing:
        raise InputError(f"{path}: not a checkpoint of this program: it has no {', '.join(sorted(missing))}")
    _check_content(path, content)
    return content


def _check_content(path: Path, content: dict) -> None:
    """Raise InputError unless every part is of the kind that it must be."""

    def require(sound: bool, what: str) -> None:
        if not sound:
            raise InputError(f"{path}: not a checkpoint of this program: {what}")

    model, config, classes = content["model"], content["config"], content["classes"]
    require(isinstance(model, dict) and bool(model), "`model` is no dict of tensors")
    for name, value in model.items():
        require(isinstance(name, str) and isinstance(value, Tensor), f"`model` has {name!r}, which is no tensor")
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        # A few bytes may pose as a huge tensor, by a stride of 0.
        require(plain and value.untyped_storage().nbytes() >= value.nbytes, f"`model`: {name} is no plain tensor")
    require(isinstance(config, dict), "`config` is no dict")
    for group in GROUPS:
        require(isinstance(config.get(group), dict), f"`config` has no settings of {group}")
    require(_is_plain(config), "`config` holds more than plain values")
    require(isinstance(classes, list) and bool(classes), "`classes` is no list of names")
    check_classes(f"{path}, classes", classes)
    iteration = content["iteration"]
    require(isinstance(iteration, int) and iteration >= 0, "`iteration` is no number of steps")


def _is_plain(value: Any, depth: int = 10) -> bool:
    """Whether this is as from a yaml file: dicts by name, lists, texts, numbers, null."""
    if isinstance(value, dict):
        return depth > 0 and all(isinstance(key, str) and _is_plain(item, depth - 1) for key, item in value.items())
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, str | int | float)


def save_weights(folder: Path, checkpoint: dict) -> None:
    """Write a checkpoint as `model.safetensors` and `model.json` into `folder`, for sharing.

    Of the settings, those that name a place on this machine become null. Raises InputError if one of the files is
    there already.
    """
    for name in ("model.safetensors", "model.json"):
        if (folder / name).exists():
            raise InputError(f"{folder / name} is there already, and nothing is overwritten: name another folder")
    config = _without_places(checkpoint["config"])
    if checkpoint["config"]["model"]["weights"] is not None:  # whether there were some decides how it was built
        config["model"]["weights"] = Path(checkpoint["config"]["model"]["weights"]).name
    about = {
        "format": SHARED_FORMAT,
        "classes": checkpoint["classes"],
        "iteration": checkpoint["iteration"],
        "config": config,
    }
    tensors = {name: value.contiguous() for name, value in checkpoint["model"].items()}
    write_atomically(folder / "model.json", (json.dumps(about, indent=1) + "\n").encode())
    write_atomically(folder / "model.safetensors", save(tensors, {"format": "pt"}))


def _without_places(value: Any) -> Any:
    """Settings without what names a file or folder: texts with a path separator become null."""
    if isinstance(value, Mapping):
        return {key: _without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    return None if isinstance(value, str) and ("/" in value or "\\" in value) else value


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; weights in .safetensors need it beside them, as scripts/export.py wrote it"
        )
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError(f"{path}: has {path.stat().st_size} bytes, more than any description of a network")
    try:
        about = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: broken JSON: {error}") from None
    if not isinstance(about, dict) or about.get("format") != SHARED_FORMAT:
        raise InputError(
            f"{path}: its format is not '{SHARED_FORMAT}': not written by this program's scripts/export.py"
        )
    return {key: about[key] for key in ("config", "classes", "iteration") if key in about}
