"""A trained network in torch, as the Python interface uses it."""

from dataclasses import dataclass

import numpy as np
import torch

from detector.boxes import BoxCoder, with_batch_index
from detector.data.loader import collate
from detector.inference.predict import DetectorConfig, detect, turn_on
from detector.models import FastRCNN
from detector.runtime.device import Compute, limit_threads
from detector.settings import Detect
from detector.structures import Detections, Sample


@dataclass(frozen=True)
class TorchNetwork:
    """The network on its device. Several threads may use one at the same time."""

    model: FastRCNN
    coder: BoxCoder
    compute: Compute

    def limit_threads(self, threads: int) -> None:
        """Limit the cores that the calling thread uses."""
        limit_threads(threads)

    def detect(self, sample: Sample, limits: Detect) -> Detections:
        """Detections, in the original frame, of a sample in the network frame."""
        config = DetectorConfig(self.coder, limits)
        return detect(self.model, collate([(sample, 0)]), config, self.compute)[0]

    @torch.inference_mode()
    def roi_features(self, sample: Sample) -> np.ndarray:
        """The head's features (P, C) float32 of the sample's proposals."""
        self.model.eval()
        batch = collate([(sample, 0)])
        rois = with_batch_index(batch.proposals[0], 0)
        with turn_on(self.compute.device):
            return self.compute.forward(self.model.roi_features, batch.images, rois).float().cpu().numpy()
