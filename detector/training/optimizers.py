"""Parameter groups, default learning rates, and the moving average of the weights."""

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from detector.errors import InputError
from detector.settings import Optimizer

Tensors = tuple[Tensor, ...] | list[Tensor]


def parameter_groups(model: nn.Module, settings: Optimizer) -> list[dict]:
    """The parameters that learn, in groups with a learning rate and a weight decay each: weights, biases, and the
    weights of norm layers if these decay differently.
    """
    assert settings.lr is not None
    norms = {
        id(parameter)
        for module in model.modules()
        if "Norm" in type(module).__name__  # containers such as Conv2dNormActivation match, but own no parameters
        for parameter in module.parameters(recurse=False)
    }
    learning = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    biases = [parameter for name, parameter in learning if name.endswith("bias")]
    weights = [parameter for name, parameter in learning if not name.endswith("bias")]
    decay, bias_rate = settings.weight_decay, settings.bias_lr_factor * settings.lr
    groups = [
        {"params": weights, "lr": settings.lr, "weight_decay": decay},
        {"params": biases, "lr": bias_rate, "weight_decay": settings.bias_decay_factor * decay},
    ]
    if settings.norm_decay_factor != 1:
        groups[0]["params"] = [parameter for parameter in weights if id(parameter) not in norms]
        of_norms = [parameter for parameter in weights if id(parameter) in norms]
        groups.append({"params": of_norms, "lr": settings.lr, "weight_decay": settings.norm_decay_factor * decay})
    return groups


def default_rate(optimizer: str, images_per_batch: int, pretrained: bool) -> float:
    """The base learning rate for a batch of `images_per_batch` images (docs/recipes.md has the measurements).

    SGD's is proportional to the batch size: the paper's 0.001 for two images fine-tunes pretrained weights, and
    training from scratch needs ten times that. AdamW divides each gradient by its magnitude, whose noise shrinks with
    the square root of the batch size. Raises InputError for any other class.
    """
    if optimizer == "torch.optim.SGD":
        return images_per_batch * (0.0005 if pretrained else 0.005)
    if optimizer == "torch.optim.AdamW":
        return math.sqrt(images_per_batch) * (0.00005 if pretrained else 0.00015)
    raise InputError(f"optimizer.lr: {optimizer} has no default rate: give one")


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the model's weights and buffers: `.module` is a model of the same class.

    Each `update_parameters(model)` moves it towards the model by the fraction 1 - decay. The decay is smaller during
    the first updates, so that the influence of the initial weights vanishes quickly.
    """

    @torch.no_grad()
    def move(averaged: Tensors, current: Tensors, updates: Tensor | int) -> None:
        if not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, current)
            return
        count = int(average.n_averaged)  # on the CPU, unlike `updates`: reading it does not wait for the GPU
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + count) / (10 + count)))

    average = AveragedModel(model, multi_avg_fn=move, use_buffers=True)
    return average
