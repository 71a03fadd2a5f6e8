"""RoI pooling against torchvision's roi_pool and roi_align, with bandwidth and peak memory.

    python scripts/benchmark.py roi_pool --output roi_pool.json
    python scripts/benchmark.py roi_pool --rois 2000 --channels 512 --dtypes float32 bfloat16 --threads 1 2

Every case times the operators in turn, in several rounds, on the same feature maps and RoIs, and shows the fastest
round. The maps are those of a 600 x 1000 pixel image at stride 16 (38 x 63 cells), one for all RoIs as at test time,
or with --images 2 as in training. Each operator gets its preferred memory format and is timed from its arguments to
its result, including allocation (ours reuses the memory of a freed result); `both` is forward and backward to the
maps' gradient. `fill` and `copy` write to allocated memory of the result's size.
"""

import argparse
import json
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from detector.roi_pool import roi_pool
from scripts._measure import at_least_one, show

MAP_HW = 38, 63
SCALE = 1 / 16
POOLED = 7
PEERS = {
    "ours": roi_pool,
    "roi_pool": torchvision.ops.roi_pool,
    # The settings closest to pooling: as many samples as torchvision's detectors use.
    "roi_align": lambda *inputs: torchvision.ops.roi_align(*inputs, sampling_ratio=2, aligned=True),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rois", type=at_least_one, nargs="+", default=[128, 300, 1000, 2000, 8000])
    parser.add_argument("--channels", type=at_least_one, nargs="+", default=[512])
    parser.add_argument("--images", type=at_least_one, default=1, help="feature maps, each with its share of the RoIs")
    parser.add_argument("--threads", type=at_least_one, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=at_least_one, default=5)
    parser.add_argument("--peers", nargs="+", default=["roi_pool", "roi_align"], choices=list(PEERS)[1:])
    parser.add_argument("--output", type=Path, help="write the measurements as JSON")


def proposals(count: int, images: int, device: str) -> Tensor:
    """RoIs (R, 5) with sizes from 20 pixels to the whole image, uniform in the logarithm."""
    generator = torch.Generator().manual_seed(0)
    image_wh = torch.tensor([MAP_HW[1], MAP_HW[0]]) / SCALE
    sizes = 20 * (image_wh / 20) ** torch.rand(count, 2, generator=generator)
    corners = torch.rand(count, 2, generator=generator) * (image_wh - sizes)
    index = torch.arange(count)[:, None] * images // count
    return torch.cat([index, corners, corners + sizes], 1).to(device)


def timed(function: Callable[[], Any], device: str) -> float:
    """Seconds of one call; freeing its result is not timed."""
    if device != "cpu":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = function()
    if device != "cpu":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    del result
    return seconds


def case_functions(features: Tensor, rois: Tensor, peers: list[str]) -> dict[str, Callable[[], Any]]:
    """The timed functions: forward and both of every operator, filling the result, and copying it."""
    last = features.contiguous(memory_format=torch.channels_last)
    result = roi_pool(last, rois, POOLED, SCALE)
    grad = torch.randn_like(result)
    source, target = torch.ones_like(result), torch.ones_like(result)
    functions: dict[str, Callable[[], Any]] = {"fill": lambda: target.fill_(1), "copy": lambda: target.copy_(source)}
    for name in ["ours", *peers]:
        inputs, inputs_grad, inputs_rois = (last, grad, rois)
        if name != "ours":
            inputs, inputs_grad = features.contiguous(), grad.contiguous()
            if inputs.dtype != torch.float32:  # torchvision has no 16-bit kernels: users convert
                inputs, inputs_grad = inputs.float(), inputs_grad.float()
        leaf = inputs.clone().requires_grad_()

        def forward(peer=PEERS[name], inputs=inputs, rois=inputs_rois):  # type: ignore[no-untyped-def]
            return peer(inputs, rois, POOLED, SCALE)

        def both(peer=PEERS[name], leaf=leaf, rois=inputs_rois, grad=inputs_grad):  # type: ignore[no-untyped-def]
            return torch.autograd.grad(peer(leaf, rois, POOLED, SCALE), leaf, grad)

        functions |= {f"{name} forward": forward, f"{name} both": both}
    return functions


def measure(features: Tensor, rois: Tensor, arguments: argparse.Namespace) -> dict[str, float]:
    """Minimum milliseconds of every function, and the bandwidth of ours for the bytes that must move."""
    functions = case_functions(features, rois, arguments.peers)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(arguments.rounds):
        for name, function in functions.items():
            seconds[name].append(timed(function, arguments.device))
    row = {f"{name} ms": 1e3 * min(times) for name, times in seconds.items()}
    written = len(rois) * features.shape[1] * POOLED**2 * features.element_size()
    row["ours, times fill"] = row["ours forward ms"] / row["fill ms"]
    row["ours GB/s"] = (written + features.nbytes) / row["ours forward ms"] / 1e6
    row["of copy bandwidth"] = row["ours GB/s"] / (2 * written / row["copy ms"] / 1e6)
    for peer in arguments.peers:
        for part in ("forward", "both"):
            row[f"{part}, times {peer}"] = row[f"{peer} {part} ms"] / row[f"ours {part} ms"]
    return row


MEMORY_PROBE = r"""
import re, sys, torch, torchvision
from scripts.benchmarks.roi_pool import PEERS, POOLED, SCALE, proposals
name, rois, needs_grad = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "both"
features = torch.randn(1, 512, 38, 63)
if name == "ours":
    features = features.contiguous(memory_format=torch.channels_last)
features.requires_grad_(needs_grad)
rois = proposals(rois, 1, "cpu")
warm = PEERS[name](features, rois[:2], POOLED, SCALE)  # loads code and starts threads
if needs_grad:
    warm.sum().backward()
features.grad = None
peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
before = peak()
pooled = PEERS[name](features, rois, POOLED, SCALE)
if needs_grad:
    grad = torch.ones_like(pooled)
    torch.autograd.grad(pooled, features, grad)
given = pooled.nbytes * (2 if needs_grad else 1) + (features.nbytes if needs_grad else 0)
print((peak() - before) * 1024 - given)
"""


def peak_memory(peer: str, rois: int, part: str) -> float:
    """Peak memory of a process in MB above inputs and results, for float32, 512 channels, one image."""
    command = [sys.executable, "-c", MEMORY_PROBE, peer, str(rois), part]
    root = Path(__file__).resolve().parents[2]
    return int(subprocess.run(command, capture_output=True, check=True, text=True, cwd=root).stdout) / 1e6


def run(arguments: argparse.Namespace) -> None:
    logging.captureWarnings(True)
    device = arguments.device
    machine = platform.processor() or platform.machine()
    if device != "cpu":
        machine = torch.cuda.get_device_name(device)
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    print(f"{machine}; {versions}; least of {arguments.rounds} rounds\n")
    rows = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for dtype in arguments.dtypes:
            for channels in arguments.channels:
                for count in arguments.rois:
                    features = torch.randn(arguments.images, channels, *MAP_HW, device=device)
                    case = {"threads": threads, "dtype": dtype, "channels": channels, "rois": count}
                    features = features.to(getattr(torch, dtype))
                    rows.append(case | measure(features, proposals(count, arguments.images, device), arguments))
    show(rows)
    memory = []
    if device == "cpu" and sys.platform == "linux":
        for part in ("forward", "both"):
            for name in ("ours", *arguments.peers):
                size = peak_memory(name, 2000, part)
                memory.append({"operator": name, "2000 RoIs": part, "MB above inputs and results": size})
        print()
        show(memory)
    if arguments.output:
        content = {"machine": machine, "torch": torch.__version__, "cases": rows, "memory": memory}
        arguments.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
