"""Logging of a run: TensorBoard events, and the same numbers in metrics.jsonl."""

import errno
import io
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from detector.evaluation.counts import ThresholdCounts
from detector.evaluation.tables import tag_of
from detector.inference.embedding import EmbeddedObjects

logger = logging.getLogger(__name__)

EMBEDDING = "objects"  # its name on the page PROJECTOR

# Groups of tags are shown in alphabetical order: `loss/` and `mAP/` come first. The page CUSTOM SCALARS has the plots
# to look at first, several curves in each. Tags are regular expressions.
DASHBOARD = {
    "Does it learn?": {
        "loss": ["Multiline", ["loss/train$", "loss/val$"]],
        "mAP, and recall of the proposals": ["Multiline", ["mAP/.*", "proposals/recall_0.50"]],
        "accuracy of sampled RoIs": ["Multiline", ["roi/foreground_accuracy", "roi/background_accuracy"]],
    },
    "Is it stable?": {
        "gradient norm": ["Multiline", ["train/grad_norm"]],
        "learning rate": ["Multiline", ["train/lr"]],
    },
}


MAY_LACK = ("roi/", "train/grad_norm")  # tags of values that can be missing in a step


class Means:
    """Means of values over steps. Tensors are read only when the mean is requested.

    In `roi/` values and the gradient norm, NaN means no value, such as the foreground accuracy without foreground;
    elsewhere, NaN propagates.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor | float]] = []

    def add(self, values: dict[str, Tensor | float]) -> None:
        """Add the values of a step, by TensorBoard tag."""
        self.steps.append(values)

    def take(self) -> dict[str, float]:
        """The means of the values added since the last call."""
        columns = {
            tag: torch.stack([torch.as_tensor(step[tag]).float() for step in self.steps]) for tag in self.steps[0]
        }
        self.steps = []
        return {
            tag: float(column.nanmean() if tag.startswith(MAY_LACK) else column.mean())
            for tag, column in columns.items()
        }


class Tracker:
    """Writes the scalars, images and texts of one run to its folder. Steps are optimizer iterations.

    `start` is the number of steps already done: TensorBoard hides earlier events of later steps. If writing fails
    during the run, training continues: one warning is logged and no further events are written; metrics.jsonl is
    retried each time. Raises OSError if writing fails at the start.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        self.warned = False
        self.path = folder / "metrics.jsonl"
        self.writer: SummaryWriter | None = SummaryWriter(str(folder), purge_step=start + 1)
        self.writer.add_custom_scalars(DASHBOARD)
        self.lines = open(self.path, "ab", buffering=0)  # noqa: SIM115  closed in close()
        self._excepthook, threading.excepthook = threading.excepthook, self._after_thread

    def _after_thread(self, died: threading.ExceptHookArgs) -> None:
        """TensorBoard's writer thread passes its error to the next write; only other threads print theirs."""
        if not type(died.thread).__module__.startswith("tensorboard."):
            self._excepthook(died)

    def _write_events(self, write: Callable[[SummaryWriter], object]) -> None:
        if self.writer is None:
            return
        try:
            write(self.writer)
        except Exception as error:  # its thread passes on any error of a disk or network
            self.writer = None
            logger.warning("no more TensorBoard events: %s. Training continues, with metrics.jsonl", error)

    def scalars(self, iteration: int, values: dict[str, float]) -> None:
        """Log values by tag, such as `loss/train`. A value that is not finite is null in the file only."""
        finite = {tag: value for tag, value in values.items() if math.isfinite(value)}

        def write(writer: SummaryWriter) -> None:
            for tag, value in finite.items():
                writer.add_scalar(tag, value, iteration)

        self._write_events(write)
        line = json.dumps({"iteration": iteration, **{tag: finite.get(tag) for tag in values}}).encode() + b"\n"
        try:
            end = self.lines.seek(0, io.SEEK_END)
            if self.lines.write(line) < len(line):
                with suppress(OSError):
                    self.lines.truncate(end)  # leaves no partial line for the next one to be appended to
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self.warned:
                logger.warning("metrics.jsonl cannot be written: %s. Training continues", error)
            self.warned = True

    def history(self) -> list[dict]:
        """The lines of metrics.jsonl."""
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def image(self, iteration: int, tag: str, picture: np.ndarray) -> None:
        """Log an image (H, W, 3) uint8."""
        self._write_events(lambda writer: writer.add_image(tag, picture, iteration, dataformats="HWC"))

    def histogram(self, iteration: int, tag: str, values: np.ndarray) -> None:
        """Log the distribution of values (N,)."""
        if len(values):
            self._write_events(lambda writer: writer.add_histogram(tag, values, iteration))

    def pr_curve(self, iteration: int, tag: str, counts: ThresholdCounts) -> None:
        """Log a precision-recall curve; the slider on the page is the score threshold."""
        found = counts.hits + counts.misses
        precision = np.where(found > 0, counts.hits / np.maximum(found, 1), 1.0)
        recall = counts.hits / (counts.hits + counts.not_found)
        rows = counts.hits, counts.misses, np.zeros_like(found), counts.not_found, precision, recall
        self._write_events(lambda writer: writer.add_pr_curve_raw(tag, *rows, iteration, num_thresholds=len(found)))

    def text(self, tag: str, text: str) -> None:
        """Log a string, shown in a fixed-width font."""
        shown = "\n".join("    " + line for line in text.splitlines())
        self._write_events(lambda writer: writer.add_text(tag, shown))

    def metrics(self, iteration: int, metrics: dict, proposal_recall: dict) -> None:
        """Log the metrics of an evaluation, as `write_report` and `score_recall` return them."""
        values = {f"loss/val_{name}": value for name, value in metrics["loss"].items()}
        values["loss/val"] = sum(values.values())
        for metric, result in metrics["voc"].items():
            name = tag_of(metric)
            values[f"mAP/{name}"] = result["mAP"]
            values |= {f"val_AP_{name}/{cls.replace(' ', '_')}": ap for cls, ap in result["AP"].items()}
        coco = {name: value for name, value in metrics.get("coco", {}).items() if name != "classes"}
        values |= {"mAP/coco" if name == "AP" else f"val_coco/{name}": value for name, value in coco.items()}
        everything = proposal_recall["groups"]["all"]
        if everything["objects"]:
            by_iou = dict(zip(proposal_recall["iou"], everything["recall"]["all"], strict=True))
            values |= {f"proposals/recall_{iou:.2f}": by_iou[iou] for iou in (0.5, 0.7)}
            values["proposals/average_recall"] = everything["AR"]["all"]
        self.scalars(iteration, {tag: value for tag, value in values.items() if value is not None})

    def hyperparameters(self, settings: dict[str, str | int | float | bool], metric_tags: Sequence[str]) -> None:
        """Log settings for TensorBoard's page HPARAMS, in this run (add_hparams would start another).

        The page also shows the last value of each scalar in `metric_tags`.
        """

        def write(writer: SummaryWriter) -> None:
            for summary in hparams(settings, dict.fromkeys(metric_tags)):
                writer._get_file_writer().add_summary(summary)

        self._write_events(write)

    def embedding(self, iteration: int, objects: EmbeddedObjects, classes: Sequence[str]) -> None:
        """Write object features for the page PROJECTOR: a point for each object, with its class, image and crop."""
        folder = self.path.parent / f"{iteration:05d}" / EMBEDDING
        if folder.exists():  # a finished run was resumed
            return
        if len(objects.labels) < 3:
            logger.warning("no page PROJECTOR: it needs three validation objects with finite features")
            return
        pairs, names = zip(objects.labels, objects.image_ids, strict=True), ["class", "image"]
        rows = [[" ".join(cell.split()) for cell in (classes[label - 1], image_id)] for label, image_id in pairs]
        crops = torch.from_numpy(objects.crops).permute(0, 3, 1, 2) / 255
        self._write_events(
            lambda writer: writer.add_embedding(objects.features, rows, crops, iteration, EMBEDDING, names)
        )

    def flush(self) -> None:
        """Flush everything to disk before a checkpoint is written."""
        self._write_events(lambda writer: writer.flush())

    def close(self) -> None:
        """Flush what can still be written, and close the files."""
        self._write_events(lambda writer: writer.close())
        threading.excepthook = self._excepthook
        with suppress(OSError):  # each line was written at once
            self.lines.close()
