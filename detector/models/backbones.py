"""Backbones: from image to feature map. Depth and width are read from torchvision's networks."""

import itertools
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d

Net = TypeVar("Net", bound=nn.Module)
NORM_LAYERS = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.GroupNorm)


class Backbone(nn.Module):
    """(B, 3, H, W) normalised images -> (B, out_channels, H/stride, W/stride), or one such map for each level."""

    out_channels: int
    stride: int  # of the finest map
    ends_with_relu = False  # whether no value is negative, which export as ONNX uses
    levels = 1  # each further map has twice the stride of the one before it; with several, `forward` returns a list
    stages: list[nn.Module]  # in forward order; the first ones are frozen in fine-tuning
    norm_layers: tuple[type[nn.Module], ...] = NORM_LAYERS
    pixel_mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of ImageNet images, as torchvision's weights expect
    pixel_std: tuple[float, ...] = (0.229, 0.224, 0.225)


def build_backbone(name: str, norm: str) -> Backbone:
    """The backbone of this name (`model.backbone`), with the kind of norm layers in `NORMS`."""
    if name.startswith("timm/"):
        from detector.models.timm_body import TimmBody  # timm is an extra

        return TimmBody(name, norm)
    if not name.startswith("resnet"):
        return PlainBody(name, norm)
    base, variant = split_name(name)
    if variant == "dc5":
        return DilatedBody(resnet(base, norm, replace_stride_with_dilation=[False, False, True]))
    return (PyramidBody if variant == "fpn" else ResNetBody)(resnet(base, norm))


def split_name(name: str) -> tuple[str, str]:
    """The name of torchvision's network, and the variant: `fpn` or `dc5`, which also use a ResNet's layer4, or `""`."""
    base, _, variant = name.rpartition("_")
    return (base, variant) if variant in ("fpn", "dc5") else (name, "")


class PlainBody(Backbone):
    """The convolutions of AlexNet, ZF, VGG_CNN_M_1024 or a VGG, without the last pooling, which RoI pooling replaces
    (section 2.2). A stage ends with a max pooling.
    """

    stride = 16
    ends_with_relu = True

    def __init__(self, name: str, norm: str) -> None:
        super().__init__()
        layers = _five_convolutions(*CONV3_TO_5[name]) if name in CONV3_TO_5 else _features(name)
        self.features = _with_norm(nn.Sequential(*layers[:-1]), norm)
        ends = [end for end, layer in enumerate(self.features, start=1) if isinstance(layer, nn.MaxPool2d)]
        steps = itertools.pairwise([0, *ends, len(self.features)])
        self.stages = [self.features[start:end] for start, end in steps]
        self.out_channels = [layer.out_channels for layer in self.features if isinstance(layer, nn.Conv2d)][-1]

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)  # (B, 3, H, W) -> (B, C, H/16, W/16)


class ResNetBody(Backbone):
    """A ResNet up to its third stage, `layer3`: stride 16, as in Fast R-CNN on "C4" features."""

    stride = 16
    ends_with_relu = True

    def __init__(self, net: models.ResNet) -> None:
        super().__init__()
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.layer1, self.layer2, self.layer3 = net.layer1, net.layer2, net.layer3
        self.out_channels = net.layer4[0].conv1.in_channels  # what the next stage takes
        self.stages = [self.stem, self.layer1, self.layer2, self.layer3]

    def forward(self, images: Tensor) -> Tensor:
        for stage in self.stages:  # (B, 3, H, W) -> (B, C, H/16, W/16)
            images = stage(images)
        return images


class DilatedBody(ResNetBody):
    """A ResNet with its last stage, `layer4`, at stride 16: dilation 2 replaces its stride ("DC5", Dai et al. 2017)."""

    def __init__(self, net: models.ResNet) -> None:
        super().__init__(net)
        self.layer4, self.out_channels = net.layer4, net.fc.in_features
        self.stages.append(self.layer4)


class PyramidBody(Backbone):
    """A ResNet with a feature pyramid: four maps of 256 channels and strides 4, 8, 16, 32 (Lin et al. 2017)."""

    out_channels = 256
    stride = 4
    levels = 4

    def __init__(self, net: models.ResNet) -> None:
        super().__init__()
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        self.stages = [self.stem, self.layer1, self.layer2, self.layer3, self.layer4]
        widths = [layer[0].conv1.in_channels for layer in (net.layer2, net.layer3, net.layer4)]
        self.fpn = FeaturePyramidNetwork([*widths, net.fc.in_features], self.out_channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        images, maps = self.stem(images), {}
        for number, stage in enumerate(self.stages[1:]):
            maps[str(number)] = images = stage(images)
        return [*self.fpn(maps).values()]  # (B, 256, H/4, W/4) to (B, 256, H/32, W/32)


def resnet(name: str, norm: str, **arguments: list[bool]) -> models.ResNet:
    """torchvision's ResNet of this name, with this kind of norm layers (a key of NORMS)."""
    return _with_norm(models.get_model(name, **arguments), norm)


class FrozenNorm(FrozenBatchNorm2d):
    """Batch norm with fixed statistics and weights, which keeps the dtype of the maps.

    torchvision's version, which is used for float32, multiplies by float32: under autocast, all later maps would be
    float32.
    """

    def forward(self, maps: Tensor) -> Tensor:
        if maps.dtype == torch.float32:
            return super().forward(maps)
        return F.batch_norm(maps, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


# Batches of two images are too small to estimate batch statistics, so pretrained ones are kept: `frozen`.
NORMS: dict[str, Callable[..., nn.Module]] = {
    "frozen": FrozenNorm,
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(32, channels),
}


def _with_norm(net: Net, norm: str) -> Net:
    """The network with its batch norm layers replaced by those of this kind."""
    found = [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]
    for name in found:
        net.set_submodule(name, NORMS[norm](net.get_submodule(name).num_features))
    return net


def _features(name: str) -> nn.Sequential:
    """The convolutions of torchvision's network, with VGG's initialization. Its classifier is not initialized, to save
    time.
    """
    device = torch.get_default_device()
    with torch.device("meta"):
        features = models.get_model(name).features
    features.to_empty(device=device)
    if name == "alexnet":  # padded as in the paper's models, so that the map is aligned with the image
        features[0].padding = (5, 5)
        features[2].padding = features[5].padding = 1
    return _initialized(features)


# Channels of the last three of five convolutions: of ZF (Zeiler and Fergus 2014), and of VGG_CNN_M_1024, the paper's
# model M (Chatfield et al. 2014, table 1).
CONV3_TO_5 = {"zf": (384, 384, 256), "vgg_cnn_m": (512, 512, 512)}


def _five_convolutions(*last: int) -> nn.Sequential:
    """Five convolutions, the first two with stride 2, a local response normalization and a max pooling."""
    layers: list[nn.Module] = []
    for before, channels, size, stride, padding in ((3, 96, 7, 2, 3), (96, 256, 5, 2, 2)):
        layers += [nn.Conv2d(before, channels, size, stride, padding), nn.ReLU(inplace=True)]
        layers += [nn.LocalResponseNorm(size=5, alpha=5e-4, beta=0.75, k=2.0), nn.MaxPool2d(3, stride=2, padding=1)]
    for before, channels in itertools.pairwise((256, *last)):
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU(inplace=True)]
    return _initialized(nn.Sequential(*layers, nn.MaxPool2d(3, stride=2)))


def _initialized(features: nn.Sequential) -> nn.Sequential:
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
    return features
