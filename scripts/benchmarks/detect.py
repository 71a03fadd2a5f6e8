"""Detection against the same network assembled from torchvision's parts.

    python scripts/benchmark.py detect --networks VGG16 --proposals 1 300 2000 4000 --classes 20 80

From an image and its proposals to detections, with equal weights; the scores of both are compared first. Both run in
turn on the same image: ours in float32 and bfloat16, the peer in float32. Milliseconds are medians. The rate of the
convolutions and matrix products is given as a fraction of that of one large matrix product, the limit. A second table
divides one more call of each by kind of operator.
With --svd-ranks, ours is also measured with truncated SVD of fc6 and fc7 (section 3.1 of the paper).
"""

import argparse
import itertools
from functools import partial

import torch

from detector.boxes import BoxCoder
from detector.inference.predict import DetectorConfig, detect
from detector.inference.prepare import prepare
from detector.runtime.device import Compute, resolve_device
from detector.settings import Detect, RoISampling
from detector.structures import Batch
from scripts._measure import at_least_one, machine
from scripts.benchmarks import _torchvision as peers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", nargs="+", choices=list(peers.NETWORKS), default=list(peers.NETWORKS))
    parser.add_argument("--proposals", nargs="+", type=at_least_one, default=[300, 2000])
    parser.add_argument(
        "--classes", nargs="+", type=at_least_one, default=[peers.NUM_CLASSES], help="numbers of classes"
    )
    parser.add_argument("--svd-ranks", nargs=2, type=at_least_one, help="of fc6 and fc7")
    parser.add_argument("--rounds", type=at_least_one, default=5)
    parser.add_argument("--device", default="auto")


def run(arguments: argparse.Namespace) -> None:
    print(f"{machine()}; torch {torch.__version__}; median of {arguments.rounds} rounds\n")
    cases = itertools.product(arguments.networks, arguments.classes, arguments.proposals)
    device = resolve_device(arguments.device)
    peers.show_tables([measure(*case, arguments.svd_ranks, arguments.rounds, device) for case in cases])


@torch.inference_mode()
def measure(
    name: str, classes: int, proposals: int, svd_ranks: list[int] | None, rounds: int, device: torch.device
) -> peers.Measured:
    ours, peer, (height, width) = peers.networks(name, train=False, num_classes=classes)
    pixels = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    rois = peers.random_rois(proposals, 1, (height, width))
    empty = [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)]
    batch = Batch(["image"], [0], pixels, [(height, width)], [(height, width)], *empty, [rois[:, 1:]])
    config = DetectorConfig(BoxCoder(RoISampling().delta_std), Detect())
    inputs = pixels.float().to(device), rois[:, 1:].to(device)
    functions = {"torchvision": partial(peers.peer_detect, peer.to(device), *inputs)}
    for dtype_name, dtype in peers.DTYPES.items():
        compute = Compute(device, dtype)
        functions[dtype_name] = partial(detect, prepare(ours, compute), batch, config, compute)
    if svd_ranks is not None and peer.has_fc6:
        compute = Compute(device, torch.float32)
        ours.head.compress(svd_ranks)
        functions["float32, SVD"] = partial(detect, prepare(ours, compute), batch, config, compute)
    scores = functions["torchvision"]()[1].cpu().sort(descending=True).values
    (found,) = functions["float32"]()
    torch.testing.assert_close(torch.from_numpy(found.scores), scores, rtol=1e-3, atol=1e-4)
    return peers.measured({"network": name, "classes": classes, "proposals": proposals}, functions, rounds, device)
