"""The data of the interactive page about RoI pooling, from the tensors of a trained network."""

import argparse
import base64
import io
import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from detector.boxes import with_batch_index
from detector.errors import InputError
from detector.models import FastRCNN
from detector.roi_pool import RoIPool
from detector.runtime.device import Compute
from detector.structures import Batch
from detector.visualization.pooling import ARTICLE_MAP, ARTICLE_OUTPUT_HW, ARTICLE_REGION
from scripts._measure import processor, seconds
from scripts.visualizations import _trained

CHANNELS, REGIONS = 6, 4
CROPS_PER_PASS = 50


def page_contents(arguments: argparse.Namespace) -> dict[str, Any]:
    """The data of the page: article, photograph and timing, which is measured here. Raises InputError."""
    seen = _trained.forward(arguments)
    _trained.require_one_scale(seen.settings)
    model = seen.settings.model
    if not isinstance(seen.model.roi_pool, RoIPool):
        raise InputError(
            f"--checkpoint: {arguments.checkpoint} does not pool from one map by RoI pooling "
            f"(model.backbone={model.backbone}, model.pooling={model.pooling}): give another network"
        )
    regions = detected_regions(seen)
    if not regions:
        raise InputError(
            f"--image: the network finds nothing with a score of {arguments.score_threshold} in {arguments.image}: "
            "give another image, or a network that is trained for longer"
        )
    network = f"{model.backbone} (stride {seen.model.backbone.stride})"
    timing = {"network": network, "machine": conditions(seen.compute)}
    return {
        "article": article_example(),
        "photograph": photograph(seen, regions),
        "timing": timing | measure(seen.model, seen.batch, seen.compute, arguments.counts),
    }


def article_example() -> dict[str, Any]:
    """The map of the article "Region of Interest Pooling Explained", its region and its output size."""
    features = torch.from_numpy(ARTICLE_MAP)
    roi = [int(corner) for corner in ARTICLE_REGION]
    return {**encoded_map(features[None]), "values": encode(features), "roi": roi, "output": [*ARTICLE_OUTPUT_HW]}


def photograph(seen: _trained.Pass, regions: list[dict[str, Any]]) -> dict[str, Any]:
    """The image and the channels of its features that vary most, in the network frame."""
    maps = seen.features[0].float()  # (C, H, W)
    numbers = maps.flatten(1).std(dim=1).topk(CHANNELS).indices.tolist()
    file = io.BytesIO()
    Image.fromarray(seen.image).save(file, "JPEG", quality=82)
    return {
        **encoded_map(maps),
        "depth": len(maps),
        "stride": seen.model.backbone.stride,
        "image_hw": [*seen.image.shape[:2]],
        "jpeg": f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}",
        "channels": [encode(maps[number]) for number in numbers],
        "channel_numbers": numbers,
        "regions": regions,
    }


def encoded_map(features: Tensor) -> dict[str, int]:
    return {"height": features.shape[1], "width": features.shape[2]}


def encode(values: Tensor) -> str:
    """The little-endian float32 values in row-major order, in base64."""
    return base64.b64encode(values.contiguous().numpy().astype("<f4").tobytes()).decode()


def detected_regions(seen: _trained.Pass) -> list[dict[str, Any]]:
    """Name, score and box, in integer pixels of the network frame, of each class's best detection, largest first."""
    found, kept = seen.candidates, seen.kept
    boxes, labels = found.boxes[kept].round().int().tolist(), found.labels[kept].tolist()
    best: dict[int, dict[str, Any]] = {}
    for score, label, box in zip(seen.scores.tolist(), labels, boxes, strict=True):  # the best ones first
        best.setdefault(label, {"name": seen.classes[label - 1], "score": score, "box": box})

    def area(region: dict[str, Any]) -> int:
        x1, y1, x2, y2 = region["box"]
        return (x2 - x1) * (y2 - y1)

    return sorted(best.values(), key=area, reverse=True)[:REGIONS]


@torch.inference_mode()
def measure(model: FastRCNN, batch: Batch, compute: Compute, counts: Sequence[int]) -> dict[str, Any]:
    """Seconds up to the pooled features of N proposals, which are repeated if there are fewer: of one pass over the
    image and of RoI pooling, and of one pass per proposal, resized so that its whole feature map has the pooled size.
    The fastest of ten rounds, and of three rounds or one.
    """
    images = batch.images.contiguous(memory_format=torch.channels_last)
    crop_px = model.roi_pool.output_size * model.backbone.stride
    proposals = batch.proposals[0]

    def backbone(images: Tensor) -> Tensor:
        with torch.autocast("cpu", compute.dtype, enabled=compute.dtype != torch.float32):
            return model.backbone((images - model.mean) / model.std)

    def shared(boxes: Tensor) -> list[float]:
        features = []
        backbone_s = seconds(lambda: features.append(backbone(images)))
        return [backbone_s, seconds(lambda: model.roi_pool(features[0], with_batch_index(boxes, 0)))]

    def separate(boxes: Tensor) -> None:
        for some in boxes.split(CROPS_PER_PASS):
            backbone(torch.cat([crop(images, box, crop_px) for box in some]))

    measured = []
    shared(proposals)  # the first calls compile
    separate(proposals[:CROPS_PER_PASS])
    for count in counts:
        boxes = proposals[torch.arange(count) % len(proposals)]
        backbone_s, pooling_s = min((shared(boxes) for _ in range(10)), key=sum)
        separate_s = min(seconds(lambda boxes=boxes: separate(boxes)) for _ in range(3 if count <= 100 else 1))
        measured.append({"regions": count, "backbone_s": backbone_s, "pooling_s": pooling_s, "separate_s": separate_s})
    return {"measured": measured, "crop_px": crop_px, "image_hw": [*images.shape[2:]]}


def crop(images: Tensor, box: Tensor, side_px: int) -> Tensor:
    """The box of images (1, 3, H, W), resized to a square; at least one pixel."""
    x1, y1, x2, y2 = box.round().int().tolist()
    cut = images[:, :, min(y1, images.shape[2] - 1) : max(y2, y1 + 1), min(x1, images.shape[3] - 1) : max(x2, x1 + 1)]
    resized = torch.nn.functional.interpolate(cut.float(), size=(side_px, side_px), mode="bilinear")
    return resized.contiguous(memory_format=torch.channels_last)


def conditions(compute: Compute) -> str:
    """Threads, processor and precision, such as "2 threads (AMD EPYC), in bfloat16"."""
    count = torch.get_num_threads()
    threads = "1 thread" if count == 1 else f"{count} threads"
    name = re.sub(r"\((R|TM)\)| CPU| [0-9]+-Core| Processor", "", processor()).strip()
    return f"{threads} ({name}), in {str(compute.dtype).removeprefix('torch.')}"
