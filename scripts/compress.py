"""Make the fully connected head of a trained network smaller and faster by truncated SVD (Fast R-CNN, section 3.1).

    python scripts/compress.py --checkpoint runs/mine/checkpoints/best.pt --ranks 256 256 --out small \\
        --data /data/mine --split val

writes model.safetensors and model.json to the folder OUT, which every program accepts like a checkpoint, and prints the
size of the head, its time for 2000 RoIs, and with --data the mAP (area at IoU 0.5), before and after.

With --fit, the layers reproduce the outputs of fc6 and fc7 for the proposals of training images, instead of the weights
(Zhang et al. 2015): a network that was trained from scratch loses less mAP. The images must be where they were in
training.
"""

import argparse
import statistics
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detector.data.command_line import add_dataset_options, given_dataset, require_no_dataset_options
from detector.data.dataset import DetectionDataset
from detector.data.image import image_options
from detector.errors import InputError
from detector.runtime.exits import exit_status
from detector.runtime.files import require_new

if TYPE_CHECKING:
    from torch import Tensor, nn

ROIS, ROUNDS = 2000, 9
FIT_IMAGES = 100


def main(command_line: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="RUN/checkpoints/best.pt")
    parser.add_argument(
        "--ranks", required=True, type=int, nargs=2, metavar=("FC6", "FC7"), help="ranks of fc6 and fc7"
    )
    parser.add_argument("--fit", action="store_true", help=f"fit to the outputs for {FIT_IMAGES} training images")
    parser.add_argument("--out", required=True, type=Path, help="folder to write to, new or empty")
    add_dataset_options(parser, required=False)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    arguments = parser.parse_args(command_line)
    return exit_status(lambda: run(arguments), "OUT has the whole compressed network or nothing")


def run(arguments: argparse.Namespace) -> None:
    if min(arguments.ranks) < 1:
        raise InputError(f"--ranks {arguments.ranks[0]} {arguments.ranks[1]}: must be above 0")
    if arguments.data is None:
        require_no_dataset_options(arguments, "--data")
    require_new("--out", arguments.out)
    # Imported here: torch takes seconds.
    from detector.builders.network import build_trained_model
    from detector.models.heads import FcHead
    from detector.training.checkpoint import load_checkpoint, trained_settings
    from detector.training.sharing import save_weights

    checkpoint = load_checkpoint(arguments.checkpoint)
    settings = trained_settings(checkpoint)
    dataset = None if arguments.data is None else given_dataset(arguments, image_options(settings.data))
    network = build_trained_model(settings.model, checkpoint["model"], len(checkpoint["classes"]))
    if not isinstance(network.head, FcHead):
        raise InputError(f"{arguments.checkpoint}: model.head={settings.model.head} has no fc6 and fc7 to compress")
    network.head.compress(arguments.ranks, *([output_moments(arguments)] if arguments.fit else []))
    model = settings.model.plain() | {"svd_ranks": arguments.ranks}
    compressed = checkpoint | {"model": network.state_dict(), "config": settings.with_values(model=model).plain()}
    save_weights(arguments.out, compressed)
    print(f"{'':9}{'head, MiB':>12}{'head, ms':>12}{'mAP':>10}")
    for name, path in (("before", arguments.checkpoint), ("after", arguments.out / "model.safetensors")):
        print(f"{name:9}" + measured(path, arguments.device, dataset))
    print(f"{arguments.out}/model.safetensors and model.json")


def output_moments(arguments: argparse.Namespace) -> "Iterator[tuple[Tensor, Tensor]]":
    """Mean and covariance of the outputs of fc6, then of fc7, for the proposals of images of the whole training set."""
    import torch

    import detector
    from detector.builders.datasets import build_dataset

    model = detector.load(arguments.checkpoint, arguments.device)
    dataset = build_dataset(model.settings.data, "train")
    head, lock = model.network.model.head, threading.Lock()
    moments = {layer: [0.0, 0.0, 0] for layer in (head.fc6, head.fc7)}  # sums of y and y y', and their number

    def add(layer: "nn.Module", inputs: object, output: "Tensor") -> None:
        y = output.float()
        with lock:  # images are processed on several threads
            found = moments[layer]
            moments[layer] = [found[0] + y.sum(0).double(), found[1] + (y.T @ y).double(), found[2] + len(y)]

    for layer in moments:
        layer.register_forward_hook(add)
    chosen = range(0, len(dataset), -(-len(dataset) // FIT_IMAGES))
    for result in model.stream({dataset.image_ids[index]: dataset.image_path(index) for index in chosen}):
        if isinstance(result, InputError):
            raise result
    for y, yy, count in moments.values():
        yield y / count, yy / count - torch.outer(y, y) / count**2


def measured(path: Path, device: str, dataset: DetectionDataset | None) -> str:
    """Size of the head's weights, its median time in the precision of inference, and mAP, as columns."""
    import torch

    import detector
    from scripts._measure import detect_and_score, for_classes_of, seconds

    model = detector.load(path, device)
    network, compute = model.network.model, model.network.compute
    size = model.settings.model.pool_size or 7
    pooled = torch.rand(ROIS, network.backbone.out_channels, size, size, device=compute.device)
    pooled = pooled.to(compute.dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        times = [seconds(lambda: network.head(pooled).sum().item()) for _ in range(ROUNDS)]
    weights = sum(value.numel() * 4 for value in network.head.parameters()) / 2**20
    score = None if dataset is None else detect_and_score(model, for_classes_of(model, dataset))[0]
    return f"{weights:12.1f}{1000 * statistics.median(times):12.1f}{'' if score is None else f'{score:10.4f}'}"


if __name__ == "__main__":
    sys.exit(main())
