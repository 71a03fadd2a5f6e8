"""Which parameters learn, and at which rate."""

from torch import nn


def parameter_groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict]:
    """Two groups for an optimizer: weights, and biases at twice the rate without decay (the paper's code)."""
    learning = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    biases = [parameter for name, parameter in learning if name.endswith("bias")]
    weights = [parameter for name, parameter in learning if not name.endswith("bias")]
    return [
        {"params": weights, "lr": lr, "weight_decay": weight_decay},
        {"params": biases, "lr": 2 * lr, "weight_decay": 0.0},
    ]


def default_rate(images_per_batch: int, pretrained: bool) -> float:
    """A base learning rate in proportion to the batch.

    The paper's 0.001 for two images fine-tunes pretrained weights; training from scratch, with batch norm, wants ten
    times that.
    """
    return images_per_batch * (0.0005 if pretrained else 0.005)
