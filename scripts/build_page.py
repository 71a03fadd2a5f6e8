"""Write the interactive page about RoI pooling, docs/roi_pooling.html, from live tensors.

    python scripts/build_page.py --checkpoint runs/demo/checkpoints/last.pt --image data/shapes/JPEGImages/test_0003.jpg

The page is one file that needs no server and no network: the parts in scripts/roi_pooling_page/, with the data as JSON.
The data are the example map of detector/roi_pool; feature maps of the image, taken from a pass of the network that
detects the objects in it; and the time of a forward pass for many regions with and without a shared feature map,
measured on the CPU of this machine.
"""

import argparse
import base64
import doctest
import io
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import detector.roi_pool
from detector import builders, datasets
from detector.boxes import with_batch_index
from detector.data.image_files import find_files, image_dataset
from detector.data.loader import collate
from detector.errors import InputError
from detector.inference.predict import detect
from detector.models import FastRCNN
from detector.runtime.device import Compute
from detector.runtime.exits import exit_status
from detector.runtime.files import write_atomically
from detector.structures import Batch, Detections
from detector.training.checkpoint import load_checkpoint, trained_settings
from detector.training.run_folder import require_writable
from scripts.visualizations._sources import Searched

ROOT = Path(__file__).resolve().parents[1]
PARTS = ROOT / "scripts/roi_pooling_page"
PAGE = ROOT / "docs/roi_pooling.html"
CHANNELS, REGIONS, MIN_SCORE = 6, 4, 0.5
COUNTS = (1, 10, 30, 100, 300, 1000, 2000)  # regions per image, timed
CROPS_PER_PASS = 50


def main(command_line: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="the network: RUN/checkpoints/last.pt")
    parser.add_argument("--image", required=True, help="an image in which the network finds objects")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write (default: docs/roi_pooling.html)")
    parser.add_argument(
        "--counts",
        type=int,
        nargs="+",
        default=COUNTS,
        metavar="N",
        help="numbers of regions to time (default: 1 to 2000)",
    )
    arguments = parser.parse_args(command_line)
    return exit_status(lambda: run(arguments), "the page is not written")


def run(arguments: argparse.Namespace) -> None:
    if min(arguments.counts) < 1:
        raise InputError(f"--counts: {min(arguments.counts)} is not a number of regions: give integers from 1")
    require_writable("--out", arguments.out.parent)
    checkpoint = load_checkpoint(arguments.checkpoint)
    settings = trained_settings(checkpoint).with_values(device="cpu")
    dataset = image_dataset(find_files(arguments.image), checkpoint["classes"], datasets.image_options(settings.data))
    proposals = Searched(dataset, settings.proposals.mode, torch.get_num_threads())
    batch = collate([datasets.transformed_dataset_with(settings, dataset, proposals, "val")[0, 0]])
    model = builders.build_trained_model(settings.model, checkpoint["model"], len(dataset.classes))
    if not isinstance(model.roi_pool, detector.roi_pool.RoIPool):
        raise InputError(
            f"--checkpoint: {arguments.checkpoint} does not pool from one map by RoI pooling "
            f"(model.backbone={settings.model.backbone}, model.pooling={settings.model.pooling}): give another network"
        )
    compute = builders.build_compute(settings)
    compute.place(model)

    features: list[Tensor] = []
    hook = model.roi_pool.register_forward_hook(lambda layer, inputs, pooled: features.append(inputs[0]))
    (detections,) = detect(model, batch, builders.build_detector_config(settings), compute)
    hook.remove()
    regions = detected_regions(detections, batch, dataset.classes)
    if not regions:
        raise InputError(
            f"--image: the network finds nothing with a score of {MIN_SCORE} in {arguments.image}: give another image, "
            "or a network that is trained for longer"
        )
    timing = {"network": f"{settings.model.backbone} (stride {model.backbone.stride})", "machine": machine(compute)}
    page = render(
        {
            "article": article_example(),
            "photograph": photograph(features[0], batch, regions, model.backbone.stride),
            "timing": timing | measure(model, batch, compute, arguments.counts),
        }
    )
    write_atomically(arguments.out, page.encode())
    print(f"{arguments.out}: {len(page) / 1000:.0f} kB")


def render(data: dict[str, Any]) -> str:
    """The page with these data."""
    parts = {path.name: path.read_text() for path in PARTS.iterdir()}
    parts["data"] = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    return re.sub("@@(.+?)@@", lambda name: parts[name[1]].rstrip("\n"), parts["page.html"]) + "\n"


def article_example() -> dict[str, Any]:
    """The map and the region of the example in the docstring of detector/roi_pool."""
    names: dict[str, Any] = {}
    test = doctest.DocTestParser().get_doctest(detector.roi_pool.__doc__ or "", {}, "roi_pool", None, None)
    for example in test.examples[:3]:  # import torch, features, rois
        exec(example.source, names)
    features, rois = names["features"], names["rois"]
    return {**encoded_map(features[0]), "values": encode(features[0, 0]), "roi": rois[0, 1:].int().tolist()}


def photograph(features: Tensor, batch: Batch, regions: list[dict[str, Any]], stride: int) -> dict[str, Any]:
    """The image and the channels of its features (1, C, H, W) that vary most, in the network frame."""
    maps = features[0].float()
    numbers = maps.flatten(1).std(dim=1).topk(CHANNELS).indices.tolist()
    height, width = batch.image_hws[0]
    file = io.BytesIO()
    Image.fromarray(batch.images[0, :, :height, :width].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=82)
    return {
        **encoded_map(maps),
        "depth": len(maps),
        "stride": stride,
        "image_hw": [height, width],
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


def detected_regions(detections: Detections, batch: Batch, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Name, score and box, in integer pixels of the network frame, of each class's best detection, largest first."""
    scale = np.array(batch.image_hws[0][::-1] * 2) / np.array(batch.original_hws[0][::-1] * 2)
    boxes = (detections.boxes * scale).round().astype(int).tolist()
    best = {}
    for score, label, box in sorted(zip(detections.scores.tolist(), detections.labels.tolist(), boxes, strict=True)):
        if score >= MIN_SCORE:
            best[label] = {"name": classes[label - 1], "score": score, "box": box}
    by_area = sorted(best.values(), key=lambda region: area(region["box"]), reverse=True)
    return by_area[:REGIONS]


def area(box: Sequence[int]) -> int:
    x1, y1, x2, y2 = box
    return (x2 - x1) * (y2 - y1)


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


def seconds(function: Callable[[], Any]) -> float:
    """The time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def crop(images: Tensor, box: Tensor, side_px: int) -> Tensor:
    """The box of images (1, 3, H, W), resized to a square; at least one pixel."""
    x1, y1, x2, y2 = box.round().int().tolist()
    cut = images[:, :, min(y1, images.shape[2] - 1) : max(y2, y1 + 1), min(x1, images.shape[3] - 1) : max(x2, x1 + 1)]
    resized = torch.nn.functional.interpolate(cut.float(), size=(side_px, side_px), mode="bilinear")
    return resized.contiguous(memory_format=torch.channels_last)


def machine(compute: Compute) -> str:
    """Threads, processor and precision, such as "2 threads (AMD EPYC), in bfloat16"."""
    count = torch.get_num_threads()
    threads = "1 thread" if count == 1 else f"{count} threads"
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    processor = re.sub(r"\((R|TM)\)| CPU| [0-9]+-Core| Processor", "", name[1]).strip() if name else "x86-64"
    return f"{threads} ({processor}), in {str(compute.dtype).removeprefix('torch.')}"


if __name__ == "__main__":
    sys.exit(main())
