"""What training is made of: network, optimizer, data and their settings, built by `builders.training`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.optim.swa_utils import AveragedModel

from detector.data.epoch_order import EpochOrder
from detector.data.loader import TransformedDataset
from detector.inference.predict import DetectorConfig
from detector.models import FastRCNN
from detector.runtime.device import Compute
from detector.training.engine import TrainingConfig


@dataclass(frozen=True)
class TrainingComponents:
    """The components of a run."""

    classes: tuple[str, ...]
    model: FastRCNN
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]  # the factor on its learning rates at an iteration
    training: TrainingConfig
    detector: DetectorConfig
    compute: Compute
    train_samples: TransformedDataset
    val_samples: TransformedDataset
    fingerprints: dict[str, str]  # of data and proposals
    train_order: EpochOrder
    averaged: AveragedModel | None = None  # the moving average of the weights, if `train.ema` is set

    @property
    def evaluated_model(self) -> FastRCNN:
        """The network that is evaluated and shared."""
        model = self.model if self.averaged is None else self.averaged.module
        assert isinstance(model, FastRCNN)
        return model
