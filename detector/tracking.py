"""What a run leaves to look at: TensorBoard events, and the same numbers in metrics.jsonl."""

import json
import math
import resource
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams


class Means:
    """Means of values over steps. Tensors are only read when the mean is asked for.

    Of the values in `roi/`, NaN stands for none, such as the accuracy on no foreground; elsewhere one NaN shows.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor | float]] = []

    def add(self, values: dict[str, Tensor | float]) -> None:
        self.steps.append(values)

    def take(self) -> dict[str, float]:
        """The means of all that was added since the last call."""
        columns = {
            tag: torch.stack([torch.as_tensor(step[tag]).float() for step in self.steps]) for tag in self.steps[0]
        }
        self.steps = []
        return {
            tag: float(column.nanmean() if tag.startswith("roi/") else column.mean()) for tag, column in columns.items()
        }


def peak_memory_mib(device: torch.device) -> float:
    """The most memory that was held so far: on the GPU what torch allocated, else by this process, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class Tracker:
    """Writes the scalars, pictures and texts of one run into its folder. Steps are iterations of the optimizer."""

    def __init__(self, folder: Path) -> None:
        self.writer = SummaryWriter(str(folder))
        self.lines = open(folder / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115  closed in close()

    def scalars(self, iteration: int, values: dict[str, float]) -> None:
        """Values by tag, such as `train/loss`. One that is not finite is null in the file only."""
        finite = {tag: value for tag, value in values.items() if math.isfinite(value)}
        for tag, value in finite.items():
            self.writer.add_scalar(tag, value, iteration)
        self.lines.write(json.dumps({"iteration": iteration, **{tag: finite.get(tag) for tag in values}}) + "\n")

    def image(self, iteration: int, tag: str, picture: np.ndarray) -> None:
        """A picture (H, W, 3) uint8."""
        self.writer.add_image(tag, picture, iteration, dataformats="HWC")

    def text(self, tag: str, text: str) -> None:
        """A text, shown in a fixed-width font."""
        self.writer.add_text(tag, "\n".join("    " + line for line in text.splitlines()))

    def metrics(self, iteration: int, metrics: dict) -> None:
        """The metrics of an evaluation, as `write_report` returns them."""
        values = {f"val/loss_{name}": value for name, value in metrics["loss"].items()}
        values["val/loss"] = sum(values.values())
        for metric, result in metrics["voc"].items():
            name = metric.replace("@", "_").replace(":", "-")  # TensorBoard's tags have neither
            values[f"val/mAP_{name}"] = result["mAP"]
            values |= {f"val_AP_{name}/{cls.replace(' ', '_')}": ap for cls, ap in result["AP"].items()}
        values |= {f"val_coco/{name}": value for name, value in metrics.get("coco", {}).items() if name != "classes"}
        self.scalars(iteration, {tag: value for tag, value in values.items() if value is not None})

    def hyperparameters(self, settings: dict[str, str | int | float | bool], metrics: dict[str, float]) -> None:
        """Settings and final metrics for TensorBoard's HPARAMS page, in this run (add_hparams would start another)."""
        for summary in hparams(settings, metrics):
            self.writer._get_file_writer().add_summary(summary)
        for tag, value in metrics.items():
            self.writer.add_scalar(tag, value)

    def close(self) -> None:
        self.writer.close()
        self.lines.close()
