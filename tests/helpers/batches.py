"""Batches for a training step, without images on a disk."""

import numpy as np
from torch import Tensor

from detector.structures import RoiTargets, TrainBatch


def train_batch(images: Tensor, targets: RoiTargets, gt_boxes: list[np.ndarray] | None = None) -> TrainBatch:
    """Images 0, 1, 2 ... with these RoIs, ordered by image; without objects unless they are given."""
    count, hw = len(images), tuple(images.shape[2:])
    counts = targets.rois[:, 0].long().bincount(minlength=count).tolist()
    none = [np.zeros((0, 4), np.float32)] * count
    return TrainBatch([str(n) for n in range(count)], [hw] * count, gt_boxes or none, images, targets, counts)
