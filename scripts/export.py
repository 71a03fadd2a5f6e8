"""Export trained weights for sharing.

    python scripts/export.py weights --checkpoint runs/mine/checkpoints/best.pt --out shared/mine

writes model.safetensors and model.json (classes, settings, iteration) without any path of this machine. They are
accepted in place of a checkpoint: python evaluate.py checkpoint=shared/mine/model.safetensors data=voc data.root=DIR

    python scripts/export.py torchvision --checkpoint runs/mine/checkpoints/best.pt --out resnet18.pth

writes the layers shared with torchvision's classification network, under its names. model.weights=resnet18.pth starts
another run from them, and torchvision loads them with load_state_dict(..., strict=False).
"""

import argparse
import io
import sys
from pathlib import Path

import torch

from detector.errors import InputError
from detector.models.weights import to_torchvision
from detector.runtime.exits import exit_status
from detector.runtime.files import write_atomically
from detector.training.checkpoint import load_checkpoint, save_weights, trained_settings
from detector.training.run_folder import require_writable


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("weights", help="weights as .safetensors, with a .json that describes them")
    command.add_argument("--checkpoint", required=True, type=Path, help="RUN/checkpoints/best.pt")
    command.add_argument("--out", required=True, type=Path, help="folder to write both files into")
    command.set_defaults(run=export_weights)
    command = commands.add_parser("torchvision", help="the backbone as a state dict of torchvision's network")
    command.add_argument("--checkpoint", required=True, type=Path, help="RUN/checkpoints/best.pt")
    command.add_argument("--out", required=True, type=Path, help="the file to write, such as resnet18.pth")
    command.set_defaults(run=export_torchvision)
    arguments = parser.parse_args()
    return exit_status(lambda: arguments.run(arguments), "no partial file is left")


def export_weights(arguments: argparse.Namespace) -> None:
    require_writable("--out", arguments.out)
    save_weights(arguments.out, load_checkpoint(arguments.checkpoint))
    print(f"{arguments.out}/model.safetensors and model.json")


def export_torchvision(arguments: argparse.Namespace) -> None:
    if arguments.out.suffix not in (".pth", ".pt"):
        raise InputError(f"--out: {arguments.out} must end in .pth or .pt")
    if arguments.out.exists():
        raise InputError(f"--out: {arguments.out} already exists and is not overwritten: name another file")
    require_writable("--out", arguments.out.parent)
    checkpoint = load_checkpoint(arguments.checkpoint)
    state = to_torchvision(checkpoint["model"], trained_settings(checkpoint).model.backbone)
    data = io.BytesIO()
    torch.save(state, data)
    write_atomically(arguments.out, data.getvalue())
    print(f"{arguments.out}: {len(state)} tensors")


if __name__ == "__main__":
    sys.exit(main())
