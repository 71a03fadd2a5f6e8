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
from detector.checkpoint import save_checkpoint
from detector.cli import log_to_file, run_program
from detector.config import flatten, validate
from detector.data.check import warn_of_overlap
from detector.data.loader import Samples, TrainOrder, eval_loader, train_loader
from detector.device import Compute
from detector.engine import Recipe, Step, evaluate, training_steps
from detector.errors import InputError
from detector.evaluation.report import write_report
from detector.evaluation.results import through_files
from detector.evaluation.tables import ap_table
from detector.models import FastRCNN
from detector.models.weights import load_weights
from detector.run_folder import check_run_folder, make_run_folder, require_writable
from detector.tracking import Means, Tracker, peak_memory_mib
from detector.visualize import draw_batch, draw_detections

logger = logging.getLogger("train")

NUM_PICTURES = 8  # of validation images in TensorBoard, the same ones at every evaluation


def main(config: dict) -> None:
    validate(config)
    check_run_folder(config["run"]["dir"])
    require_writable("proposals.folder", Path(config["proposals"]["folder"]))
    settings, seed = config["train"], config["seed"]
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
    if config["model"]["weights"] is not None:
        load_weights(model, config["model"]["backbone"], config["model"]["weights"])
    compute.place(model)
    optimizer, schedule = compose.make_optimizer(config, model)
    config["optimizer"]["lr"] = optimizer.defaults["lr"]  # what null came to

    train_checked, val_checked = compose.check(config, train_set, "train"), compose.check(config, val_set, "val")
    warn_of_overlap(train_checked, val_checked)
    train_set = train_checked.reader  # without what cannot be used
    train_samples = compose.make_samples(config, train_checked, "train")
    val_samples = compose.make_samples(config, val_checked, "val")
    order = TrainOrder(len(train_set), settings["images_per_batch"], settings["iterations"], seed)
    train_batches = train_loader(train_samples, order, config["workers"])
    val_batches = eval_loader(val_samples, config["workers"])

    folder = make_run_folder(config["run"]["dir"])
    log_to_file(folder / "train.log")
    run = Run(config, folder, Tracker(folder), classes, model, recipe, compute, val_samples, val_batches)
    logger.info("%d images to train on, %d to validate, classes: %s", len(train_set), len(val_set), ", ".join(classes))
    logger.info("on %s in %s, learning rate %g -> %s", compute.device, compute.dtype, optimizer.defaults["lr"], folder)
    with logging_redirect_tqdm(), tqdm(total=settings["iterations"], unit="step", disable=None) as progress:
        for step in training_steps(model, train_batches, optimizer, schedule, recipe, compute):
            progress.update()
            run.after_step(step, progress)
    run.finish()


@dataclass
class Run:
    """What happens between the steps: logging, evaluation, checkpoints."""

    config: dict
    folder: Path
    tracker: Tracker
    classes: tuple[str, ...]
    model: FastRCNN
    recipe: Recipe
    compute: Compute
    val_samples: Samples
    val_batches: DataLoader

    def __post_init__(self) -> None:
        self.means = Means()
        self.best = -math.inf
        text = yaml.safe_dump(self.config, sort_keys=False)
        (self.folder / "config.yaml").write_text(text)
        self.tracker.text("config", text)

    def after_step(self, step: Step, progress: tqdm) -> None:
        settings, iteration = self.config["train"], step.iteration
        due = {
            name: iteration == settings["iterations"] or iteration % settings[f"{name}_every"] == 0
            for name in ("log", "eval", "checkpoint")
        }
        self.means.add(step.values)
        if iteration == 1:
            self.tracker.image(iteration, "train/rois", draw_batch(step.batch, step.targets))
        if any(due.values()):
            self.log(step, progress)  # finds a loss that is not finite before weights are saved
        if due["checkpoint"]:
            self.save("last.pt", iteration)
        if due["eval"]:
            self.evaluate(iteration)

    def log(self, step: Step, progress: tqdm) -> None:
        values = self.means.take() | {"memory/peak_mib": peak_memory_mib(self.compute.device)}
        loss = values["train/loss"]
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at iteration {step.iteration}, images {', '.join(step.batch.image_ids)}: "
                "a lower optimizer.lr or a longer warm-up helps most often"
            )
        self.tracker.scalars(step.iteration, values)
        progress.set_postfix(loss=f"{loss:.3f}")
        if progress.disable:  # no terminal
            of, seconds = self.config["train"]["iterations"], values["time/step_s"]
            logger.info("iteration %d of %d: loss %.3f, %.2f s a step", step.iteration, of, loss, seconds)

    def evaluate(self, iteration: int) -> None:
        detections, losses = evaluate(self.model, self.val_batches, self.recipe, self.compute)
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
            self.save("best.pt", iteration)

    def save(self, name: str, iteration: int) -> None:
        save_checkpoint(self.folder / "checkpoints" / name, self.model, self.config, self.classes, iteration)

    def finish(self) -> None:
        name = self.main_metric.replace("@", "_").replace(":", "-")  # TensorBoard's tags have neither
        final = {} if self.score is None else {f"hparam/mAP_{name}": self.score}
        self.tracker.hyperparameters(flatten(self.config), final)
        self.tracker.close()
        logger.info("done: %s; to look at it: tensorboard --logdir %s", self.folder, self.folder.parent)


if __name__ == "__main__":
    run_program(main, "train")
