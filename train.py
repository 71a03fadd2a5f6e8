"""Train a Fast R-CNN: python train.py [GROUP=CHOICE] [KEY=VALUE ...]; configs/train.yaml lists the settings."""

import logging
from contextlib import closing, nullcontext
from pathlib import Path

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from detector import builders
from detector.app import log_to_file, run_program
from detector.data.check import warn_leakage
from detector.data.fingerprint import dataset_fingerprints
from detector.data.loader import TrainBatchSampler, eval_loader, explain_workers, train_loader
from detector.errors import InputError
from detector.models.weights import load_weights
from detector.runtime.distributed import (
    barrier,
    broadcast_from_main,
    is_main,
    process_group,
    rank_info,
    shared_errors,
    wrap_ddp,
)
from detector.runtime.signals import StopRequest
from detector.settings import validate_training
from detector.training.checkpoint import load_state, load_to_resume
from detector.training.ema import averaged_model
from detector.training.engine import training_steps
from detector.training.resume import check_same_run, clean_up, find_run, promote_checkpoint
from detector.training.run_folder import FolderLock, make_run_folder, require_writable
from detector.training.tracking import Tracker
from detector.training.trainer import Trainer, TrainingComponents, lacks_evaluation

logger = logging.getLogger("train")


def main(config: dict) -> None:
    validate_training(config, rank_info().world_size)
    with process_group(config["distributed"]["timeout_s"]), FolderLock() as lock:
        train(config, lock)


def train(config: dict, lock: FolderLock) -> None:
    """Start or resume a run, and train to the end; `config` is updated to the settings of the run."""
    settings, here = config["train"], rank_info()
    folder, resumed = broadcast_from_main(lambda: find_run(config["resume"], config["run"]["dir"], lock))
    if folder is not None:
        log_to_file(folder / "train.log")
    with shared_errors():
        checkpoint = load_to_resume(resumed) if resumed else None
        start = checkpoint["iteration"] if checkpoint else 0
        if checkpoint is not None and start >= settings["iterations"] and not lacks_evaluation(checkpoint, settings):
            trained = checkpoint["config"]
            config["optimizer"]["lr"] = config["optimizer"]["lr"] or trained["optimizer"]["lr"]
            check_same_run(checkpoint, config, tuple(checkpoint["classes"]), checkpoint["fingerprints"])
            logger.info("already complete: %d of %d iterations in %s", start, settings["iterations"], resumed)
            return
        components = build_components(config, checkpoint)
    share = (here.rank, here.world_size)
    train_set, val_set = components.train_samples.reader, components.val_samples.reader
    order = TrainBatchSampler(
        len(train_set), settings["images_per_batch"], settings["iterations"], config["seed"], start, *share
    )
    train_batches = train_loader(components.train_samples, order, config["workers"])
    val_batches = eval_loader(components.val_samples, config["workers"], *share)

    if folder is None:
        folder = broadcast_from_main(lambda: lock.take(make_run_folder(config["run"]["dir"])))
        log_to_file(folder / "train.log")
    logger.info(
        "%d images to train on, %d to validate, classes: %s",
        len(train_set),
        len(val_set),
        ", ".join(components.classes),
    )
    compute, rate = components.compute, components.optimizer.defaults["lr"]
    logger.info("on %s in %s, learning rate %g -> %s", compute.device, compute.dtype, rate, folder)
    if is_main():
        if resumed is not None and config["resume"] != "auto":
            promote_checkpoint(resumed, start)
        clean_up(folder, start)
    barrier()
    tracker = Tracker(folder, start) if is_main() else None
    closing_tracker = closing(tracker) if tracker is not None else nullcontext()
    progress = tqdm(total=settings["iterations"], initial=start, unit="step", disable=None if is_main() else True)
    with closing_tracker, StopRequest() as stop, logging_redirect_tqdm(), progress:
        trainer = Trainer(config, folder, tracker, stop, components, val_batches)
        with explain_workers(trainer.last_images):
            if checkpoint is not None:
                trainer.resume(checkpoint)
            learner = wrap_ddp(components.model, compute.device)
            for step in training_steps(
                learner, train_batches, components.optimizer, components.schedule, components.training, compute, start
            ):
                progress.update()
                trainer.after_step(step, progress)
        trainer.finish()


def build_components(config: dict, checkpoint: dict | None) -> TrainingComponents:
    """Build the components of a run, cheap checks first, and load the state of the checkpoint, if there is one.

    Raises InputError for components that do not fit together.
    """
    require_writable("proposals.folder", Path(config["proposals"]["folder"]))
    compute = builders.build_compute(config)

    train_set, val_set = builders.build_dataset(config, "train"), builders.build_dataset(config, "val")
    classes = builders.resolve_classes(config, train_set, val_set)
    if not classes:
        raise InputError("there is no object in any annotation to learn from: is it the right data.train_split?")
    for name in sorted({*classes} - {*train_set.classes}):
        logger.warning("no object of class %s to train on", name)
    train_set, val_set = train_set.with_classes(classes), val_set.with_classes(classes)

    torch.manual_seed(config["seed"])  # seeds the initial weights
    model = builders.build_untrained_model(config, len(classes))
    if config["model"]["weights"] is not None and checkpoint is None:
        load_weights(model, config["model"]["backbone"], config["model"]["weights"], classes)
    compute.place(model)
    optimizer, schedule = builders.build_optimizer(config, model)
    config["optimizer"]["lr"] = optimizer.defaults["lr"]  # null is replaced by the default
    decay = config["train"]["ema"]
    averaged = averaged_model(model, decay) if decay is not None else None

    # Unusable training images are left out.
    train_checked, val_checked = builders.check(config, train_set, "train"), builders.check(config, val_set, "val")
    warn_leakage(train_checked, val_checked)
    train_samples = builders.build_transformed_dataset(config, train_checked, "train")
    train_samples[0, 0]  # fails on invalid augmentation before a folder is made
    val_samples = builders.build_transformed_dataset(config, val_checked, "val")
    fingerprints = dataset_fingerprints("training", train_checked, train_samples.proposals)
    fingerprints |= dataset_fingerprints("validation", val_checked, val_samples.proposals)
    if checkpoint is not None:
        check_same_run(checkpoint, config, classes, fingerprints)
        load_state(checkpoint, model, optimizer, averaged)
    training = builders.build_training_config(config, config["optimizer"].get("max_grad_norm"))
    return TrainingComponents(
        classes, model, optimizer, schedule, training,
        builders.build_detector_config(config), compute, train_samples, val_samples, fingerprints, averaged,
    )  # fmt: skip


if __name__ == "__main__":
    from train import main  # importable by this name in processes that Hydra's launchers start

    run_program(main, "train")
