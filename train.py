"""Train a Fast R-CNN: python train.py [GROUP=CHOICE] [KEY=VALUE ...]; configs/train.yaml lists the settings."""

import logging
from contextlib import closing, nullcontext
from pathlib import Path

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from detector import compose
from detector.checkpoint import load_state, load_to_resume
from detector.cli import log_to_file, run_program
from detector.config import validate_training
from detector.data.check import warn_of_overlap
from detector.data.fingerprint import fingerprints
from detector.data.loader import TrainOrder, eval_loader, explain_workers, train_loader
from detector.distributed import from_main, is_main, place, process_group, share_gradients, shared_errors, wait
from detector.ema import averaged_model
from detector.engine import training_steps
from detector.errors import InputError
from detector.models.weights import load_weights
from detector.resume import check_same_run, clean_up, find_run, make_newest
from detector.run import Parts, Run, lacks_evaluation
from detector.run_folder import FolderLock, make_run_folder, require_writable
from detector.signals import StopRequest
from detector.tracking import Tracker

logger = logging.getLogger("train")


def main(config: dict) -> None:
    validate_training(config, place().world_size)
    with process_group(config["distributed"]["timeout_s"]), FolderLock() as lock:
        train(config, lock)


def train(config: dict, lock: FolderLock) -> None:
    """Begin a run or take one up, and train to the end; the settings become those of the run."""
    settings, here = config["train"], place()
    folder, resumed = from_main(lambda: find_run(config["resume"], config["run"]["dir"], lock))
    if folder is not None:
        log_to_file(folder / "train.log")
    with shared_errors():
        checkpoint = load_to_resume(resumed) if resumed else None
        start = checkpoint["iteration"] if checkpoint else 0
        if checkpoint is not None and start >= settings["iterations"] and not lacks_evaluation(checkpoint, settings):
            trained = checkpoint["config"]
            config["optimizer"]["lr"] = config["optimizer"]["lr"] or trained["optimizer"]["lr"]
            check_same_run(checkpoint, config, tuple(checkpoint["classes"]), checkpoint["made_of"])
            logger.info("already complete: %d of %d iterations in %s", start, settings["iterations"], resumed)
            return
        parts = make_parts(config, checkpoint)
    share = (here.rank, here.world_size)
    train_set, val_set = parts.train_samples.reader, parts.val_samples.reader
    order = TrainOrder(
        len(train_set), settings["images_per_batch"], settings["iterations"], config["seed"], start, *share
    )
    train_batches = train_loader(parts.train_samples, order, config["workers"])
    val_batches = eval_loader(parts.val_samples, config["workers"], *share)

    if folder is None:
        folder = from_main(lambda: lock.take(make_run_folder(config["run"]["dir"])))
        log_to_file(folder / "train.log")
    logger.info(
        "%d images to train on, %d to validate, classes: %s", len(train_set), len(val_set), ", ".join(parts.classes)
    )
    compute, rate = parts.compute, parts.optimizer.defaults["lr"]
    logger.info("on %s in %s, learning rate %g -> %s", compute.device, compute.dtype, rate, folder)
    if is_main():
        if resumed is not None and config["resume"] != "auto":
            make_newest(resumed, start)
        clean_up(folder, start)
    wait()
    tracker = Tracker(folder, start) if is_main() else None
    closing_tracker = closing(tracker) if tracker is not None else nullcontext()
    progress = tqdm(total=settings["iterations"], initial=start, unit="step", disable=None if is_main() else True)
    with closing_tracker, StopRequest() as stop, logging_redirect_tqdm(), progress:
        run = Run(config, folder, tracker, stop, parts, val_batches)
        with explain_workers(run.last_images):
            if checkpoint is not None:
                run.take_up(checkpoint)
            learner = share_gradients(parts.model, compute.device)
            for step in training_steps(
                learner, train_batches, parts.optimizer, parts.schedule, parts.recipe, compute, start
            ):
                progress.update()
                run.after_step(step, progress)
        run.finish()


def make_parts(config: dict, checkpoint: dict | None) -> Parts:
    """All that a run is made of, what is quickly wrong first; the state of the checkpoint in it, if there is one.

    Raises InputError for whatever does not go together.
    """
    require_writable("proposals.folder", Path(config["proposals"]["folder"]))
    compute, recipe = compose.make_compute(config), compose.make_recipe(config)

    train_set, val_set = compose.make_reader(config, "train"), compose.make_reader(config, "val")
    classes = compose.choose_classes(config, train_set, val_set)
    if not classes:
        raise InputError("there is no object in any annotation to learn from: is it the right data.train_split?")
    for name in sorted({*classes} - {*train_set.classes}):
        logger.warning("no object of class %s to train on", name)
    train_set, val_set = train_set.with_classes(classes), val_set.with_classes(classes)

    torch.manual_seed(config["seed"])  # of the initial weights
    model = compose.make_model(config, len(classes))
    if config["model"]["weights"] is not None and checkpoint is None:
        load_weights(model, config["model"]["backbone"], config["model"]["weights"], classes)
    compute.place(model)
    optimizer, schedule = compose.make_optimizer(config, model)
    config["optimizer"]["lr"] = optimizer.defaults["lr"]  # what null came to
    decay = config["train"]["ema"]
    averaged = averaged_model(model, decay) if decay is not None else None

    # Of the images to train on, those that cannot be used are left out.
    train_checked, val_checked = compose.check(config, train_set, "train"), compose.check(config, val_set, "val")
    warn_of_overlap(train_checked, val_checked)
    train_samples = compose.make_samples(config, train_checked, "train")
    train_samples[0, 0]  # whether the augmentation works at all, before there is a folder
    val_samples = compose.make_samples(config, val_checked, "val")
    made_of = fingerprints("training", train_checked, train_samples.proposals)
    made_of |= fingerprints("validation", val_checked, val_samples.proposals)
    if checkpoint is not None:
        check_same_run(checkpoint, config, classes, made_of)
        load_state(checkpoint, model, optimizer, averaged)
    return Parts(classes, model, optimizer, schedule, recipe, compute, train_samples, val_samples, made_of, averaged)


if __name__ == "__main__":
    from train import main  # by the name under which a process that Hydra's launchers start can import it

    run_program(main, "train")
