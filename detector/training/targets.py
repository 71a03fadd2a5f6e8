"""RoI sampling and training targets (Fast R-CNN, section 2.3), and online hard example mining (OHEM)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from detector.boxes import BoxCoder, box_iou, with_batch_index
from detector.data.loader import TransformedDataset
from detector.runtime.device import Compute
from detector.runtime.seeds import Stream, seed_of
from detector.settings import RoISampling
from detector.structures import Batch, RoiTargets, TrainBatch
from detector.training.losses import LossConfig, roi_losses

NMS_IOU = 0.7  # of OHEM: RoIs with nearly the same box count once (Shrivastava et al. 2016, section 4.2)


def sample_rois(
    proposals: Tensor, gt_boxes: Tensor, gt_labels: Tensor, sampling: RoISampling, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample RoIs of one image: boxes (S, 4), labels (S,), matched ground truth boxes (S, 4); S <= rois_per_image.

    Ground truth boxes are added to the proposals. Sampling is without replacement, foreground first: proposals whose
    best IoU with an object is at least `foreground_iou`. Background, with an IoU in
    [`background_iou_low`, `background_iou_high`), fills the rest. An image with too few proposals gives fewer RoIs,
    possibly none.

    The paper's lower bound is 0.1, because proposals that touch an object are harder negatives. But detection sees all
    other proposals too, and 0 gives a higher AP on every dataset tried (docs/recipes.md). An image without a proposal
    in that range samples its background from all proposals below `background_iou_high` instead, so that it still
    contributes background.
    """
    boxes = torch.cat([proposals, gt_boxes])
    if len(boxes) == 0:
        return boxes, gt_labels.new_zeros(0), boxes
    if len(gt_boxes):
        best_iou, match = box_iou(boxes, gt_boxes).max(dim=1)
    else:
        best_iou, match = boxes.new_zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64)

    def sample(candidates: Tensor, count: int) -> Tensor:
        order = torch.randperm(len(candidates), generator=generator)
        return candidates[order[:count]]

    count = round(sampling.foreground_fraction * sampling.rois_per_image)
    foreground = torch.nonzero(best_iou >= sampling.foreground_iou).flatten()
    foreground = sample(foreground, len(foreground))
    if sampling.balance_objects and len(foreground):
        order = torch.randperm(len(gt_boxes), generator=generator)
        foreground = _take_turns(foreground, match, order)
    foreground = foreground[:count]
    below = best_iou < sampling.background_iou_high
    background = torch.nonzero(below & (best_iou >= sampling.background_iou_low)).flatten()
    if len(background) == 0:
        background = torch.nonzero(below).flatten()
    background = sample(background, sampling.rois_per_image - len(foreground))

    keep = torch.cat([foreground, background])
    labels = gt_labels.new_zeros(len(keep))
    matched = boxes[keep].clone()
    labels[: len(foreground)] = gt_labels[match[foreground]]
    matched[: len(foreground)] = gt_boxes[match[foreground]]
    return boxes[keep], labels, matched


def _take_turns(candidates: Tensor, match: Tensor, order: Tensor) -> Tensor:
    """Reorder candidates (F,): the first candidate of each object, then the second of each, and so on.

    `match` (P,) is the object of each proposal. Within a turn, the objects come in `order`, a random permutation (G,),
    because the caller may use only a part of the last turn.
    """
    owners = torch.nn.functional.one_hot(match[candidates], len(order))  # (F, G)
    turns = (owners.cumsum(dim=0) * owners).sum(dim=1)  # 1 for the first candidate of its object, 2 for the second
    return candidates[(turns * len(order) + order[match[candidates]]).argsort()]


def make_targets(batch: Batch, sampling: RoISampling, coder: BoxCoder, seed: int) -> RoiTargets:
    """Sample the RoIs of a batch; the result depends only on `seed` and each sample's position."""
    rois, labels, deltas = [], [], []
    for index, position in enumerate(batch.positions):
        generator = torch.Generator().manual_seed(seed_of(seed, Stream.ROIS, position))
        boxes, roi_labels, matched = sample_rois(
            batch.proposals[index], batch.gt_boxes[index], batch.gt_labels[index], sampling, generator
        )
        rois.append(with_batch_index(boxes, index))
        labels.append(roi_labels)
        deltas.append(coder.encode(matched, boxes))
    return RoiTargets.pack(torch.cat(rois), torch.cat(labels), torch.cat(deltas))


def delta_statistics(
    samples: TransformedDataset, image_hws: Sequence[tuple[int, int]], coder: BoxCoder, iou: float, boxes_per_roi: int
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (K, 4) of the box targets of each class, as in the paper's code.

    They are computed from all proposals with an IoU of at least `iou` and the objects themselves, over all images and
    their mirror images. `boxes_per_roi` is K, or 1 for the statistics (1, 4) of all classes together.

    A class with fewer than two such RoIs, or without any deviation, has mean 0 and deviation 1.
    """
    count = torch.zeros(boxes_per_roi, 1, dtype=torch.float64)
    total, squares = (torch.zeros(boxes_per_roi, 4, dtype=torch.float64) for _ in range(2))
    for index, image_hw in enumerate(image_hws):
        gt_boxes, gt_labels, proposals = (torch.from_numpy(array) for array in samples.boxes(index, image_hw))
        if len(gt_boxes) == 0:
            continue
        boxes = torch.cat([proposals, gt_boxes])
        best_iou, match = box_iou(boxes, gt_boxes).max(dim=1)
        row = torch.nonzero(best_iou >= iou).flatten()
        deltas = coder.encode(gt_boxes[match[row]], boxes[row]).double()
        labels = (gt_labels[match[row]] - 1).clamp(max=boxes_per_roi - 1)
        count.index_add_(0, labels, torch.ones(len(row), 1, dtype=torch.float64))
        total.index_add_(0, labels, deltas)
        squares.index_add_(0, labels, deltas**2)
    mean, square = total / count.clamp(min=1), squares / count.clamp(min=1)
    mean[:, 0] = 0  # mirroring changes the sign of dx
    std = (square - mean**2).clamp(min=0).sqrt()
    usable = (count > 1) & (std > 1e-3)
    return mean.where(usable, 0.0).float(), std.where(usable, 1.0).float()


def all_targets(batch: Batch, sampling: RoISampling, coder: BoxCoder, seed: int) -> RoiTargets:
    """Every RoI of the batch that is foreground or background by the thresholds of `sampling`, with its targets."""
    everything = sampling.with_values(rois_per_image=100_000, foreground_fraction=1.0, balance_objects=False)
    return make_targets(batch, everything, coder, seed)


@torch.no_grad()
def with_hardest_rois(
    model: nn.Module, batch: TrainBatch, rois_per_image: int, compute: Compute, loss: LossConfig
) -> TrainBatch:
    """The batch with the `rois_per_image` RoIs of each image that have the highest loss, after a forward pass without
    gradient (OHEM, Shrivastava et al. 2016).

    This reads from the device how many RoIs non-maximum suppression keeps.
    """
    model.train()
    targets = batch.targets
    class_logits, deltas = compute.forward(model, batch.images, targets.rois)
    cls, box = roi_losses(class_logits, deltas, targets, loss)
    image = targets.rois[:, 0]
    precise = torch.float32 if compute.device.type == "mps" else torch.float64  # Apple GPUs have no float64
    order = batched_nms(targets.rois[:, 1:].to(precise), (cls + box).to(precise), image.long(), NMS_IOU)
    hardest = [order[image[order] == index][:rois_per_image] for index in range(len(batch.images))]
    packed = targets.packed[torch.cat(hardest)]
    return replace(batch, targets=RoiTargets(packed), roi_counts=[len(rows) for rows in hardest])
