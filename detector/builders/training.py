"""The components of a run: network, optimizer, schedule, loss, and samples; each receives only the values it needs."""

import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from detector.allowlist import find_class, instantiate
from detector.boxes import BoxCoder
from detector.builders import datasets
from detector.builders.network import build_compute, build_detector_config
from detector.data.check import Checked, warn_leakage
from detector.data.dataset import DetectionDataset
from detector.data.fingerprint import dataset_fingerprints
from detector.data.loader import TransformedDataset
from detector.errors import InputError
from detector.models import FastRCNN, build_model
from detector.models.weights import load_weights
from detector.runtime.device import loss_scaler, set_deterministic
from detector.runtime.distributed import shared_errors
from detector.runtime.files import require_writable
from detector.runtime.ranks import rank_info
from detector.settings import CommonSettings, Data, Loss, Training, TrainSettings
from detector.training.checkpoint import load_scaler, load_state
from detector.training.diagnostics import warn_if_memory_is_short
from detector.training.engine import TrainingComponents, TrainingConfig
from detector.training.losses import LossConfig
from detector.training.optimizers import averaged_model, default_rate, parameter_groups
from detector.training.resume import check_same_run
from detector.training.targets import delta_statistics

logger = logging.getLogger(__name__)


def build_training_config(
    settings: CommonSettings, classes: Sequence[str], max_grad_norm: float | None = None, accumulate: int = 1
) -> TrainingConfig:
    """How RoIs and their targets are sampled from a batch, the loss on them, and how the gradient is computed."""
    coder = BoxCoder(settings.roi.delta_std)
    loss = LossConfig(settings.loss, coder, _class_weights(settings.loss, classes))
    return TrainingConfig(settings.roi, coder, settings.seed, loss, max_grad_norm, accumulate)


def with_delta_std(training: TrainingConfig, model: FastRCNN) -> TrainingConfig:
    """The same, with the deviation of the targets of each class, if the network has it."""
    if model.delta_std is None:
        return training
    std = tuple(map(tuple, model.delta_std.expand(model.num_classes, -1).tolist()))
    return replace(training, loss=replace(training.loss, delta_std=std))


def _delta_statistics(
    settings: CommonSettings, model: FastRCNN, checked: Checked, samples: TransformedDataset
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the targets in the training set."""
    logger.info("model.delta_normalization: reading the proposals of %d images", len(checked.image_hws))
    coder, boxes_per_roi = BoxCoder(settings.roi.delta_std), model.bbox_pred.out_features // 4
    return delta_statistics(samples, checked.image_hws, coder, settings.roi.foreground_iou, boxes_per_roi)


def _class_weights(loss: Loss, classes: Sequence[str]) -> tuple[float, ...] | None:
    """The weights of background and each class. Raises InputError for a weight of another class."""
    if loss.class_weights is None:
        return None
    names = ["background", *classes]
    for name in loss.class_weights:
        if name not in names:
            raise InputError(f"loss.class_weights: there is no class '{name}'; there are {', '.join(names)}")
    return tuple(loss.class_weights.get(name, 1.0) for name in names)


def with_learning_rate(settings: TrainSettings) -> TrainSettings:
    """The settings with the default instead of `optimizer.lr=null`. Raises InputError if there is no default."""
    kind = settings.optimizer.target
    find_class(kind, ("torch.optim.",))
    if settings.optimizer.lr is not None:
        return settings
    rate = default_rate(kind, settings.train.images_per_batch, settings.model.weights is not None)
    return settings.with_values(optimizer=settings.optimizer.plain() | {"lr": rate})


def build_optimizer(settings: TrainSettings, model: FastRCNN) -> tuple[torch.optim.Optimizer, Callable[[int], float]]:
    """The optimizer, and the schedule: the factor on its learning rates at an iteration, counted from 0."""
    rated = with_learning_rate(settings).optimizer
    of_groups = ("bias_lr_factor", "bias_decay_factor", "norm_decay_factor", "max_grad_norm")  # not the class's
    arguments = {key: value for key, value in rated.plain().items() if key not in of_groups}
    optimizer = instantiate(arguments, ("torch.optim.",), params=parameter_groups(model, rated))
    schedule = {key: value for key, value in settings.schedule.plain().items() if value is not None}
    return optimizer, instantiate(schedule, ("detector.training.schedules.",), iterations=settings.train.iterations)


def require_compiler() -> None:
    """Raise InputError unless there is the C++ compiler that torch chooses."""
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX", usual)
    if shutil.which(compiler) is None:
        raise InputError(
            f"compile=true: needs a C++ compiler, and {compiler} is not found: install {usual}, or set CXX"
        )


def compile_for_training(model: FastRCNN) -> None:
    """Have backbone and head compiled by their next pass, for images of any size. Copies of the network, such as
    `prepare` makes, are not compiled.
    """
    for part in (model.backbone, model.head):
        part.compile(dynamic=True)


def _images_per_pass(train: Training) -> int:
    """Images of one forward and backward pass. Raises InputError for more parts of a batch than it has images."""
    images = train.images_per_batch // rank_info().world_size
    if train.accumulate > images:
        raise InputError(f"train.accumulate={train.accumulate}: each process has {images} images per step")
    return math.ceil(images / train.accumulate)


def _train_and_val_sets(data: Data) -> tuple[DetectionDataset, DetectionDataset]:
    """The images to train on and to validate, with the same classes. Raises InputError without any object."""
    train_set, val_set = datasets.build_dataset(data, "train"), datasets.build_dataset(data, "val")
    classes = datasets.resolve_classes(data, train_set, val_set)
    if not classes:
        problems = [str(item.invalid or item.skipped[0]) for item in train_set.records if item.invalid or item.skipped]
        first = [*problems, "is it the right data.train_split?"][0]
        raise InputError(f"there is no object in any annotation to learn from: {first}")
    for name in sorted({*classes} - {*train_set.classes}):
        logger.warning("no object of class %s to train on", name)
    return train_set.with_classes(classes), val_set.with_classes(classes)


@shared_errors()
def build_training(settings: TrainSettings, checkpoint: dict | None) -> TrainingComponents:
    """Build the components of a run, cheap checks first, and load the state of the checkpoint, if there is one.

    Raises InputError for components that do not fit together, and for a run that differs from that of the checkpoint.
    """
    data = settings.data
    if settings.proposals.folder is None:
        raise InputError("proposals.folder=None: must be the name of a folder")
    require_writable("proposals.folder", Path(settings.proposals.folder))
    if settings.model.svd_ranks is not None:
        raise InputError("model.svd_ranks: is for networks that are compressed after training: leave it out")
    if settings.compile:
        require_compiler()
    set_deterministic(settings.deterministic)
    compute = build_compute(settings)
    train_set, val_set = _train_and_val_sets(data)
    classes = train_set.classes
    training = build_training_config(settings, classes, settings.optimizer.max_grad_norm, settings.train.accumulate)
    training = replace(training, scaler=loss_scaler(compute))

    torch.manual_seed(settings.seed)  # seeds the initial weights
    model = build_model(settings.model, len(classes))
    weights = settings.model.weights if checkpoint is None else None
    has_boxes = weights is not None and load_weights(model, settings.model.backbone, weights, classes)  # trained ones
    compute.place(model)
    optimizer, schedule = build_optimizer(settings, model)
    largest_hw = max(datasets.short_sides(data)), data.max_side_px
    warn_if_memory_is_short(model, compute, _images_per_pass(settings.train), largest_hw, settings.roi.rois_per_image)

    train_checked, val_checked = datasets.check(data, train_set, "train"), datasets.check(data, val_set, "val")
    warn_leakage(train_checked, val_checked)
    train_samples = datasets.build_transformed_dataset(settings, train_checked, "train")
    train_samples[0, 0]  # fails on invalid augmentation before a folder is made
    val_samples = datasets.build_transformed_dataset(settings, val_checked, "val")
    fingerprints = dataset_fingerprints("training", train_checked, train_samples.proposals)
    fingerprints |= dataset_fingerprints("validation", val_checked, val_samples.proposals)
    if model.delta_std is not None and checkpoint is None:
        statistics = _delta_statistics(settings, model, train_checked, train_samples)
        model.set_delta_statistics(*statistics, keep_outputs=has_boxes)
    averaged = None if settings.train.ema is None else averaged_model(model, settings.train.ema)
    if checkpoint is not None:
        check_same_run(checkpoint, settings, classes, fingerprints)
        load_state(checkpoint, model, optimizer, averaged)
        load_scaler(checkpoint, training.scaler)
    if settings.compile:  # after all passes in evaluation mode, which would compile the network for it
        compile_for_training(model)
    return TrainingComponents(
        classes, model, optimizer, schedule, with_delta_std(training, model), build_detector_config(settings), compute,
        train_samples, val_samples, fingerprints, datasets.build_epoch_order(settings, train_checked), averaged,
    )  # fmt: skip
