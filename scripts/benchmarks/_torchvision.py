"""The peer of the benchmarks of whole networks: Fast R-CNN assembled from torchvision's parts, in float32."""

import copy
import statistics
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.roi_heads import RoIHeads

from detector.models import FastRCNN, build_model
from detector.settings import Model
from detector.structures import RoiTargets
from scripts._measure import seconds, show
from scripts.benchmarks._stages import stages, wait_for

Measured = tuple[dict[str, object], list[dict[str, object]]]  # a row of times, and rows of stages

NUM_CLASSES = 20
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # of ours
NETWORKS = {  # name: settings of the model, images (height, width)
    "VGG16": (Model(backbone="vgg16", hidden=4096), (600, 800)),
    "ResNet-18, 320 px": (Model(backbone="resnet18"), (320, 427)),
    "ResNet-50": (Model(backbone="resnet50"), (600, 800)),
    "ResNet-50 res5": (Model(backbone="resnet50", head="res5"), (600, 800)),
}


class Assembly(nn.Module):
    """The same network with torchvision's RoI pooling and contiguous maps, and the same weights."""

    def __init__(self, ours: FastRCNN, pool_size: int) -> None:
        super().__init__()
        self.network = copy.deepcopy(ours).to(memory_format=torch.contiguous_format)
        self.roi_pool = torchvision.ops.RoIPool(pool_size, 1 / ours.backbone.stride)
        self.has_fc6 = hasattr(ours.head, "fc6")
        if self.has_fc6:  # flattened in the order (c, h, w), so that there is no copy before it
            weight = self.network.head.fc6.weight
            ordered = weight.detach().unflatten(1, (pool_size, pool_size, -1)).permute(0, 3, 1, 2).flatten(1)
            weight.data = ordered.contiguous()

    def forward(self, images: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        """As FastRCNN."""
        network = self.network
        pooled = self.roi_pool(network.backbone((images - network.mean) / network.std), rois)
        if self.has_fc6:
            hidden = network.head.fc7(network.head.fc6(pooled.flatten(1)).relu()).relu()
        else:
            hidden = network.head(pooled)
        return network.cls_score(hidden), network.bbox_pred(hidden).unflatten(1, (-1, 4))


def networks(name: str, train: bool, num_classes: int = NUM_CLASSES) -> tuple[FastRCNN, Assembly, tuple[int, int]]:
    """Ours and the peer with equal weights, and the size of their images."""
    settings, image_hw = NETWORKS[name]
    torch.manual_seed(0)
    ours = build_model(settings, num_classes).train(train)
    nn.init.normal_(ours.cls_score.weight, std=0.1)  # else all scores are alike, and NMS has as many boxes as there are
    peer = Assembly(ours, 14 if settings.head == "res5" else 7).train(train)
    return ours, peer, image_hw


def random_rois(count: int, images: int, image_hw: tuple[int, int]) -> Tensor:
    """RoIs (R, 5), equally many per image, with sides from 20 pixels to the whole image, uniform in the logarithm."""
    generator = torch.Generator().manual_seed(0)
    image_wh = torch.tensor([image_hw[1], image_hw[0]])
    sides = 20 * (image_wh / 20) ** torch.rand(images * count, 2, generator=generator)
    corners = torch.rand(images * count, 2, generator=generator) * (image_wh - sides)
    return torch.cat([torch.arange(images).repeat_interleave(count)[:, None], corners, corners + sides], dim=1)


def peer_step(peer: Assembly, images: Tensor, targets: RoiTargets, optimizer: torch.optim.Optimizer) -> float:
    """A training step as torchvision's reference scripts do it."""
    class_logits, deltas = peer(images, targets.rois)
    foreground = torch.where(targets.labels > 0)[0]
    predicted = deltas[foreground, targets.labels[foreground] - 1]
    box = F.smooth_l1_loss(predicted, targets.deltas[foreground], reduction="sum") / len(targets.labels)
    loss = F.cross_entropy(class_logits, targets.labels) + box
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def peer_detect(peer: Assembly, images: Tensor, proposals: Tensor) -> list[Tensor]:
    """Detections of one image: boxes, scores and labels, by torchvision's RoIHeads."""
    heads = RoIHeads(None, None, None, 0.5, 0.5, 64, 0.25, (10.0, 10.0, 5.0, 5.0), 0.05, 0.3, 100)
    class_logits, deltas = peer(images, torch.cat([torch.zeros(len(proposals), 1), proposals], dim=1))
    with_background = torch.cat([torch.zeros(len(deltas), 4), deltas.flatten(1)], dim=1)
    found = heads.postprocess_detections(class_logits, with_background, [proposals], [tuple(images.shape[2:])])
    return [of_image[0] for of_image in found]


def measured(
    case: dict[str, object], functions: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> Measured:
    """The case with the columns of `compared`, and for each function the case with those of `stages`."""
    row = case | compared(functions, rounds, device)
    return row, [case | {"program": name} | stages(function, device) for name, function in functions.items()]


def show_tables(results: Sequence[Measured]) -> None:
    """Print what `measured` returned for each case."""
    show([row for row, _ in results])
    print()
    show([row for _, divided in results for row in divided])


def compared(functions: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each function; for ours, how many times as fast as `torchvision` they are, and the rate of
    their convolutions and matrix products as a fraction of that of one large matrix product in the same dtype.

    They are called in turn, and the first round does not count.
    """
    turns = [{name: timed(function, device) for name, function in functions.items()} for _ in range(rounds + 1)]
    medians = {name: statistics.median(turn[name] for turn in turns[1:]) for name in functions}
    row = {}
    for name, function in functions.items():
        row[f"{name} ms"] = 1e3 * medians[name]
        if name != "torchvision":
            row[f"{name}: times as fast"] = medians["torchvision"] / medians[name]
            limit = matmul_rate(DTYPES[name.partition(",")[0]], device)
            row[f"{name}: of the rate of a matrix product"] = flops(function) / medians[name] / limit
    return row


def timed(function: Callable[[], object], device: torch.device) -> float:
    """The seconds of one call, with what it starts on a GPU."""
    wait_for(device)
    return seconds(lambda: (function(), wait_for(device)))


def flops(function: Callable[[], object]) -> int:
    """Floating point operations of the convolutions and matrix products in one call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Floating point operations per second of a matrix product of this machine, the best of ten."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size).to(device, dtype) for _ in range(2))
    return 2 * size**3 / min(timed(lambda: a @ b, device) for _ in range(10))
