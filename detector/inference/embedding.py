"""The features of a dataset's objects, which show which objects are similar to the network."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from detector.boxes import with_batch_index
from detector.data.loader import TransformedDataset, collate
from detector.inference.prepare import prepare
from detector.models import FastRCNN
from detector.runtime.device import Compute

MAX_IMAGES, MAX_OBJECTS, MAX_COMPONENTS = 100, 500, 64
CROP_PX = 48


@dataclass(frozen=True)
class EmbeddedObjects:
    """N objects of a dataset with their features."""

    features: np.ndarray  # (N, D) float32
    labels: np.ndarray  # (N,) int64 in 1..K
    image_ids: list[str]
    crops: np.ndarray  # (N, CROP_PX, CROP_PX, 3) uint8


@torch.inference_mode()
def embed_objects(model: FastRCNN, samples: TransformedDataset, compute: Compute) -> EmbeddedObjects:
    """The objects of images spread evenly over the dataset, pooled as RoIs, with their features after the head.

    At most MAX_OBJECTS objects of MAX_IMAGES images. The features are reduced to at most MAX_COMPONENTS principal
    components, which approximate the distances between objects. Objects whose features are not finite, as after a
    diverged run, are omitted.
    """
    model = prepare(model, compute)
    size, count = len(samples.dataset), 0
    features: list[Tensor] = [torch.zeros(0, model.head.out_features)]
    labels, image_ids, crops = [np.zeros(0, dtype=np.int64)], [], [np.zeros((0, CROP_PX, CROP_PX, 3), dtype=np.uint8)]
    for index in range(0, size, max(-(-size // MAX_IMAGES), 1)):
        batch = collate([samples[index, index]])
        boxes = batch.gt_boxes[0][: MAX_OBJECTS - count]
        if not len(boxes):
            continue
        outputs = compute.forward(model.roi_features, batch.images, with_batch_index(boxes, 0)).float().cpu()
        finite = outputs.isfinite().all(dim=1)
        if not finite.any():
            continue
        boxes = boxes[finite]
        count += len(boxes)
        features.append(outputs[finite])
        labels.append(batch.gt_labels[0][: len(finite)][finite].numpy())
        image_ids += batch.image_ids * len(boxes)
        image = batch.images[0].permute(1, 2, 0).numpy()
        crops.append(np.stack([_crop(image, box) for box in boxes.numpy()]))
    return EmbeddedObjects(
        principal_components(torch.cat(features)).numpy(), np.concatenate(labels), image_ids, np.concatenate(crops)
    )


def principal_components(features: Tensor) -> Tensor:
    """(N, D') from features (N, D): their coordinates along the directions in which they vary most."""
    left, lengths, _ = torch.linalg.svd(features - features.mean(dim=0), full_matrices=False)
    return (left * lengths)[:, :MAX_COMPONENTS]


def _crop(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The box of an image (H, W, 3), resized to a square."""
    x1, y1 = np.floor(box[:2]).astype(int)
    x2, y2 = np.ceil(box[2:]).astype(int)
    return cv2.resize(image[y1:y2, x1:x2], (CROP_PX, CROP_PX), interpolation=cv2.INTER_AREA)
