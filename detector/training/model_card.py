"""The model card beside an exported network: classes, data, metrics, settings and licence."""

from pathlib import Path
from typing import Any

import yaml

from detector.runtime.files import read_json, reading
from detector.training.checkpoint import describe_network


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
