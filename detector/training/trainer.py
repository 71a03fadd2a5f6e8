"""What happens in a run between the steps, and what it leaves in its folder."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
import yaml
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from detector.data.loader import TransformedDataset
from detector.evaluation.report import write_report
from detector.evaluation.results import round_trip_results
from detector.evaluation.tables import ap_table
from detector.inference.predict import DetectorConfig, evaluate
from detector.models import FastRCNN
from detector.runtime.device import Compute, peak_memory_mib
from detector.runtime.distributed import barrier, broadcast_buffers, rank_info
from detector.runtime.files import write_atomically
from detector.runtime.signals import Stopped, StopRequest
from detector.settings import flatten
from detector.structures import Detections
from detector.training.checkpoint import Checkpoints
from detector.training.diagnostics import CollapseDetector, DivergenceDetector
from detector.training.engine import Step, TrainingConfig
from detector.training.losses import multi_task_loss
from detector.training.tracking import Means, Tracker, tag_of
from detector.visualization.drawing import draw_batch, draw_detections

logger = logging.getLogger(__name__)

VERSIONS = {"torch": str(torch.__version__), "torchvision": str(torchvision.__version__)}
NUM_PICTURES = 8  # of validation images in TensorBoard, the same ones at every evaluation


@dataclass(frozen=True)
class TrainingComponents:
    """What a run is made of."""

    classes: tuple[str, ...]
    model: FastRCNN
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]  # the factor on its rates at an iteration
    training: TrainingConfig
    detector: DetectorConfig
    compute: Compute
    train_samples: TransformedDataset
    val_samples: TransformedDataset
    fingerprints: dict[str, str]  # fingerprints of data and proposals
    averaged: AveragedModel | None = None  # the moving average of the weights, where `train.ema` asks for one

    @property
    def evaluated_model(self) -> nn.Module:
        """The network that is evaluated and shared."""
        return self.model if self.averaged is None else self.averaged.module


@dataclass
class Trainer:
    """What happens between the steps: logging, evaluation, checkpoints. Of several processes the first one writes."""

    config: dict
    folder: Path
    tracker: Tracker | None  # in the first process
    stop: StopRequest
    components: TrainingComponents
    val_batches: DataLoader

    def __post_init__(self) -> None:
        self.means = Means()
        self.last_images: list[str] = []
        self.best = -math.inf
        self.final: dict[str, float] = {}  # the main metric of the last evaluation
        self.evaluated = 0  # iteration of the last evaluation
        self.stopping = 0  # the signal that asked for it
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        self.logged = 0  # iteration of the last logging
        self.label_counts = torch.zeros(len(self.components.classes) + 1, dtype=torch.int64)  # since then
        settings = self.config["train"]
        self.collapse = CollapseDetector(collapse_window(settings["iterations"]))
        self.divergence = DivergenceDetector()
        if self.tracker is not None:
            text = yaml.safe_dump(self.config, sort_keys=False)
            write_atomically(self.folder / "config.yaml", text.encode())
            self.tracker.text("config", text)

    def resume(self, checkpoint: dict) -> None:
        """Go on where the checkpoint was written, perhaps before or during an evaluation."""
        self.evaluated = checkpoint["evaluated"]
        self.logged = checkpoint["iteration"]
        if self.tracker is not None:
            self.best = self.checkpoints.best_score()  # not the checkpoint's: see promote_checkpoint
        if checkpoint["processes"] != rank_info().world_size:
            logger.warning(
                "%d processes instead of %d: the same images at each step, but not the same bits",
                rank_info().world_size, checkpoint["processes"],
            )  # fmt: skip
        if (versions := checkpoint.get("versions", VERSIONS)) != VERSIONS:
            logger.warning("begun with %s, going on with %s: not the same bits", versions, VERSIONS)
        logger.info("going on after iteration %d", checkpoint["iteration"])
        if lacks_evaluation(checkpoint, self.config["train"]):
            self.keep(checkpoint["iteration"], evaluate=True, save=True)

    def after_step(self, step: Step, progress: tqdm) -> None:
        """Log, evaluate and save what is due; raise Stopped where a signal asks to end, once the step is saved."""
        iteration, self.stopping = step.iteration, self.stop.agreed()
        due = {name: is_due(name, iteration, self.config["train"]) for name in ("log", "eval", "checkpoint")}
        self.last_images[:] = step.batch.image_ids
        if self.components.averaged is not None:
            self.components.averaged.update_parameters(self.components.model)
        if self.tracker is not None:
            self.means.add(step.values)
            self.label_counts += step.targets.labels.bincount(minlength=len(self.label_counts))
            self.watch_gradient(iteration, step.values["train/grad_norm"])
            if iteration == 1:
                self.tracker.image(iteration, "train/rois", draw_batch(step.batch, step.targets))
            if any(due.values()) or self.stopping:
                self.log(self.tracker, step, progress)
        self.keep(iteration, due["eval"] and not self.stopping, due["checkpoint"] or bool(self.stopping))
        if self.stopping:
            raise Stopped(self.stopping)

    def log(self, tracker: Tracker, step: Step, progress: tqdm) -> None:
        """Means since the last logging, to TensorBoard, metrics.jsonl and the screen."""
        values = self.means.take() | {"memory/peak_mib": peak_memory_mib(self.components.compute.device)}
        values["train/collapsed"] = float(self.watch_for_collapse(step.iteration, values))
        tracker.scalars(step.iteration, values)
        progress.set_postfix(loss=f"{values['train/loss']:.3f}")
        if progress.disable:  # no terminal
            of, seconds = self.config["train"]["iterations"], values["time/step_s"]
            logger.info(
                "iteration %d of %d: loss %.3f, %.2f s a step", step.iteration, of, values["train/loss"], seconds
            )

    def watch_for_collapse(self, iteration: int, values: dict[str, float]) -> bool:
        """Warn once where the network has collapsed to label frequencies; whether it has, by the values logged."""
        before = self.collapse.since
        counts, self.label_counts = self.label_counts, torch.zeros_like(self.label_counts)
        first, self.logged = self.logged + 1, iteration
        if first <= self.config["schedule"].get("warmup_iterations", 0):
            return False
        collapsed = self.collapse.add(
            first, iteration, values["roi/foreground_accuracy"], values["train/loss_cls"], counts
        )
        if collapsed and before is None:
            logger.warning("iteration %d: %s", iteration, self.collapse_message())
        return collapsed

    def collapse_message(self) -> str:
        """What the collapse means, and what helps."""
        rate, warmup = self.components.optimizer.defaults["lr"], self.config["schedule"].get("warmup_iterations", 0)
        return (
            f"the network has collapsed: since iteration {self.collapse.since} it takes (almost) every foreground RoI "
            f"for background, and detects nothing. A lower optimizer.lr (now {rate:g}) or a longer "
            f"schedule.warmup_iterations (now {warmup}) helps most often"
        )

    def watch_gradient(self, iteration: int, grad_norm: Tensor | float) -> None:
        """Warn where training diverges."""
        usual = self.divergence.add(float(grad_norm))
        if usual is not None:
            logger.warning(
                "iteration %d: training diverges: the norm of the gradient is %.3g, where %.3g is usual in this run. A "
                "lower optimizer.lr or an optimizer.max_grad_norm helps most often", iteration, grad_norm, usual,
            )  # fmt: skip

    def keep(self, iteration: int, evaluate: bool, save: bool) -> None:
        """Evaluate, write a checkpoint; whatever ends an evaluation, the steps before it are not lost."""
        try:
            if evaluate:
                self.evaluate(iteration)
        except Stopped as stopped:
            self.stopping = stopped.signal  # so that the checkpoint is the last one: failing to write it is an error
            self.save(iteration)
            raise
        except BaseException:
            self.save(iteration)
            raise
        if save:
            self.save(iteration)
        if evaluate or save:
            barrier()

    def evaluate(self, iteration: int) -> None:
        """Detect on all validation images, in all processes; the first one reports."""
        components, model = self.components, self.components.evaluated_model
        broadcast_buffers(model)
        batches = self.stop.cut_short(self.val_batches)
        detections, losses = evaluate(
            model, batches, components.detector, components.compute, components.training.sample_targets, multi_task_loss
        )
        if self.tracker is not None:
            with self.checkpoints.tolerate_write_errors(
                f"the evaluation of iteration {iteration}", self.is_last(iteration)
            ):
                self.report(self.tracker, iteration, detections, losses)
                self.evaluated = iteration

    def report(self, tracker: Tracker, iteration: int, detections: list[Detections], losses: dict[str, float]) -> None:
        """Score the detections (P_i of each validation image, original frame); the best so far get best.pt."""
        detections = round_trip_results(
            self.folder / "detections", detections, self.components.classes, self.config["metric"]["devkit"]
        )
        reader = self.components.val_samples.reader
        truths = [reader.ground_truth(index) for index in range(len(reader))]
        source = {"iteration": iteration, "data": reader.name, "images": len(reader)}
        image = reader.image if iteration == self.config["train"]["iterations"] else None  # report.html at the end
        metrics = write_report(
            self.folder, truths, detections, self.components.classes, **self.config["metric"], losses=losses,
            source=source, image=image,
        )  # fmt: skip
        logger.info("evaluation at iteration %d\n%s", iteration, ap_table(metrics))
        tracker.metrics(iteration, metrics)
        for index in range(0, len(reader), max(len(reader) // NUM_PICTURES, 1))[:NUM_PICTURES]:
            picture = draw_detections(reader.image(index), truths[index], detections[index], self.components.classes)
            tracker.image(iteration, f"val/{truths[index].image_id}", picture)
        name, score = metrics["main"]["metric"], metrics["main"]["value"]
        self.final = {} if score is None else {f"hparam/mAP_{tag_of(name)}": score}
        if score is None or score > self.best:  # without a single object to find, the latest is the best
            before, self.best = self.best, -math.inf if score is None else score
            self.save(iteration, best=True)
            if self.checkpoints.failed:
                self.best = before  # there is no such file, so the next one that is better than the old becomes it

    def save(self, iteration: int, best: bool = False) -> None:
        """Write last.pt or best.pt: all that a run needs to go on as if it had not been ended."""
        if self.tracker is None:
            return
        self.tracker.flush()
        content = {
            "model": self.components.evaluated_model.state_dict(),
            "optimizer": self.components.optimizer.state_dict()["state"],  # rates and the like are settings
            "config": self.config,
            "classes": list(self.components.classes),
            "iteration": iteration,
            "evaluated": self.evaluated,
            "best": self.best,
            "fingerprints": self.components.fingerprints,
            "processes": rank_info().world_size,
            "versions": VERSIONS,
        }
        if self.components.averaged is not None:
            content["raw_model"] = self.components.model.state_dict()  # which training continues from
        (self.checkpoints.save_best if best else self.checkpoints.save_last)(content, self.is_last(iteration))

    def is_last(self, iteration: int) -> bool:
        """Whether no later checkpoint will make up for one that fails."""
        return bool(self.stopping) or iteration == self.config["train"]["iterations"]

    def finish(self) -> None:
        """Note what the run came to, and say where it lies."""
        if self.tracker is None:
            return
        self.tracker.hyperparameters(flatten(self.config), self.final)
        if self.collapse.since is not None:
            logger.warning("%s", self.collapse_message())
        logger.info("done: %s; to look at it: tensorboard --logdir %s", self.folder, self.folder.parent)


def collapse_window(iterations: int) -> int:
    """How many iterations without a foreground RoI classified correctly count as a collapse in a run so long."""
    return min(max(iterations // 10, 50), 500)


def is_due(what: str, iteration: int, settings: dict) -> bool:
    """Whether `log`, `eval` or `checkpoint` comes after this iteration."""
    return iteration == settings["iterations"] or iteration % settings[f"{what}_every"] == 0


def lacks_evaluation(checkpoint: dict, settings: dict) -> bool:
    """Whether the run was stopped before the evaluation that is due at the checkpoint was done."""
    return is_due("eval", checkpoint["iteration"], settings) and checkpoint["evaluated"] < checkpoint["iteration"]
