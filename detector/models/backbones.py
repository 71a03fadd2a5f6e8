"""Backbones: from image to feature map."""

import itertools

from torch import Tensor, nn
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d


class Backbone(nn.Module):
    """(B, 3, H, W) normalised images -> (B, out_channels, H/stride, W/stride)."""

    out_channels: int
    stride: int
    stages: list[nn.Module]  # in forward order; the first ones are frozen in fine-tuning


class VGG16Body(Backbone):
    """The 13 convolutions of VGG16 without the last pooling, which RoI pooling replaces (section 2.2)."""

    out_channels = 512
    stride = 16

    def __init__(self) -> None:
        super().__init__()
        self.features = models.vgg16().features[:-1]
        self.stages = [self.features[start:end] for start, end in itertools.pairwise([0, 5, 10, 17, 24, 30])]

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)  # (B, 3, H, W) -> (B, 512, H/16, W/16)


class ResNetBody(Backbone):
    """A ResNet up to its third stage, `layer3`: stride 16, as in Fast R-CNN on "C4" features."""

    stride = 16

    def __init__(self, name: str, frozen_norm: bool) -> None:
        super().__init__()
        net = resnet(name, frozen_norm)
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.layer1, self.layer2, self.layer3 = net.layer1, net.layer2, net.layer3
        self.out_channels = net.layer4[0].conv1.in_channels  # what the next stage takes
        self.stages = [self.stem, self.layer1, self.layer2, self.layer3]

    def forward(self, images: Tensor) -> Tensor:
        for stage in self.stages:  # (B, 3, H, W) -> (B, C, H/16, W/16)
            images = stage(images)
        return images


def resnet(name: str, frozen_norm: bool) -> models.ResNet:
    """torchvision's ResNet of this name. `frozen_norm`: batch norm keeps the loaded statistics.

    Batches of two images are too small to estimate batch statistics, so pretrained ones are kept.
    """
    return models.get_model(name, norm_layer=FrozenBatchNorm2d if frozen_norm else nn.BatchNorm2d)
