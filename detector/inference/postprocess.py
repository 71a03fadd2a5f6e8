"""From the network's outputs to detections."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detector.boxes import BoxCoder, box_iou, clip
from detector.schema import default
from detector.settings import Detect, GivenDetect
from detector.structures import Detections


@dataclass(frozen=True)
class Candidates:
    """Scored boxes of one image before non-maximum suppression, in the network frame."""

    rows: Tensor  # (M,) int64: index of the proposal
    labels: Tensor  # (M,) int64 in 1..K
    scores: Tensor  # (M,) float32
    boxes: Tensor  # (M, 4) float32: the proposal after its correction for the class, clipped to the image
    proposals: Tensor  # (M, 4) float32

    def rows_of(self, keep: Tensor) -> "Candidates":
        """Those at these indices."""
        return Candidates(self.rows[keep], self.labels[keep], self.scores[keep], self.boxes[keep], self.proposals[keep])


@dataclass(frozen=True)
class ImageFrames:
    """An image and its size in both frames."""

    image_id: str
    network_hw: tuple[int, int]
    original_hw: tuple[int, int]


def find_candidates(
    class_logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    coder: BoxCoder,
    image_hw: tuple[int, int],
    settings: Detect,
) -> Candidates:
    """The boxes of all proposals and classes with an area and a score above the threshold.

    class_logits (P, K+1), deltas (P, K, 4) and proposals (P, 4) are in the network frame, where the image has the size
    `image_hw`. Only boxes with a score above the threshold are decoded.
    """
    scores = class_logits.float().softmax(dim=1)[:, 1:]  # (P, K)
    row, column = torch.nonzero(scores > settings.score_threshold, as_tuple=True)
    boxes = proposals[row]
    if settings.regress_boxes:
        boxes = coder.decode(deltas[row, column].float()[:, None], boxes)[:, 0]
    boxes = clip(boxes, image_hw)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    row, column = row[has_area], column[has_area]
    return Candidates(row, column + 1, scores[row, column], boxes[has_area], proposals[row])


def finish(found: Candidates, image: ImageFrames, settings: Detect) -> Detections:
    """Detections of one image from its candidates: NMS, then the limit; highest score first, in the original frame."""
    keep, scores = suppress(found.boxes, found.scores, found.labels, settings)
    boxes = found.boxes[keep]
    (height, width), (original_height, original_width) = image.network_hw, image.original_hw
    to_original = boxes.new_tensor([original_width / width, original_height / height] * 2)
    return Detections(
        image_id=image.image_id,
        boxes=(boxes * to_original).cpu().numpy(),
        labels=found.labels[keep].cpu().numpy(),
        scores=scores.cpu().numpy(),
        proposals=(found.proposals[keep] * to_original).cpu().numpy(),
    )


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, settings: GivenDetect) -> tuple[Tensor, Tensor]:
    """Indices and scores (N,) of the boxes that are kept, highest score first.

    boxes (M, 4) in any frame, scores (M,), labels (M,). Limits of `settings` that are null do not apply.
    """
    limit = settings.max_detections
    if settings.nms == "soft":
        return soft_nms(boxes, scores, labels, settings)
    keep = scores.argsort(descending=True, stable=True)
    if settings.nms_iou is not None:
        # In float64, because batched_nms adds an offset to the boxes of each class, which reduces the precision.
        keep = batched_nms(boxes.double(), scores.double(), labels, settings.nms_iou)
    return keep[:limit], scores[keep[:limit]]


def soft_nms(boxes: Tensor, scores: Tensor, labels: Tensor, settings: GivenDetect) -> tuple[Tensor, Tensor]:
    """Soft-NMS with a Gaussian penalty (Bodla et al. 2017, section 3), for each class; as `suppress`.

    The box with the highest score is kept, and the scores of the others of its class are multiplied by exp(-IoU^2 /
    sigma), until no score is above the threshold. At most `max_detections` boxes of a class are computed, since an
    image has no more; this does not change the result.
    """
    sigma = settings.soft_nms_sigma or default(Detect, "soft_nms_sigma")
    threshold, limit = settings.score_threshold or 0.0, settings.max_detections
    scores, left = scores.clone(), torch.ones_like(scores, dtype=torch.bool)
    kept: list[int] = []
    for label in labels.unique().tolist():
        own = torch.nonzero(labels == label).flatten()
        for _ in range(len(own) if limit is None else min(limit, len(own))):
            own = own[left[own] & (scores[own] > threshold)]
            if len(own) == 0:
                break
            best = own[scores[own].argmax()]
            left[best] = False
            kept.append(int(best))
            own = own[left[own]]
            scores[own] *= torch.exp(-(box_iou(boxes[best, None], boxes[own])[0] ** 2) / sigma)
    keep = torch.tensor(kept, dtype=torch.int64, device=boxes.device)
    keep = keep[scores[keep].argsort(descending=True, stable=True)][:limit]
    return keep, scores[keep]


def postprocess_again(found: Detections, settings: GivenDetect) -> Detections:
    """Repeat threshold, NMS and limit on the detections of one image; null skips a step. Highest score first."""
    above = found.scores > (-np.inf if settings.score_threshold is None else settings.score_threshold)
    boxes, scores, labels = (torch.from_numpy(array[above]) for array in (found.boxes, found.scores, found.labels))
    keep, scores = suppress(boxes, scores, labels, settings)
    return Detections(found.image_id, boxes[keep].numpy(), labels[keep].numpy(), scores.numpy())
