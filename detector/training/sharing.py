"""Networks for sharing: weights with a description that names no path of this machine, and a model card.

The card has classes, data, metrics, settings and licence.
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from safetensors.torch import save

from detector.errors import InputError
from detector.runtime.files import read_json, reading, write_atomically
from detector.schema import MACHINE, fields
from detector.settings import TrainSettings

SHARED_FORMAT = "fast-rcnn weights 2"
MAX_JSON_BYTES = 10_000_000
# Settings of any group that name a path of this machine.
MACHINE_SPECIFIC = {key for key, field in fields(TrainSettings) if MACHINE in field.metadata}


def describe_network(checkpoint: dict) -> dict[str, Any]:
    """What an exported network needs beside its weights: classes, iteration, and settings.

    Settings that name a path of this machine become null.
    """
    config = _without_paths(checkpoint["config"])
    if checkpoint["config"]["model"]["weights"] is not None:  # null or not decides how the network is built
        config["model"]["weights"] = Path(checkpoint["config"]["model"]["weights"]).name
    return {
        "format": SHARED_FORMAT,
        "classes": checkpoint["classes"],
        "iteration": checkpoint["iteration"],
        "config": config,
    }


def save_weights(folder: Path, checkpoint: dict) -> None:
    """Write a checkpoint as `model.safetensors` and `model.json` into `folder`, for sharing.

    If the second cannot be written, the first is removed.
    """
    weights, description = folder / "model.safetensors", folder / "model.json"
    about = describe_network(checkpoint)
    tensors = {name: value.contiguous() for name, value in checkpoint["model"].items()}
    write_atomically(weights, save(tensors, {"format": "pt"}))
    try:
        write_atomically(description, (json.dumps(about, indent=1) + "\n").encode())
    except BaseException:
        weights.unlink()
        raise


def _without_paths(value: Any, key: str = "") -> Any:
    """Settings with null for paths of this machine: those with the policy MACHINE, and absolute paths anywhere."""
    if key in MACHINE_SPECIFIC:
        return None
    if isinstance(value, Mapping):
        return {name: _without_paths(item, f"{key}.{name}" if key else name) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item, f"{key}[]") for item in value]
    is_absolute = isinstance(value, str) and (
        PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
    )
    return None if is_absolute else value


def read_description(path: Path) -> dict:
    """What `save_weights` wrote beside the weights. Raises InputError for another file."""
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; weights in .safetensors need it beside them, as scripts/export.py wrote it"
        )
    about = read_json(path, MAX_JSON_BYTES)
    if not isinstance(about, dict) or about.get("format") != SHARED_FORMAT:
        raise InputError(
            f"{path}: its format is not '{SHARED_FORMAT}': not written by this version's scripts/export.py"
        )
    return {key: about[key] for key in ("config", "classes", "iteration") if key in about}


def model_card(checkpoint: dict, metrics: dict | None, licence: str) -> str:
    """The card as Markdown. `metrics` is the content of `metrics.json`, if there is an evaluation."""
    about = describe_network(checkpoint)
    config, weights = about["config"], about["config"]["model"]["weights"]
    lines = [
        f"# Fast R-CNN, {config['model']['backbone']} with head {config['model']['head']}",
        "",
        f"- Classes, label 1 first: {', '.join(about['classes'])}",
        f"- Trained for {about['iteration']} iterations on data in the layout `{config['data']['reader']}`",
        f"- Initial weights: {weights or 'none, trained from scratch'}",
        f"- Licence of the weights: {licence}",
        "",
        "Input: RGB images and proposals, of selective search unless given. Output: for each proposal the class scores "
        "and a box for each class. The program `scripts/detect.py` and `detector.load` run it.",
        "",
        "## Metrics",
        "",
        *(_metrics(metrics) if metrics else ["There is no evaluation of these weights beside the checkpoint."]),
        "",
        "## Settings of training",
        "",
        "```yaml",
        yaml.safe_dump(config, sort_keys=False, allow_unicode=True).rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _metrics(metrics: dict) -> list[str]:
    source = metrics["source"]
    rows = [(name, item["mAP"], item["AP"]) for name, item in metrics["voc"].items()]
    classes = list(rows[0][2])
    return [
        f"On {source['images']} images of {source['data']}, after {source['iteration']} iterations:",
        "",
        f"| AP | mean | {' | '.join(classes)} |",
        "|---" * (2 + len(classes)) + "|",
        *(
            f"| {name} | {_number(mean)} | {' | '.join(_number(values[key]) for key in classes)} |"
            for name, mean, values in rows
        ),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def metrics_beside(checkpoint: Path, iteration: int) -> dict[str, Any] | None:
    """The `metrics.json` of the checkpoint's run, None if there is none or it is of another iteration."""
    folder = checkpoint.resolve().parent
    path = folder.with_name("metrics.json")
    if folder.name != "checkpoints" or not path.is_file():
        return None
    with reading(path, "is not the metrics.json of a run"):
        metrics = read_json(path)
        _metrics(metrics)
    return metrics if metrics["source"].get("iteration") == iteration else None
