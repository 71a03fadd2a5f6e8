"""The moving average of the weights, which is evaluated instead of the latest weights."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]


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
