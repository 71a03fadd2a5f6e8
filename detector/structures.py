"""Glossary of shape letters and terms, and the data classes passed between modules.

Letters in shape comments, the same in all modules:

    B images of a batch          K classes (background not counted)
    G ground truth boxes         C channels
    P proposals of one image     H, W height and width, of an image or of a feature map
    R RoIs of a whole batch      N detections of one image

Terms:

    box         (x1, y1, x2, y2), float32, continuous pixels: the width is x2 - x1, a box over a whole image is
                (0, 0, W, H). Files with other conventions are converted where they are read or written.
    frame       the image that a box's coordinates refer to: the original image as stored in its file,
                or the network's input, after resizing and augmentation.
    proposals   boxes (P, 4) of one image that may contain an object, without a class: the output of selective search.
    rois        (R, 5): the index of the image in its batch, then a box in the network frame.
    label       0 is background, 1..K are the classes in the dataset's order.
    deltas      (dx, dy, dw, dh): the shift and scaling from a proposal to its object.
    scores      class probabilities, after the softmax; `class_logits` before it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # exported detectors run without torch
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class GroundTruth:
    """The annotated objects of one image, in the original frame."""

    image_id: str
    boxes: np.ndarray  # (G, 4) float32
    labels: np.ndarray  # (G,) int64 in 1..K
    difficult: np.ndarray  # (G,) bool: VOC's flag; neither a true nor a false positive in scoring
    crowd: np.ndarray  # (G,) bool: COCO's flag, many objects in one box; no training, neither true nor false positive
    areas: np.ndarray  # (G,) float64 px: of the object's mask if annotated, else of its box


@dataclass(frozen=True)
class Sample:
    """One image with its boxes, all in the frame of `image`."""

    image_id: str
    image: np.ndarray  # (H, W, 3) uint8, RGB
    gt_boxes: np.ndarray  # (G, 4) float32
    gt_labels: np.ndarray  # (G,) int64
    proposals: np.ndarray  # (P, 4) float32
    original_hw: tuple[int, int]  # size of the image in its file


@dataclass(frozen=True)
class Batch:
    """Samples in the network frame, padded at the bottom and the right to one size."""

    image_ids: list[str]
    positions: list[int]  # index of each sample in the stream of training samples; seeds its randomness
    images: torch.Tensor  # (B, 3, H, W) uint8, channels_last
    image_hws: list[tuple[int, int]]  # sizes before padding
    original_hws: list[tuple[int, int]]  # sizes of the images in their files
    gt_boxes: list[torch.Tensor]  # B x (G, 4) float32
    gt_labels: list[torch.Tensor]  # B x (G,) int64
    proposals: list[torch.Tensor]  # B x (P, 4) float32


@dataclass(frozen=True)
class RoiTargets:
    """Sampled RoIs of a batch with their training targets, in one tensor, so that they are sent and copied at once."""

    packed: Tensor  # (R, 10) float32: image index, box, label, deltas

    @staticmethod
    def pack(rois: Tensor, labels: Tensor, deltas: Tensor) -> RoiTargets:
        """From the three tensors as described below."""
        import torch

        return RoiTargets(torch.cat([rois, labels[:, None].to(rois.dtype), deltas], dim=1))

    @property
    def rois(self) -> Tensor:
        """(R, 5) float32: image index and box, network frame."""
        return self.packed[:, :5]

    @property
    def labels(self) -> Tensor:
        """(R,) int64, 0 is background."""
        return self.packed[:, 5].long()

    @property
    def deltas(self) -> Tensor:
        """(R, 4) float32: for the class of the label; zero for background."""
        return self.packed[:, 6:]


@dataclass(frozen=True)
class TrainBatch:
    """A batch ready for a training step, built by a data worker: two tensors and their description."""

    image_ids: list[str]
    image_hws: list[tuple[int, int]]  # sizes before padding
    gt_boxes: list[np.ndarray]  # B x (G, 4) float32
    images: Tensor  # (B, 3, H, W) uint8, channels_last
    targets: RoiTargets  # ordered by image
    roi_counts: list[int]  # RoIs of each image

    def pin_memory(self) -> TrainBatch:
        """Copy the tensors to page-locked memory, from which a GPU can copy asynchronously; called by torch's
        DataLoader.
        """
        return replace(self, images=self.images.pin_memory(), targets=RoiTargets(self.targets.packed.pin_memory()))

    def to(self, device: torch.device) -> TrainBatch:
        """A copy on this device; from pinned memory it is asynchronous."""
        images, packed = (each.to(device, non_blocking=True) for each in (self.images, self.targets.packed))
        return replace(self, images=images, targets=RoiTargets(packed))


@dataclass(frozen=True)
class Detections:
    """Detections of one image, highest score first, in the original frame."""

    image_id: str
    boxes: np.ndarray  # (N, 4) float32
    labels: np.ndarray  # (N,) int64 in 1..K
    scores: np.ndarray  # (N,) float32
    proposals: np.ndarray | None = None  # (N, 4) float32: what each was refined from; None if read from a file
