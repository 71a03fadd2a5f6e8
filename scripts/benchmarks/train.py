"""A training step against the same network assembled from torchvision's parts.

    python scripts/benchmark.py train --networks VGG16 "ResNet-18, 320 px"

Both start from equal weights, and their losses are compared first. Both run in turn on the same images and RoIs: ours
in float32 and bfloat16, the peer in float32. Milliseconds are medians. The rate of the convolutions and matrix products
of our step is given as a fraction of that of one large matrix product, the limit. A second table divides one more step
of each by kind of operator.
"""

import argparse
import copy
from functools import partial

import numpy as np
import torch

from detector.boxes import BoxCoder
from detector.runtime.device import Compute, resolve_device
from detector.settings import RoISampling
from detector.structures import RoiTargets, TrainBatch
from detector.training.engine import TrainingConfig, train_step
from scripts._measure import at_least_one, machine
from scripts.benchmarks import _torchvision as peers

CASES = {"VGG16": (2, 64), "ResNet-18, 320 px": (4, 64), "ResNet-50": (2, 64)}  # images, RoIs of each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--images", type=at_least_one, help="of a step (default: 2, or 4 of ResNet-18)")
    parser.add_argument("--rounds", type=at_least_one, default=5)
    parser.add_argument("--device", default="auto")


def run(arguments: argparse.Namespace) -> None:
    print(f"{machine()}; torch {torch.__version__}; median of {arguments.rounds} rounds\n")
    device = resolve_device(arguments.device)
    peers.show_tables([measure(name, arguments.images, arguments.rounds, device) for name in arguments.networks])


def measure(name: str, images: int | None, rounds: int, device: torch.device) -> peers.Measured:
    images, rois_per_image = images or CASES[name][0], CASES[name][1]
    ours, peer, image_hw = peers.networks(name, train=True)
    pixels = torch.randint(0, 256, (images, 3, *image_hw), dtype=torch.uint8)
    rois = peers.random_rois(rois_per_image, images, image_hw)
    labels = torch.where(torch.arange(len(rois)) % 4 == 0, torch.arange(len(rois)) % peers.NUM_CLASSES + 1, 0)
    targets = RoiTargets.pack(rois, labels, torch.randn(len(rois), 4))
    hws, nothing = [image_hw] * images, [np.zeros((0, 4), np.float32)] * images
    batch = TrainBatch([""] * images, hws, nothing, pixels, targets, [rois_per_image] * images).to(device)
    config = TrainingConfig(RoISampling(), BoxCoder(RoISampling().delta_std), seed=0)

    peer.to(device)
    theirs = torch.optim.SGD(peer.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)
    functions = {"torchvision": partial(peers.peer_step, peer, batch.images.float(), batch.targets, theirs)}
    for dtype_name, dtype in peers.DTYPES.items():
        compute, network = Compute(device, dtype), copy.deepcopy(ours)
        compute.place(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4, fused=True)
        functions[dtype_name] = partial(train_step, network, batch, optimizer, compute, config)
    wanted, found = functions["torchvision"](), functions["float32"]()["loss/train"]
    assert abs(found - wanted) < 1e-3 * abs(wanted), f"the losses differ: {found} and {wanted}"
    case: dict[str, object] = {"network": f"{name}, {images} x {rois_per_image} RoIs"}
    return peers.measured(case, functions, rounds, device)
