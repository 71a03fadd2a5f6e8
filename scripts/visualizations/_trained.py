"""Run a trained network on one image, and keep the tensors of that pass for drawing."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detector.boxes import with_batch_index
from detector.builders import datasets
from detector.builders.network import build_compute, build_detector_config, build_trained_model
from detector.data.dataset import image_dataset
from detector.data.loader import collate
from detector.errors import InputError
from detector.inference.postprocess import Candidates, find_candidates, suppress
from detector.inference.predict import predict
from detector.inference.prepare import prepare
from detector.models import FastRCNN
from detector.runtime.device import Compute
from detector.runtime.files import find_files
from detector.runtime.ranks import cores
from detector.settings import CommonSettings
from detector.structures import Batch
from detector.training.checkpoint import load_checkpoint, trained_settings
from scripts.visualizations._sources import Given, Searched


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, type=Path, help="the network: RUN/checkpoints/best.pt")
    parser.add_argument("--image", required=True, type=Path, help="an image file")
    parser.add_argument("--proposals", type=Path, help="file of proposals (default: selective search)")
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, help="minimum score of detections (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")


@dataclass(frozen=True)
class Pass:
    """One forward pass over all proposals of an image; boxes in the network frame."""

    settings: CommonSettings  # of the checkpoint, and of the command line
    classes: tuple[str, ...]
    model: FastRCNN
    compute: Compute
    batch: Batch
    rois: Tensor  # (P, 5)
    features: Tensor | Sequence[Tensor]  # (1, C, H, W), or one for each level of a pyramid: what RoI pooling received
    candidates: Candidates
    kept: Tensor  # (N,) candidates that remain after NMS, highest score first
    scores: Tensor  # (N,) their scores, which soft-NMS lowers

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 in the network frame, without padding."""
        height, width = self.batch.image_hws[0]
        return self.batch.images[0, :, :height, :width].permute(1, 2, 0).numpy()


def require_one_scale(settings: CommonSettings) -> None:
    """Raise InputError if the network detects at several scales, of which `Pass.features` would show only one."""
    if settings.detect.pyramid_px:
        raise InputError("the network detects on an image pyramid (detect.pyramid_px): there is no single feature map")


@torch.no_grad()
def forward(arguments: argparse.Namespace) -> Pass:
    """Run the network of the checkpoint over the image. Raises InputError for invalid input."""
    if not 0 <= arguments.score_threshold <= 1:
        raise InputError(f"--score-threshold: {arguments.score_threshold} must be from 0 to 1")
    if not arguments.image.is_file():
        raise InputError(f"--image: {arguments.image}: there is no such file")
    checkpoint = load_checkpoint(arguments.checkpoint)
    settings = trained_settings(checkpoint)
    detect = settings.detect.plain() | {"score_threshold": arguments.score_threshold}
    settings = settings.with_values(device=arguments.device, detect=detect)
    dataset = image_dataset(
        find_files(str(arguments.image)), checkpoint["classes"], datasets.image_options(settings.data)
    )
    given = arguments.proposals
    proposals = Given(given, dataset) if given else Searched(dataset, settings.proposals.mode, cores())
    batch = collate([datasets.transformed_dataset_with(settings, dataset, proposals, "val")[0, 0]])
    if not len(batch.proposals[0]):
        raise InputError(f"{given}: no proposals for {arguments.image}")
    compute = build_compute(settings)
    model = build_trained_model(settings.model, checkpoint["model"], len(dataset.classes))
    model = prepare(model, compute)
    seen = []
    hook = model.roi_pool.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    rois = with_batch_index(batch.proposals[0], 0)
    config = build_detector_config(settings)
    class_logits, deltas = predict(model, batch, config.postprocess, compute)
    hook.remove()
    found = find_candidates(
        class_logits, deltas, batch.proposals[0], config.coder, batch.image_hws[0], config.postprocess
    )
    kept, scores = suppress(found.boxes, found.scores, found.labels, config.postprocess)
    return Pass(settings, dataset.classes, model, compute, batch, rois, seen[0], found, kept, scores)
