"""Backbones of timm (the extra [timm]): networks with features of stride 16 for images of any size."""

from typing import Any

import torch
from torch import Tensor, nn

from detector.errors import InputError
from detector.models.backbones import NORM_LAYERS, Backbone

STRIDE = 16
PREFIX = "timm/"


class TimmBody(Backbone):
    """A network of timm up to its features of stride 16. It is built without weights: none are downloaded.

    A stage ends where timm's own features of one stride end; images are normalised as timm's weights expect.
    """

    stride = STRIDE

    def __init__(self, name: str, norm: str) -> None:
        super().__init__()
        self.net, ends = _build(name)
        self.out_channels = self.net.feature_info.channels()[-1]
        mean, std = (self.net.pretrained_cfg[key] for key in ("mean", "std"))
        self.pixel_mean, self.pixel_std = tuple(mean), tuple(std)
        timm = _timm(name)
        if norm == "group" and any(isinstance(module, nn.BatchNorm2d) for module in self.net.modules()):
            raise InputError(f"model.norm=group: {name} takes frozen or batch")
        if norm == "frozen":
            self.net = timm.layers.freeze_batch_norm_2d(self.net)
        self.norm_layers = (*NORM_LAYERS, timm.layers.FrozenBatchNormAct2d)
        self.stages = _stages(self.net, ends)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)[0]  # (B, 3, H, W) -> (B, C, H/16, W/16)


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError:
        raise InputError(
            f'model.backbone={name}: needs the package timm: uv pip install timm, or ".[timm]" with this program'
        ) from None
    return timm


def _build(name: str) -> tuple[Any, set[str]]:
    """The network, and the names of the modules that give features, with _ for each dot.

    Raises InputError for a name that is not in timm.list_models(), and for a network that does not fit.
    """
    timm, own_name = _timm(name), name.removeprefix(PREFIX)
    if not timm.is_model(own_name):
        near = timm.list_models(f"{own_name.split('_')[0]}*")[:10]
        raise InputError(f"model.backbone={name}: timm has no such network; it has {', '.join(near) or 'others'}")
    reject = f"model.backbone={name}: {{}}; convolutional networks, such as timm/convnext_tiny, do"
    try:
        with torch.device("meta"):
            info = timm.create_model(own_name, pretrained=False, features_only=True).feature_info
    except Exception as error:  # networks without features have no common error
        raise InputError(reject.format(f"does not offer its features ({_first_line(error)})")) from None
    if STRIDE not in info.reduction():
        raise InputError(reject.format(f"has no features of stride {STRIDE}, but {info.reduction()}"))
    index = info.reduction().index(STRIDE)
    options = {"features_only": True, "out_indices": (index,)}
    try:
        with torch.device("meta"):
            small = timm.create_model(own_name, pretrained=False, **options).eval()
            for height, width in ((72, 104), (100, 150)):
                [features] = small(torch.zeros(1, 3, height, width))
                _, _, rows, columns = features.shape
                if not (abs(rows - height / STRIDE) < 1 and abs(columns - width / STRIDE) < 1):
                    raise ValueError(f"{height}x{width} gives {rows}x{columns}")
    except Exception as error:
        raise InputError(reject.format(f"does not take images of any size ({_first_line(error)})")) from None
    return timm.create_model(own_name, pretrained=False, **options), {
        module.replace(".", "_") for module in info.module_name()[: index + 1]
    }


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _stages(net: nn.Module, ends: set[str]) -> list[nn.Module]:
    """The modules of the network in their order, grouped so that each group ends with one that gives features.

    Modules after the last of these are not used and are removed; some networks keep them.
    """
    groups: list[list[tuple[nn.Module, str]]] = [[]]
    for name, child in net.named_children():
        is_split = isinstance(child, nn.Sequential) and name not in ends
        for parent, part in [(child, part) for part, _ in child.named_children()] if is_split else [(net, name)]:
            groups[-1].append((parent, part))
            if (f"{name}_{part}" if is_split else name) in ends:
                groups.append([])
    *stages, unused = groups
    for parent, part in unused:
        setattr(parent, part, nn.Identity())
    return [nn.ModuleList(getattr(parent, part) for parent, part in stage) for stage in stages]


def name_prefixes(net: nn.Module) -> dict[str, str]:
    """Prefixes of timm's state dict -> prefixes of this program's model. timm names `stages.0` `stages_0` here."""
    names = [name for name, _ in net.named_children()]
    return {f"{'.'.join(name.rsplit('_', 1))}.": f"backbone.net.{name}." for name in names} | {
        f"{name}.": f"backbone.net.{name}." for name in names
    }
