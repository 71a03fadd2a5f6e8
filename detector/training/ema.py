"""The average of the weights over the steps, which is evaluated in place of the last ones."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the model's weights and buffers: `.module` is a model of the same kind.

    Each `update_parameters(model)` moves it by the part 1 - decay towards the model. The decay grows to its value over
    the first updates, so that the initial weights, which mean nothing, are soon gone.
    """

    @torch.no_grad()
    def move(averaged: Tensors, current: Tensors, updates: Tensor | int) -> None:
        if not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, current)
            return
        count = int(updates)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + count) / (10 + count)))

    return AveragedModel(model, multi_avg_fn=move, use_buffers=True)
