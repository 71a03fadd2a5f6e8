"""Parameter groups and default learning rates."""

import math

from torch import nn

from detector.errors import InputError


def parameter_groups(model: nn.Module, lr: float, weight_decay: float, bias_lr_factor: float) -> list[dict]:
    """Two groups for an optimizer: weights, and biases without decay at `bias_lr_factor` times the learning rate."""
    learning = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    biases = [parameter for name, parameter in learning if name.endswith("bias")]
    weights = [parameter for name, parameter in learning if not name.endswith("bias")]
    return [
        {"params": weights, "lr": lr, "weight_decay": weight_decay},
        {"params": biases, "lr": bias_lr_factor * lr, "weight_decay": 0.0},
    ]


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
