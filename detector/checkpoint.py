"""Checkpoints: one file with the weights and all that is needed to build the network around them."""

import io
from pathlib import Path

import torch
from torch import nn

from detector.errors import InputError
from detector.files import write_atomically
from detector.models.weights import read_state


def save_checkpoint(path: Path, model: nn.Module, config: dict, classes: tuple[str, ...], iteration: int) -> None:
    """Write `model` (state dict), `config` (the run's, resolved), `classes` and `iteration`, whole or not at all."""
    content = {"model": model.state_dict(), "config": config, "classes": list(classes), "iteration": iteration}
    data = io.BytesIO()
    torch.save(content, data)
    write_atomically(path, data.getvalue())


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint; tensors and plain values only, so that a stranger's file can run nothing.

    Raises InputError if the file is not there, is damaged, or is no checkpoint of this program.
    """
    content = read_state(path)
    missing = {"model", "config", "classes", "iteration"} - content.keys()
    if missing:
        raise InputError(f"{path}: not a checkpoint of this program: it has no {', '.join(sorted(missing))}")
    return content
