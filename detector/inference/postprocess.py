"""From the network's outputs to detections."""

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detector.boxes import BoxCoder, clip
from detector.settings import Detect
from detector.structures import Detections


def postprocess(
    class_logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    coder: BoxCoder,
    image_id: str,
    image_hw: tuple[int, int],
    original_hw: tuple[int, int],
    settings: Detect,
) -> Detections:
    """Detections of one image, highest score first, in the original frame: score threshold, NMS, then the limit.

    class_logits (P, K+1), deltas (P, K, 4) and proposals (P, 4) are in the network frame, where the image has
    the size `image_hw`.
    """
    scores = class_logits.float().softmax(dim=1)[:, 1:]  # (P, K)
    boxes = clip(coder.decode(deltas.float(), proposals), image_hw)  # (P, K, 4)
    has_area = (boxes[..., 2:] > boxes[..., :2]).all(dim=2)
    row, column = torch.nonzero((scores > settings.score_threshold) & has_area, as_tuple=True)
    scores, boxes, labels = scores[row, column], boxes[row, column], column + 1
    # In float64, because batched_nms offsets the boxes of each class, which costs decimals.
    keep = batched_nms(boxes.double(), scores.double(), labels, settings.nms_iou)[: settings.max_detections]
    to_original = boxes.new_tensor(
        [original_hw[1] / image_hw[1], original_hw[0] / image_hw[0]] * 2
    )  # network -> original, for x and y
    return Detections(
        image_id=image_id,
        boxes=(boxes[keep] * to_original).cpu().numpy(),
        labels=labels[keep].cpu().numpy(),
        scores=scores[keep].cpu().numpy(),
    )


def postprocess_again(
    found: Detections, score_threshold: float | None, nms_iou: float | None, max_detections: int | None
) -> Detections:
    """Repeat threshold, NMS and limit on the detections of one image; None skips a step. Highest score first."""
    keep = np.argsort(-found.scores, kind="stable")
    if score_threshold is not None:
        keep = keep[found.scores[keep] > score_threshold]
    if nms_iou is not None:
        boxes, scores, labels = (torch.from_numpy(array[keep]) for array in (found.boxes, found.scores, found.labels))
        keep = keep[batched_nms(boxes.double(), scores.double(), labels, nms_iou).numpy()]
    keep = keep[:max_detections]
    return Detections(found.image_id, found.boxes[keep], found.labels[keep], found.scores[keep])
