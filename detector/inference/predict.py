"""The prediction loop: detections of images, and the losses on them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from detector.boxes import BoxCoder, with_batch_index
from detector.errors import RunFailure
from detector.inference.postprocess import postprocess
from detector.runtime.device import Compute, peak_memory_mib
from detector.runtime.distributed import gather_interleaved
from detector.runtime.ranks import is_main
from detector.settings import Detect
from detector.structures import Batch, Detections, RoiTargets


@dataclass(frozen=True)
class DetectorConfig:
    """How the network's outputs become detections."""

    coder: BoxCoder
    postprocess: Detect


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    config: DetectorConfig,
    compute: Compute,
    sample_targets: Callable[[Batch], RoiTargets],
    loss: Callable[[Tensor, Tensor, RoiTargets], dict[str, Tensor]],
) -> tuple[list[Detections], dict[str, float]]:
    """Detections of every image, and the mean losses `cls` and `box` on RoIs sampled as in training.

    Each image passes through the network once: its proposals and the RoIs of the loss share the feature map. Several
    processes take the images in turn, and each returns the whole result.
    """
    model.eval()
    detections, losses = [], []
    for batch in tqdm(batches, unit="image", desc="evaluate", leave=False, disable=None if is_main() else True):
        targets = sample_targets(batch)
        class_logits, deltas = _predict(model, batch, torch.cat([targets.rois, _proposal_rois(batch)]), compute)
        sampled = len(targets.rois)
        losses.append(loss(class_logits[:sampled], deltas[:sampled], targets))
        outputs = class_logits[sampled:], deltas[sampled:]
        if config.postprocess.flip:
            outputs = _mean_with_mirrored(outputs, model, batch, compute)
        detections += _detections(outputs, batch, config)
    detections, losses = gather_interleaved(detections), gather_interleaved(losses)
    return detections, {name: float(torch.stack([item[name] for item in losses]).mean()) for name in ("cls", "box")}


@torch.inference_mode()
def detect(model: nn.Module, batch: Batch, config: DetectorConfig, compute: Compute) -> list[Detections]:
    """Detections of every image of a batch."""
    model.eval()
    outputs = _predict(model, batch, _proposal_rois(batch), compute)
    if config.postprocess.flip:
        outputs = _mean_with_mirrored(outputs, model, batch, compute)
    return _detections(outputs, batch, config)


def _proposal_rois(batch: Batch) -> Tensor:
    """The proposals of all images of the batch as RoIs (R, 5)."""
    return torch.cat([with_batch_index(boxes, index) for index, boxes in enumerate(batch.proposals)])


def _predict(model: nn.Module, batch: Batch, rois: Tensor, compute: Compute) -> tuple[Tensor, Tensor]:
    """Class logits and deltas of every RoI, in float32 on the CPU."""
    try:
        class_logits, deltas = compute.forward(model, batch.images, rois)
        return class_logits.float().cpu(), deltas.float().cpu()
    except torch.OutOfMemoryError as error:
        raise RunFailure(
            f"out of GPU memory at {', '.join(batch.image_ids)}: padded to {batch.images.shape[2]}x"
            f"{batch.images.shape[3]}, {len(rois)} RoIs, at most {peak_memory_mib(compute.device):.0f} MiB in use. "
            "Less is needed with smaller data.max_side_px or data.val_max_proposals, or with precision=bfloat16. "
            f"({str(error).splitlines()[0]})"
        ) from error


def _mean_with_mirrored(
    outputs: tuple[Tensor, Tensor], model: nn.Module, batch: Batch, compute: Compute
) -> tuple[Tensor, Tensor]:
    """The mean of these outputs for the proposals and of those for the mirrored images: of the scores, as logits, and
    of the deltas, in the frame that is not mirrored.
    """
    rois = _proposal_rois(batch)
    rois[:, [1, 3]] = batch.images.shape[3] - rois[:, [3, 1]]
    class_logits, deltas = _predict(model, replace(batch, images=batch.images.flip(3)), rois, compute)
    scores = (outputs[0].softmax(dim=1) + class_logits.softmax(dim=1)) / 2
    return scores.log(), (outputs[1] + deltas * deltas.new_tensor([-1.0, 1.0, 1.0, 1.0])) / 2


def _detections(outputs: tuple[Tensor, Tensor], batch: Batch, config: DetectorConfig) -> list[Detections]:
    """Detections from the outputs (P, ...) for the concatenated proposals of all images of the batch."""
    sizes = [len(boxes) for boxes in batch.proposals]
    return [
        postprocess(logits, moves, proposals, config.coder, image_id, image_hw, original_hw, config.postprocess)
        for logits, moves, proposals, image_id, image_hw, original_hw in zip(
            outputs[0].split(sizes),
            outputs[1].split(sizes),
            batch.proposals,
            batch.image_ids,
            batch.image_hws,
            batch.original_hws,
            strict=True,
        )
    ]
