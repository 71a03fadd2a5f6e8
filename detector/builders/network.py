"""A trained network, and how it runs: what every use of a checkpoint needs."""

import torch

from detector.boxes import BoxCoder
from detector.errors import InputError
from detector.inference.predict import DetectorConfig
from detector.models import FastRCNN, build_model
from detector.runtime.device import Compute, resolve_compute
from detector.settings import CommonSettings, EvaluateSettings, Model


def build_compute(settings: CommonSettings | EvaluateSettings) -> Compute:
    """The device and precision in the settings. Raises InputError for a device that is not available."""
    return resolve_compute(settings.device, settings.precision or "auto")


def build_trained_model(model: Model, state: dict, num_classes: int) -> FastRCNN:
    """The network with the weights of a checkpoint. Raises InputError, before allocating memory, if they do not fit."""
    with torch.device("meta"):
        wanted = {key: tuple(value.shape) for key, value in build_model(model, num_classes).state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    wrong = sorted(key for key in {*wanted, *given} if wanted.get(key) != given.get(key))
    if wrong:
        key = wrong[0]
        raise InputError(
            f"the checkpoint does not fit its own settings of the network: {len(wrong)} tensors differ, {key} is "
            f"{given.get(key, 'missing')} in it, and {wanted.get(key, 'missing')} by model.backbone, model.head, ..."
        )
    network = build_model(model, num_classes)
    network.load_state_dict(state)
    return network


def build_detector_config(settings: CommonSettings) -> DetectorConfig:
    """How the network's outputs become detections."""
    return DetectorConfig(BoxCoder(settings.roi.delta_std), settings.detect)
