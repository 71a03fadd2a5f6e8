"""Heads: from the pooled features of each RoI, (R, C, h, w), to a vector, (R, out_features).

Pooled maps are in channels_last memory format, and the fully connected heads read them in that order (h, w, c), so
there is no copy between pooling and the first layer. Weights trained in the order (c, h, w) are permuted once, when
they are loaded.
"""

from torch import Tensor, nn

from detector.models.backbones import resnet


def flatten(pooled: Tensor) -> Tensor:
    """(R, C, h, w) -> (R, h*w*C)."""
    return pooled.permute(0, 2, 3, 1).flatten(1)


class Head(nn.Module):
    """(R, C, h, w) pooled features -> (R, out_features)."""

    out_features: int


class FcHead(Head):
    """Two fully connected layers with ReLU; the original fc6 and fc7 of VGG16 have 4096 units and dropout 0.5."""

    def __init__(self, in_channels: int, pool_size: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_channels * pool_size**2, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.out_features = hidden
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        hidden = self.dropout(self.relu(self.fc6(flatten(pooled))))
        return self.dropout(self.relu(self.fc7(hidden)))


class Res5Head(Head):
    """The last stage of a ResNet, `layer4`, on each pooled map, then the mean over its cells."""

    def __init__(self, backbone: str, frozen_norm: bool) -> None:
        super().__init__()
        net = resnet(backbone, frozen_norm)
        self.layer4 = net.layer4
        self.out_features = net.fc.in_features

    def forward(self, pooled: Tensor) -> Tensor:
        return self.layer4(pooled).mean(dim=(2, 3))
