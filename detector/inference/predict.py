"""The prediction loop: detections of images, and the losses on them."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

from detector.boxes import BoxCoder, areas, with_batch_index
from detector.data.transforms import MIN_SIDE_PX
from detector.errors import RunFailure
from detector.inference.adaptive_threshold import above, best_of_each_class, class_thresholds
from detector.inference.postprocess import Candidates, ImageFrames, find_candidates, finish
from detector.inference.prepare import prepare
from detector.inference.stream import MOST_AT_ONCE, detect_stream, share_cores
from detector.roi_pool import RoIPool, distinct_rois
from detector.runtime.device import Compute, limit_threads, peak_memory_mib
from detector.runtime.distributed import gather_interleaved
from detector.runtime.ranks import is_main
from detector.settings import Detect
from detector.structures import Batch, Detections, RoiTargets

logger = logging.getLogger(__name__)

MAX_LONG_PX = 2000  # of the images of a pyramid (the paper's code)
Pending = tuple[Candidates, ImageFrames]  # of one image, before NMS
_gpu = threading.Lock()  # one image at a time: it fills the GPU


@dataclass(frozen=True)
class DetectorConfig:
    """How the network's outputs become detections."""

    coder: BoxCoder
    postprocess: Detect


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    config: DetectorConfig,
    compute: Compute,
    sample_targets: Callable[[Batch], RoiTargets],
    loss: Callable[[Tensor, Tensor, RoiTargets], dict[str, Tensor]],
) -> tuple[list[Detections], dict[str, float]]:
    """Detections of every image, and the mean losses `cls` and `box` on RoIs sampled as in training.

    Without flip and pyramid, each image passes through the network once: its proposals and the RoIs of the loss share
    the feature map. Several images are processed at once, each on its share of the cores. Several processes share the
    images, and each returns the complete result.
    """
    model, settings = prepare(model, compute), config.postprocess
    counts: list[tuple[int, int]] = []  # RoIs of each image, and those that are computed

    @torch.inference_mode()  # of the thread that calls it
    def evaluate_batch(batch: Batch) -> tuple[list[Detections], list[Pending], dict[str, Tensor]]:
        targets = sample_targets(batch)
        rois = targets.rois
        if not settings.pyramid_px:  # else proposals are scored at other scales
            rois = torch.cat([rois, _proposal_rois(batch)])
        class_logits, deltas, computed = _predict(model, batch, rois, compute)
        counts.append((len(rois), computed))
        sampled = len(targets.rois)
        losses = loss(class_logits[:sampled], deltas[:sampled], targets)
        outputs = predict(model, batch, settings, compute, (class_logits[sampled:], deltas[sampled:]))
        if settings.average_per_class:  # NMS follows when all scores are known
            pending = [(best_of_each_class(item), image) for item, image in _candidates(outputs, batch, config)]
            return [], pending, losses
        return _detections(outputs, batch, config), [], losses

    most = MOST_AT_ONCE if compute.device.type == "cpu" else 2  # the other is post-processed
    at_once, threads = share_cores(torch.get_num_threads(), most)
    stream = detect_stream(evaluate_batch, batches, at_once, partial(limit_threads, threads))
    total, disable = len(batches) if isinstance(batches, Sized) else None, None if is_main() else True
    results = list(tqdm(stream, total=total, unit="image", desc="evaluate", leave=False, disable=disable))
    every, computed = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    logger.info("RoIs: %d, of which %d pool the cells of another one and share its outputs", every, every - computed)
    detections = [item for of_batch, _, _ in results for item in of_batch]
    if settings.average_per_class:
        pending = [item for _, of_batch, _ in results for item in of_batch]
        thresholds = class_thresholds([item for item, _ in pending], settings.average_per_class)
        detections = [finish(above(item, thresholds), image, settings) for item, image in pending]
    detections, losses = gather_interleaved(detections), gather_interleaved([item for _, _, item in results])
    return detections, {name: float(torch.stack([item[name] for item in losses]).mean()) for name in ("cls", "box")}


@torch.inference_mode()
def detect(model: nn.Module, batch: Batch, config: DetectorConfig, compute: Compute) -> list[Detections]:
    """Detections of every image of a batch. For many batches, `prepare` the model first, which makes it faster."""
    model.eval()
    return _detections(predict(model, batch, config.postprocess, compute), batch, config)


def turn_on(device: torch.device) -> AbstractContextManager[object]:
    """A context for a forward pass; on a GPU, only one thread is inside at a time."""
    return nullcontext() if device.type == "cpu" else _gpu


def _proposal_rois(batch: Batch) -> Tensor:
    """The proposals of all images of the batch as RoIs (R, 5)."""
    return torch.cat([with_batch_index(boxes, index) for index, boxes in enumerate(batch.proposals)])


def _predict(model: nn.Module, batch: Batch, rois: Tensor, compute: Compute) -> tuple[Tensor, Tensor, int]:
    """Class logits and deltas of every RoI, in float32 on the CPU, and the number of RoIs that are computed. RoIs that
    pool the same cells are computed once.
    """
    distinct, index = _distinct(model, rois)
    try:
        with turn_on(compute.device):
            class_logits, deltas = compute.forward(model, batch.images, distinct)
            return class_logits.float().cpu()[index], deltas.float().cpu()[index], len(distinct)
    except torch.OutOfMemoryError as error:
        raise RunFailure(
            f"out of GPU memory at {', '.join(batch.image_ids)}: padded to {batch.images.shape[2]}x"
            f"{batch.images.shape[3]}, {len(rois)} RoIs, at most {peak_memory_mib(compute.device):.0f} MiB in use. "
            "To reduce memory, lower data.max_side_px or data.val_max_proposals, or use precision=bfloat16. "
            f"({str(error).splitlines()[0]})"
        ) from error


def _distinct(model: nn.Module, rois: Tensor) -> tuple[Tensor, Tensor]:
    """As `distinct_rois`, if the network pools all RoIs from one map by RoI pooling; else all of them.

    RoI Align does not round the corners, and in a feature pyramid the level depends on the size of a RoI.
    """
    pool = getattr(model, "roi_pool", None)
    return distinct_rois(rois, pool.spatial_scale) if isinstance(pool, RoIPool) else (rois, torch.arange(len(rois)))


def predict(
    model: nn.Module, batch: Batch, settings: Detect, compute: Compute, plain: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Class logits and deltas of all proposals by the settings for detection; `plain` are those of a plain pass."""
    if settings.pyramid_px:
        outputs = _predict_pyramid(model, batch, settings.pyramid_px, compute)
    else:
        outputs = plain or _predict(model, batch, _proposal_rois(batch), compute)[:2]
    if settings.flip:
        others = predict(model, mirrored(batch), settings.with_values(flip=False), compute)
        scores = (outputs[0].softmax(dim=1) + others[0].softmax(dim=1)) / 2
        outputs = scores.log(), (outputs[1] + others[1] * others[1].new_tensor([-1.0, 1.0, 1.0, 1.0])) / 2
    return outputs


def mirrored(batch: Batch) -> Batch:
    """The batch with each image, and its proposals, mirrored left to right; padding stays where it is."""
    images, proposals = batch.images.clone(), []
    for image, boxes, (height, width) in zip(images, batch.proposals, batch.image_hws, strict=True):
        image[:, :height, :width] = image[:, :height, :width].flip(2)
        proposals.append(torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1))
    return replace(batch, images=images, proposals=proposals)


def _predict_pyramid(
    model: nn.Module, batch: Batch, sides_px: Sequence[int], compute: Compute
) -> tuple[Tensor, Tensor]:
    """Class logits and deltas of all proposals, each from the scale of its image where its area is closest to 224 x 224
    pixels (He et al. 2014; Fast R-CNN, section 2.4).
    """
    rows, class_logits, deltas, first = [], [], [], 0
    for image, boxes, (height, width) in zip(batch.images, batch.proposals, batch.image_hws, strict=True):
        scales = torch.tensor([min(side / min(height, width), MAX_LONG_PX / max(height, width)) for side in sides_px])
        level = (areas(boxes)[:, None] * scales**2 - 224**2).abs().argmin(dim=1)
        for number, scale in enumerate(scales.tolist()):
            row = torch.nonzero(level == number).flatten()
            if len(row) == 0:
                continue
            size = max(round(height * scale), MIN_SIDE_PX), max(round(width * scale), MIN_SIDE_PX)
            source = image[None, :, :height, :width].float()
            scaled = nn.functional.interpolate(source, size, mode="bilinear", antialias=True).round().to(torch.uint8)
            moved = boxes[row] * boxes.new_tensor([size[1] / width, size[0] / height] * 2)
            outputs = _predict(model, replace(batch, images=scaled), with_batch_index(moved, 0), compute)
            rows.append(row + first)
            class_logits.append(outputs[0])
            deltas.append(outputs[1])
        first += len(boxes)
    if not rows:
        return _predict(model, batch, _proposal_rois(batch), compute)[:2]
    order = torch.cat(rows).argsort()
    return torch.cat(class_logits)[order], torch.cat(deltas)[order]


def _candidates(
    outputs: tuple[Tensor, Tensor], batch: Batch, config: DetectorConfig
) -> Iterator[tuple[Candidates, ImageFrames]]:
    """The candidates of each image, from the outputs (P, ...) for the concatenated proposals of all of the batch."""
    sizes = [len(boxes) for boxes in batch.proposals]
    images = zip(batch.proposals, batch.image_ids, batch.image_hws, batch.original_hws, strict=True)
    split = zip(outputs[0].split(sizes), outputs[1].split(sizes), images, strict=True)
    for logits, moves, (proposals, image_id, image_hw, original_hw) in split:
        found = find_candidates(logits, moves, proposals, config.coder, image_hw, config.postprocess)
        yield found, ImageFrames(image_id, image_hw, original_hw)


def _detections(outputs: tuple[Tensor, Tensor], batch: Batch, config: DetectorConfig) -> list[Detections]:
    """Detections of each image of the batch."""
    return [finish(found, image, config.postprocess) for found, image in _candidates(outputs, batch, config)]
