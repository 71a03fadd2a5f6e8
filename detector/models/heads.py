"""Heads: from the pooled features of each RoI, (R, C, h, w), to a vector, (R, out_features).

Pooled maps are in channels_last memory format, and the fully connected heads read them in that order (h, w, c), so
there is no copy between pooling and the first layer. Weights trained in the order (c, h, w) are permuted once, when
they are loaded.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from detector.errors import InputError
from detector.models.backbones import resnet


def flatten(pooled: Tensor) -> Tensor:
    """(R, C, h, w) -> (R, h*w*C)."""
    return pooled.permute(0, 2, 3, 1).flatten(1)


class Head(nn.Module):
    """(R, C, h, w) pooled features -> (R, out_features)."""

    out_features: int


class FcHead(Head):
    """Two fully connected layers with ReLU; the original fc6 and fc7 of VGG16 have 4096 units and dropout 0.5.

    With svd_ranks, each is a product of two layers, as `compress` builds them.
    """

    fc6: nn.Linear | nn.Sequential
    fc7: nn.Linear | nn.Sequential

    def __init__(
        self,
        in_channels: int,
        pool_size: int,
        hidden: int,
        dropout: float,
        hidden_last: int | None = None,
        svd_ranks: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.out_features = hidden_last or hidden
        self.fc6 = nn.Linear(in_channels * pool_size**2, hidden)
        self.fc7 = nn.Linear(hidden, self.out_features)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        if svd_ranks is not None:
            self._factorize(svd_ranks)

    def forward(self, pooled: Tensor) -> Tensor:
        hidden = self.dropout(self.relu(self.fc6(flatten(pooled))))
        return self.dropout(self.relu(self.fc7(hidden)))

    def compress(self, ranks: Sequence[int], moments: Iterable[tuple[Tensor, Tensor] | None] = (None, None)) -> None:
        """Replace fc6 and fc7 by truncated singular value decompositions of these ranks (section 3.1).

        W = U S V' becomes a layer S V' without bias and a layer U with the bias of the original.

        With `moments`, the mean (D,) and the covariance (D, D) of the D outputs of each layer before the ReLU, the
        outputs are reproduced instead of the weights: U has the first eigenvectors of the covariance, and y = W x + b
        becomes U U' (y - mean) + mean (Zhang et al. 2015, low-rank approximation of responses). They are read after the
        ranks are checked.
        """
        for layer, factors, rank, found in zip(*self._factorize(ranks), ranks, moments, strict=True):
            weight, bias = layer.weight.detach(), layer.bias.detach()
            if found is None:
                u = torch.linalg.svd(weight, full_matrices=False).U[:, :rank]
            else:
                mean, covariance = (moment.to(weight) for moment in found)
                u = torch.linalg.eigh(covariance).eigenvectors[:, -rank:]
                bias = mean + u @ (u.T @ (bias - mean))
            factors[0].weight.data, factors[1].weight.data = u.T @ weight, u.contiguous()
            factors[1].bias.data = bias

    def _factorize(self, ranks: Sequence[int]) -> tuple[list[nn.Linear], list[nn.Sequential]]:
        """Replace fc6 and fc7 by two untrained layers each. Raises InputError for ranks that they cannot have.

        Returns the former layers, and the replacement of each.
        """
        layers, products = [], []
        for name, layer, rank in zip(("fc6", "fc7"), (self.fc6, self.fc7), ranks, strict=True):
            if not isinstance(layer, nn.Linear):
                raise InputError(f"svd_ranks={[*ranks]}: the network is compressed already")
            if rank > min(layer.weight.shape):
                raise InputError(f"svd_ranks={[*ranks]}: {name} has a rank of {min(layer.weight.shape)} at most")
            first, second = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features)
            layers.append(layer)
            products.append(nn.Sequential(first, second).to(layer.weight.device))
        self.fc6, self.fc7 = products
        return layers, products


class ConvFcHead(Head):
    """Four convolutions of 256 channels and one fully connected layer (Wu and He 2018, section 5); `grouped`: with
    group norm after each convolution.
    """

    def __init__(self, in_channels: int, pool_size: int, hidden: int, grouped: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (in_channels, 256, 256, 256):
            layers.append(nn.Conv2d(channels, 256, 3, padding=1))
            layers += [nn.GroupNorm(32, 256)] if grouped else []
            layers.append(nn.ReLU(inplace=True))
        self.convs = nn.Sequential(*layers)
        self.fc6 = nn.Linear(256 * pool_size**2, hidden)
        self.out_features = hidden
        for layer in (*self.convs, self.fc6):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.fc6(flatten(self.convs(pooled))).relu()


class Res5Head(Head):
    """The last stage of a ResNet, `layer4`, on each pooled map, then the mean over its cells."""

    def __init__(self, backbone: str, norm: str) -> None:
        super().__init__()
        net = resnet(backbone, norm)
        self.layer4 = net.layer4
        self.out_features = net.fc.in_features

    def forward(self, pooled: Tensor) -> Tensor:
        return self.layer4(pooled).mean(dim=(2, 3))
