"""Train a Fast R-CNN: python train.py [GROUP=CHOICE] [KEY=VALUE ...]; configs/train.yaml lists the settings."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from detector import compose
from detector.checkpoint import Checkpoints, load_state, load_to_resume
from detector.cli import log_to_file, run_program
from detector.config import flatten, validate_training
from detector.data.fingerprint import fingerprints
from detector.data.loader import Samples, TrainOrder, eval_loader, explain_workers, train_loader
from detector.device import Compute, peak_memory_mib
from detector.distributed import (
    from_main,
    is_main,
    place,
    process_group,
    share_buffers,
    share_gradients,
    shared_errors,
    wait,
)
from detector.engine import Recipe, Step, evaluate, training_steps
from detector.errors import InputError
from detector.evaluation.report import write_report
from detector.evaluation.results import through_files
from detector.evaluation.tables import ap_table
from detector.files import write_atomically
from detector.models import FastRCNN
from detector.models.weights import load_weights
from detector.resume import check_same_run, clean_up, find_run
from detector.run_folder import FolderLock, make_run_folder, require_writable
from detector.signals import Stopped, StopRequest
from detector.structures import Detections
from detector.tracking import Means, Tracker, tag_of
from detector.visualize import draw_batch, draw_detections

logger = logging.getLogger("train")

NUM_PICTURES = 8  # of validation images in TensorBoard, the same ones at every evaluation


def main(config: dict) -> None:
    validate_training(config, place().world_size)
    with process_group(config["distributed"]["timeout_s"]), FolderLock() as lock:
        train(config, lock)


def train(config: dict, lock: FolderLock) -> None:
    settings, seed, here = config["train"], config["seed"], place()
    folder, resumed = from_main(lambda: find_run(config["resume"], config["run"]["dir"], lock))
    if folder is not None:
        log_to_file(folder / "train.log")
    with shared_errors():
        checkpoint = load_to_resume(resumed) if resumed else None
        start = checkpoint["iteration"] if checkpoint else 0
        if start >= settings["iterations"] and not lacks_evaluation(checkpoint, settings):
            logger.info("already complete: %d of %d iterations in %s", start, settings["iterations"], resumed)
            return
        require_writable("proposals.folder", Path(config["proposals"]["folder"]))
        compute, recipe = compose.make_compute(config), compose.make_recipe(config)

        train_set, val_set = compose.make_reader(config, "train"), compose.make_reader(config, "val")
        classes = compose.choose_classes(config, train_set, val_set)
        if not classes:
            raise InputError("there is no object in any annotation to learn from: is it the right data.train_split?")
        for name in sorted({*classes} - {*train_set.classes}):
            logger.warning("no object of class %s to train on", name)
        train_set, val_set = train_set.with_classes(classes), val_set.with_classes(classes)

        torch.manual_seed(seed)  # of the initial weights
        model = compose.make_model(config, len(classes))
        if config["model"]["weights"] is not None and checkpoint is None:
            load_weights(model, config["model"]["backbone"], config["model"]["weights"])
        compute.place(model)
        optimizer, schedule = compose.make_optimizer(config, model)
        config["optimizer"]["lr"] = optimizer.defaults["lr"]  # what null came to

        train_samples = compose.make_samples(config, train_set, "train")
        val_samples = compose.make_samples(config, val_set, "val")
        made_of = fingerprints("training", train_set, train_samples.proposals)
        made_of |= fingerprints("validation", val_set, val_samples.proposals)
        if checkpoint is not None:
            check_same_run(checkpoint, config, classes, made_of)
            load_state(checkpoint, model, optimizer)
    share = (here.rank, here.world_size)
    order = TrainOrder(len(train_set), settings["images_per_batch"], settings["iterations"], seed, start, *share)
    train_batches = train_loader(train_samples, order, config["workers"])
    val_batches = eval_loader(val_samples, config["workers"], *share)

    if folder is None:
        folder = from_main(lambda: lock.take(make_run_folder(config["run"]["dir"])))
        log_to_file(folder / "train.log")
    logger.info("%d images to train on, %d to validate, classes: %s", len(train_set), len(val_set), ", ".join(classes))
    logger.info("on %s in %s, learning rate %g -> %s", compute.device, compute.dtype, optimizer.defaults["lr"], folder)
    if is_main():
        clean_up(folder, start)
    tracker = Tracker(folder, start) if is_main() else None
    progress = tqdm(total=settings["iterations"], initial=start, unit="step", disable=None if is_main() else True)
    with StopRequest() as stop, logging_redirect_tqdm(), progress:
        run = Run(
            config, folder, tracker, stop, classes, made_of, model, optimizer, recipe, compute, val_samples, val_batches
        )
        with explain_workers(run.last_images):
            if checkpoint is not None:
                run.take_up(checkpoint)
            learner = share_gradients(model, compute.device)
            for step in training_steps(learner, train_batches, optimizer, schedule, recipe, compute, start):
                progress.update()
                run.after_step(step, progress)
    run.finish()


@dataclass
class Run:
    """What happens between the steps: logging, evaluation, checkpoints. Of several processes the first one writes."""

    config: dict
    folder: Path
    tracker: Tracker | None  # in the first process
    stop: StopRequest
    classes: tuple[str, ...]
    made_of: dict[str, str]  # fingerprints of data and proposals
    model: FastRCNN
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    compute: Compute
    val_samples: Samples
    val_batches: DataLoader

    def __post_init__(self) -> None:
        self.means = Means()
        self.last_images: list[str] = []
        self.best, self.score = -math.inf, None
        self.evaluated = 0  # iteration of the last evaluation
        self.stopping = 0  # the signal that asked for it
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        if self.tracker is not None:
            text = yaml.safe_dump(self.config, sort_keys=False)
            write_atomically(self.folder / "config.yaml", text.encode())
            self.tracker.text("config", text)

    def take_up(self, checkpoint: dict) -> None:
        """Go on where the checkpoint was written, perhaps before or during an evaluation."""
        self.best, self.evaluated = checkpoint["best"], checkpoint["evaluated"]
        if checkpoint["processes"] != place().world_size:
            logger.warning(
                "%d processes instead of %d: the same images at each step, but not the same bits",
                place().world_size, checkpoint["processes"],
            )  # fmt: skip
        logger.info("going on after iteration %d", checkpoint["iteration"])
        if lacks_evaluation(checkpoint, self.config["train"]):
            self.keep(checkpoint["iteration"], evaluate=True, save=True)

    def after_step(self, step: Step, progress: tqdm) -> None:
        iteration, self.stopping = step.iteration, self.stop.agreed()
        due = {name: is_due(name, iteration, self.config["train"]) for name in ("log", "eval", "checkpoint")}
        self.last_images[:] = step.batch.image_ids
        if self.tracker is not None:
            self.means.add(step.values)
            if iteration == 1:
                self.tracker.image(iteration, "train/rois", draw_batch(step.batch, step.targets))
            if any(due.values()) or self.stopping:
                self.log(step, progress)
        self.keep(iteration, due["eval"] and not self.stopping, due["checkpoint"] or self.stopping)
        if self.stopping:
            raise Stopped(self.stopping)

    def log(self, step: Step, progress: tqdm) -> None:
        values = self.means.take() | {"memory/peak_mib": peak_memory_mib(self.compute.device)}
        self.tracker.scalars(step.iteration, values)
        progress.set_postfix(loss=f"{values['train/loss']:.3f}")
        if progress.disable:  # no terminal
            of, seconds = self.config["train"]["iterations"], values["time/step_s"]
            logger.info(
                "iteration %d of %d: loss %.3f, %.2f s a step", step.iteration, of, values["train/loss"], seconds
            )

    def keep(self, iteration: int, evaluate: bool, save: bool) -> None:
        """Evaluate, write a checkpoint; whatever ends an evaluation, the steps before it are not lost."""
        try:
            if evaluate:
                self.evaluate(iteration)
        except BaseException:
            self.save(iteration)
            raise
        if save:
            self.save(iteration)
        if evaluate or save:
            wait()

    def evaluate(self, iteration: int) -> None:
        share_buffers(self.model)
        batches = self.stop.cut_short(self.val_batches)
        detections, losses = evaluate(self.model, batches, self.recipe, self.compute)
        if self.tracker is not None:
            self.report(iteration, detections, losses)
        self.evaluated = iteration

    def report(self, iteration: int, detections: list[Detections], losses: dict[str, float]) -> None:
        detections = through_files(
            self.folder / "detections", detections, self.classes, self.config["metric"]["devkit"]
        )
        reader = self.val_samples.reader
        truths = [reader.ground_truth(index) for index in range(len(reader))]
        source = {"iteration": iteration, "data": reader.name, "images": len(reader)}
        image = reader.image if iteration == self.config["train"]["iterations"] else None  # report.html at the end
        metrics = write_report(
            self.folder, truths, detections, self.classes, **self.config["metric"], losses=losses, source=source,
            image=image,
        )  # fmt: skip
        logger.info("evaluation at iteration %d\n%s", iteration, ap_table(metrics))
        self.tracker.metrics(iteration, metrics)
        for index in range(0, len(reader), max(len(reader) // NUM_PICTURES, 1))[:NUM_PICTURES]:
            picture = draw_detections(reader.image(index), truths[index], detections[index], self.classes)
            self.tracker.image(iteration, f"val/{truths[index].image_id}", picture)
        self.main_metric, self.score = metrics["main"]["metric"], metrics["main"]["value"]
        if self.score is None or self.score > self.best:  # without a single object to find, the latest is the best
            self.best = self.score or -math.inf
            self.save(iteration, best=True)

    def save(self, iteration: int, best: bool = False) -> None:
        if self.tracker is None:
            return
        self.tracker.flush()
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],  # rates and the like are settings
            "config": self.config,
            "classes": list(self.classes),
            "iteration": iteration,
            "evaluated": self.evaluated,
            "best": self.best,
            "made_of": self.made_of,
            "processes": place().world_size,
        }
        final = bool(self.stopping) or iteration == self.config["train"]["iterations"]
        (self.checkpoints.save_best if best else self.checkpoints.save_last)(content, final)

    def finish(self) -> None:
        if self.tracker is None:
            return
        final = {} if self.score is None else {f"hparam/mAP_{tag_of(self.main_metric)}": self.score}
        self.tracker.hyperparameters(flatten(self.config), final)
        self.tracker.close()
        logger.info("done: %s; to look at it: tensorboard --logdir %s", self.folder, self.folder.parent)


def is_due(what: str, iteration: int, settings: dict) -> bool:
    """Whether `log`, `eval` or `checkpoint` comes after this iteration."""
    return iteration == settings["iterations"] or iteration % settings[f"{what}_every"] == 0


def lacks_evaluation(checkpoint: dict, settings: dict) -> bool:
    """Whether the run was stopped before the evaluation that is due at the checkpoint was done."""
    return is_due("eval", checkpoint["iteration"], settings) and checkpoint["evaluated"] < checkpoint["iteration"]


if __name__ == "__main__":
    run_program(main, "train")
