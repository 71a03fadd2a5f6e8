"""The work of a run around its steps: logging, evaluation and checkpoints."""

import json
import logging
import math
import multiprocessing
from contextlib import ExitStack, closing
from functools import cached_property

import torch
import torchvision
import yaml
from tqdm import tqdm

from detector.data.image import read_image_hw
from detector.data.loader import TrainBatchSampler, batch_loader, eval_loader, explain_workers
from detector.errors import Stopped
from detector.evaluation.recall import score_recall
from detector.evaluation.report import Scores, score_detections, write_report
from detector.evaluation.results import round_trip_results
from detector.evaluation.tables import ap_table, tag_of
from detector.inference.embedding import embed_objects
from detector.inference.predict import evaluate
from detector.runtime.device import peak_memory_mib
from detector.runtime.distributed import barrier, broadcast_buffers, broadcast_from_main, wrap_ddp
from detector.runtime.files import write_atomically
from detector.runtime.ranks import is_main, rank_info
from detector.runtime.signals import StopRequest
from detector.schema import flatten
from detector.settings import TrainSettings
from detector.structures import Detections
from detector.training.checkpoint import Checkpoints
from detector.training.diagnostics import CollapseDetector, DivergenceDetector, label_entropy
from detector.training.engine import CompletedStep, TrainingComponents, training_steps
from detector.training.resume import Run, is_due, is_out_of_patience, lacks_evaluation
from detector.training.tracking import Means, Tracker
from detector.visualization.confusion import draw_confusion
from detector.visualization.drawing import draw_detections
from detector.visualization.sampling import draw_sampled_rois, roi_ious
from detector.visualization.style import pixels

logger = logging.getLogger(__name__)

VERSIONS = {"torch": str(torch.__version__), "torchvision": str(torchvision.__version__)}
NUM_PICTURES = 8  # of validation images in TensorBoard, the same at every evaluation


class Trainer:
    """Training with logging, evaluation and checkpoints. With several processes, only the first one writes."""

    def __init__(self, settings: TrainSettings, run: Run, components: TrainingComponents) -> None:
        assert run.folder is not None
        self.settings, self.components, self.checkpoint, self.start = settings, components, run.checkpoint, run.start
        self.folder = run.folder
        self.tracker: Tracker | None = None  # in the first process, during `fit`
        self.stop = StopRequest()
        self.progress = tqdm(disable=True)  # shown during `fit`
        self.means = Means()
        self.last_images: list[str] = []
        self.best, self.best_at = -math.inf, 0  # score and iteration of best.pt
        self.score: float | None = None  # the main metric of the last evaluation
        self.final: list[str] = []  # its TensorBoard tag
        self.evaluated = 0  # iteration of the last evaluation
        self.stopping = 0  # the signal that requested it
        self.unsaved = 0  # the last iteration, unless it is in last.pt
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        self.label_counts = torch.zeros(len(components.classes) + 1, dtype=torch.int64)  # since the last logging
        self.warmup = settings.schedule.warmup_iterations
        self.collapse = CollapseDetector(collapse_window(settings.train.iterations), self.warmup)
        self.divergence = DivergenceDetector()
        share = (rank_info().rank, rank_info().world_size)
        train = settings.train
        batches = TrainBatchSampler(components.train_order, train.images_per_batch, train.iterations, run.start, *share)
        pin = components.compute.device.type == "cuda"
        self.train_batches = batch_loader(
            components.train_samples, batches, settings.workers, components.training.collate_with_rois, pin
        )
        self.val_batches = eval_loader(components.val_samples, settings.workers, *share)

    def fit(self) -> float | None:
        """Train to the last iteration. Returns the main metric of the last evaluation."""
        parts = self.components
        logger.info(
            "%d images to train on, %d to validate, classes: %s",
            len(parts.train_samples.dataset), len(parts.val_samples.dataset), ", ".join(parts.classes),
        )  # fmt: skip
        on, rate = parts.compute, self.settings.optimizer.lr
        logger.info("on %s in %s, learning rate %g -> %s", on.device, on.dtype, rate, self.folder)
        with ExitStack() as stack:
            if is_main():
                self.tracker = stack.enter_context(closing(Tracker(self.folder, self.start)))
                self.write_settings(self.tracker)
            stack.enter_context(self.stop)
            total, hidden = self.settings.train.iterations, None if is_main() else True
            self.progress = stack.enter_context(tqdm(total=total, initial=self.start, unit="step", disable=hidden))
            stack.enter_context(explain_workers(self.last_images))
            if self.checkpoint is not None:
                self.resume(self.checkpoint)
            learner = wrap_ddp(parts.model, parts.compute.device)
            batches = self.stop.interruptible(self.train_batches)
            steps = training_steps(
                learner, batches, parts.optimizer, parts.schedule, parts.training, parts.compute, self.start
            )
            try:
                for step in steps if not self.is_out_of_patience(self.start) else ():
                    self.progress.update()
                    self.after_step(step)
                    if self.is_out_of_patience(step.iteration):
                        self.keep(step.iteration, evaluate=False, save=True)
                        break
            except Stopped as stopped:
                self.save_unsaved(stopped.signal)
                if (self.checkpoints.folder / "last.pt").exists():
                    logger.info("to continue this run: resume=%s", self.folder)
                raise
            self.finish()
        return self.score

    def write_settings(self, tracker: Tracker) -> None:
        """Write the settings to config.yaml and TensorBoard, and the image ids to split.json."""
        text = yaml.safe_dump(self.settings.plain(), sort_keys=False)
        write_atomically(self.folder / "config.yaml", text.encode())
        tracker.text("config", text)
        parts = {"train": self.components.train_samples.dataset, "val": self.components.val_samples.dataset}
        ids = json.dumps({part: dataset.image_ids for part, dataset in parts.items()}, indent=0)
        write_atomically(self.folder / "split.json", ids.encode())

    def resume(self, checkpoint: dict) -> None:
        """Resume where the checkpoint was written, possibly before or during an evaluation."""
        self.evaluated = checkpoint["evaluated"]
        if self.tracker is not None:
            for line in self.tracker.history():
                if "loss/train_cls" in line:
                    self.collapse.add(line["iteration"], line)
            self.best, self.best_at = self.checkpoints.best()  # of best.pt: see promote_checkpoint
        # Without a best.pt, as after the run went back before it, patience counts from here.
        self.best_at = broadcast_from_main(lambda: self.best_at or checkpoint["iteration"])
        if checkpoint["processes"] != rank_info().world_size:
            logger.warning(
                "%d processes instead of %d: the same images at each step, but results are not bitwise identical",
                rank_info().world_size, checkpoint["processes"],
            )  # fmt: skip
        if (versions := checkpoint.get("versions", VERSIONS)) != VERSIONS:
            logger.warning("started with %s, resuming with %s: results are not bitwise identical", versions, VERSIONS)
        logger.info("resuming after iteration %d", checkpoint["iteration"])
        if lacks_evaluation(checkpoint, self.settings.train):
            self.keep(checkpoint["iteration"], evaluate=True, save=True)

    def after_step(self, step: CompletedStep) -> None:
        """Log, evaluate and save as due; on a signal to stop, save the step and raise Stopped."""
        iteration, self.stopping = step.iteration, self.stop.agreed()
        due = {name: is_due(name, iteration, self.settings.train) for name in ("log", "eval", "checkpoint")}
        self.last_images[:] = step.batch.image_ids
        if self.components.averaged is not None:
            self.components.averaged.update_parameters(self.components.model)
        if self.tracker is not None:
            self.means.add(step.values)
            self.label_counts += step.batch.targets.labels.bincount(minlength=len(self.label_counts))
            self.watch_gradient(iteration, float(step.values["train/grad_norm"]))
            if iteration == 1 or due["eval"]:
                self.log_rois(self.tracker, step)
            if any(due.values()) or self.stopping:
                self.log(self.tracker, iteration)
        self.unsaved = iteration
        self.keep(iteration, due["eval"] and not self.stopping, due["checkpoint"] or bool(self.stopping))
        if self.stopping:
            raise Stopped(self.stopping)

    def save_unsaved(self, stopping: int) -> None:
        """Log and save the last step of a run that is stopped while the next batch is loaded."""
        self.stopping = stopping
        if self.unsaved and self.tracker is not None:
            if self.means.steps:
                self.log(self.tracker, self.unsaved)
            self.save(self.unsaved)
        for worker in multiprocessing.active_children():  # else the process waits for the images that they read
            worker.terminate()

    def log(self, tracker: Tracker, iteration: int) -> None:
        """Log means since the last logging to TensorBoard, metrics.jsonl and the terminal."""
        values = self.means.take() | {"memory/peak_mib": peak_memory_mib(self.components.compute.device)}
        values["roi/label_entropy"] = label_entropy(self.label_counts)
        self.label_counts.zero_()
        values["time/images_per_s"] = self.settings.train.images_per_batch / values["time/step_s"]
        values["train/collapsed"] = float(self.watch_for_collapse(iteration, values))
        tracker.scalars(iteration, values)
        self.progress.set_postfix(loss=f"{values['loss/train']:.3f}")
        if self.progress.disable:  # no terminal
            of, seconds = self.settings.train.iterations, values["time/step_s"]
            logger.info("iteration %d of %d: loss %.3f, %.2f s per step", iteration, of, values["loss/train"], seconds)

    def log_rois(self, tracker: Tracker, step: CompletedStep) -> None:
        """Log pictures of the sampled RoIs of this step, and the distribution of their IoU with the objects."""
        coder, classes = self.components.detector.coder, self.components.classes
        tracker.image(step.iteration, "train/rois", pixels(draw_sampled_rois(step.batch, coder, classes)[0]))
        tracker.histogram(step.iteration, "roi/iou", roi_ious(step.batch))

    def watch_for_collapse(self, iteration: int, values: dict[str, float]) -> bool:
        """Warn at the first collapse of the run, and log the end of each. Returns whether the network has collapsed."""
        before, first = self.collapse.since, self.collapse.first
        collapsed = self.collapse.add(iteration, values)
        if collapsed and first is None:
            logger.warning("iteration %d: %s", iteration, self.collapse_message())
            if self.tracker is not None:
                self.tracker.text("collapse", self.collapse_message())
        if before is not None and not collapsed:
            logger.info("iteration %d: the network has recovered from its collapse", iteration)
        return collapsed

    def collapse_message(self) -> str:
        """The meaning of the collapse, and its remedies."""
        return (
            f"the network has collapsed: since iteration {self.collapse.since} it classifies (almost) every foreground "
            f"RoI as background, and detects nothing. {self.remedies()}"
        )

    def remedies(self) -> str:
        """The two settings that help most against collapse and divergence."""
        return (
            f"A lower optimizer.lr (now {self.settings.optimizer.lr:g}) or a longer schedule.warmup_iterations (now "
            f"{self.warmup}) usually helps"
        )

    def watch_gradient(self, iteration: int, grad_norm: float) -> None:
        """Warn if training diverges."""
        usual = self.divergence.add(grad_norm)
        if usual is not None:
            logger.warning(
                "iteration %d: training diverges: the norm of the gradient is %.3g, where %.3g is usual in this run. "
                "%s", iteration, grad_norm, usual, self.remedies(),
            )  # fmt: skip

    def keep(self, iteration: int, evaluate: bool, save: bool) -> None:
        """Evaluate and write a checkpoint; a checkpoint is also written if the evaluation is stopped or fails."""
        try:
            if evaluate:
                self.evaluate(iteration)
        except Stopped as stopped:
            self.stopping = stopped.signal  # makes this checkpoint the final one: failing to write it is an error
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
        """Detect on all validation images, in all processes; the first one writes the report."""
        components, model = self.components, self.components.evaluated_model
        broadcast_buffers(model)
        batches = self.stop.cut_short(self.val_batches)
        training = components.training
        detections, losses = evaluate(
            model, batches, components.detector, components.compute, training.sample_targets, training.loss_of
        )
        if self.tracker is not None:
            with self.checkpoints.tolerate_write_errors(
                f"the evaluation of iteration {iteration}", self.is_last(iteration)
            ):
                self.report(self.tracker, iteration, detections, losses)
                self.evaluated = iteration
        self.best_at = broadcast_from_main(lambda: self.best_at)

    def report(self, tracker: Tracker, iteration: int, detections: list[Detections], losses: dict[str, float]) -> None:
        """Score the detections of each validation image (original frame); the best so far are saved as best.pt."""
        dataset = self.components.val_samples.dataset
        detections = round_trip_results(
            self.folder / "detections", detections, dataset.classes, self.settings.metric.devkit
        )
        origin: dict[str, dict] = {"loss": losses, "source": {"iteration": iteration}}
        # If this score is the best so far, the run goes on in spite of its patience, and writes the page again at the
        # end.
        scores = score_detections(dataset, detections, self.settings.metric)
        metrics = write_report(self.folder, dataset, scores, origin, page=self.is_last(iteration))
        logger.info("evaluation at iteration %d\n%s", iteration, ap_table(metrics))
        tracker.metrics(iteration, metrics, self.proposal_recall)
        self.log_curves(tracker, iteration, scores)
        for index in range(0, len(dataset), max(len(dataset) // NUM_PICTURES, 1))[:NUM_PICTURES]:
            truth = dataset.ground_truth(index)
            picture = draw_detections(dataset.image(index), truth, detections[index], dataset.classes)
            tracker.image(iteration, f"val/{truth.image_id}", picture)
        name, score = metrics["main"]["metric"], metrics["main"]["value"]
        self.score = score
        self.final = [] if score is None else [f"mAP/{tag_of(name)}"]
        if score is None or score > self.best:  # without any object, the latest checkpoint is the best
            before = self.best, self.best_at
            self.best, self.best_at = -math.inf if score is None else score, iteration
            self.save(iteration, best=True)
            if self.checkpoints.failed:
                self.best, self.best_at = before  # not written, so the next better than the old one replaces it

    @cached_property
    def proposal_recall(self) -> dict:
        """The recall of the proposals that are used of the validation images, as `score_recall` returns it."""
        samples = self.components.val_samples
        dataset = samples.dataset
        truths = (dataset.ground_truth(index) for index in range(len(dataset)))
        image_hws = (read_image_hw(dataset.image_path(index), dataset.image_options) for index in range(len(dataset)))
        proposals = (samples.boxes(index, image_hw)[2] for index, image_hw in enumerate(image_hws))
        return score_recall(truths, proposals, dataset.classes)

    def log_curves(self, tracker: Tracker, iteration: int, scores: Scores) -> None:
        """Log precision-recall curves and the confusion matrix, at the first IoU threshold."""
        for name, count in zip(self.components.classes, scores.counts, strict=True):
            if count.num_objects:
                tracker.pr_curve(iteration, f"val/{name}", count)
        tracker.image(iteration, "val/confusion", pixels(draw_confusion(scores.confusion, self.components.classes)))

    def save(self, iteration: int, best: bool = False) -> None:
        """Write last.pt or best.pt, with everything needed to resume exactly."""
        if self.tracker is None:
            return
        self.tracker.flush()
        content = {
            "model": self.components.evaluated_model.state_dict(),
            "optimizer": self.components.optimizer.state_dict()["state"],  # learning rates are settings
            "config": self.settings.plain(),
            "classes": list(self.components.classes),
            "iteration": iteration,
            "evaluated": self.evaluated,
            "best": self.best,
            "best_at": self.best_at,
            "fingerprints": self.components.fingerprints,
            "processes": rank_info().world_size,
            "versions": VERSIONS,
            "scaler": self.components.training.scaler.state_dict(),  # empty except in float16
        }
        if self.components.averaged is not None:
            content["raw_model"] = self.components.model.state_dict()  # training resumes from this
        (self.checkpoints.save_best if best else self.checkpoints.save_last)(content, self.is_last(iteration))
        if not best and not self.checkpoints.failed:
            self.unsaved = 0

    def is_last(self, iteration: int) -> bool:
        """Whether this checkpoint is the final one of the run."""
        return bool(self.stopping) or iteration == self.settings.train.iterations or self.is_out_of_patience(iteration)

    def is_out_of_patience(self, iteration: int) -> bool:
        """Whether the run ends after this iteration because evaluations no longer improve."""
        return is_out_of_patience(self.settings.train, iteration, self.best_at)

    def finish(self) -> None:
        """Log the final metrics and the run's folder."""
        if self.tracker is None:
            return
        if self.is_out_of_patience(self.evaluated) and self.evaluated < self.settings.train.iterations:
            logger.info(
                "ended early: no evaluation since iteration %d is better (train.patience=%d)",
                self.best_at, self.settings.train.patience,
            )  # fmt: skip
        self.tracker.hyperparameters(flatten(self.settings), self.final)
        components = self.components
        objects = embed_objects(components.evaluated_model, components.val_samples, components.compute)
        self.tracker.embedding(self.evaluated, objects, components.classes)
        if self.collapse.since is not None:
            logger.warning("%s", self.collapse_message())
        elif self.collapse.first is not None:
            logger.warning("the network collapsed at iteration %d, and recovered later", self.collapse.first)
        logger.info("done: %s; to view it: tensorboard --logdir %s", self.folder, self.folder.parent)


def collapse_window(iterations: int) -> int:
    """The number of iterations without a correctly classified foreground RoI that counts as a collapse."""
    return min(max(iterations // 10, 50), 500)
