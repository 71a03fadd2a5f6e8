"""A trained network made ready for inference: norm layers folded into convolutions, weights cast once."""

import copy
import itertools
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

from detector.models.timm_body import TimmBody
from detector.runtime.device import Compute

Network = TypeVar("Network", bound=nn.Module)


@torch.no_grad()
def prepare(model: Network, compute: Compute) -> Network:
    """A copy of the network for inference only, on the device of `compute`, with equal outputs up to rounding.

    Batch norm with fixed statistics is a scale and a shift of each channel, which become part of the convolution before
    it. Networks of timm keep their norm layers: these can contain the activation, and the order of the layers in a
    module need not be the order of computation. Convolutions and linear layers are cast to the dtype of `compute` once
    instead of for each image.
    """
    model = copy.deepcopy(model).eval()
    of_timm = {module for body in model.modules() if isinstance(body, TimmBody) for module in body.modules()}
    for module in [module for module in model.modules() if module not in of_timm]:
        for (_, layer), (name, norm) in itertools.pairwise([*module.named_children()]):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
                assert norm.running_mean is not None
                assert norm.running_var is not None
                layer.weight, layer.bias = fuse_conv_bn_weights(
                    layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                )
                module.set_submodule(name, nn.Identity())
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(compute.dtype)
    compute.place(model)
    return model.requires_grad_(False)
