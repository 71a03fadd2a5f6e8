"""Export trained weights for sharing.

    python scripts/export.py weights --checkpoint runs/mine/checkpoints/best.pt --out shared/mine

writes model.safetensors and model.json (classes, settings, iteration) without any path of this machine. They are
accepted in place of a checkpoint: python evaluate.py checkpoint=shared/mine/model.safetensors data=voc data.root=DIR

    python scripts/export.py torchvision --checkpoint runs/mine/checkpoints/best.pt --out resnet50.pth

writes the layers shared with torchvision's classification network, under its names. model.weights=resnet50.pth starts
another run from them, and torchvision loads them with load_state_dict(..., strict=False).

    python scripts/export.py onnx --checkpoint runs/mine/checkpoints/best.pt --out model.onnx

writes the whole network in float32: images (B, 3, H, W) uint8 and rois (R, 5) in, scores (R, K+1) and boxes (R, K, 4)
out, and compares it with the checkpoint. It runs without torch: python scripts/detect.py --checkpoint model.onnx ...
It needs the extra [onnx]: uv pip install onnx onnxruntime onnxscript.

Beside model.safetensors and model.onnx there is a model card, model.md.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from detector.errors import InputError
from detector.runtime.exits import exit_status
from detector.runtime.files import require_new_file, require_writable, write_atomically


def main(command_line: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    weights = commands.add_parser("weights", help="weights as .safetensors, with a .json that describes them")
    weights.add_argument("--out", required=True, type=Path, help="folder for the files")
    weights.set_defaults(run=export_weights)
    torchvision = commands.add_parser("torchvision", help="the backbone as a state dict of torchvision's network")
    torchvision.add_argument("--out", required=True, type=Path, help="a new .pth file")
    torchvision.set_defaults(run=export_torchvision)
    network = commands.add_parser("onnx", help="the whole network as an .onnx file")
    network.add_argument("--out", required=True, type=Path, help="a new .onnx file")
    network.set_defaults(run=export_network)
    for command in (weights, torchvision, network):
        command.add_argument("--checkpoint", required=True, type=Path, help="RUN/checkpoints/best.pt")
    for command in (weights, network):
        command.add_argument(
            "--licence", default="not stated", help="licence of the weights, for the model card (default: %(default)s)"
        )
    arguments = parser.parse_args(command_line)
    return exit_status(lambda: arguments.run(arguments), "no partial file is left")


# The exports import what they need after their arguments are validated: torch takes seconds.


def export_weights(arguments: argparse.Namespace) -> None:
    for name in ("model.safetensors", "model.json", "model.md"):
        if (path := arguments.out / name).exists():
            raise InputError(f"--out: {path} already exists and is not overwritten: name another folder")
    require_writable("--out", arguments.out)
    from detector.training.checkpoint import load_checkpoint
    from detector.training.sharing import metrics_beside, model_card, save_weights

    checkpoint = load_checkpoint(arguments.checkpoint)
    card = model_card(checkpoint, metrics_beside(arguments.checkpoint, checkpoint["iteration"]), arguments.licence)
    save_weights(arguments.out, checkpoint)
    write_atomically(arguments.out / "model.md", card.encode())
    print(f"{arguments.out}/model.safetensors, model.json and model.md")


def export_network(arguments: argparse.Namespace) -> None:
    require_new_file("--out", arguments.out, ".onnx")
    require_new_file("--out", arguments.out.with_suffix(".md"))
    from detector.boxes import BoxCoder
    from detector.builders.network import build_trained_model
    from detector.inference.onnx_export import TOLERANCE, export_onnx
    from detector.inference.onnx_network import FORMAT, require_supported
    from detector.training.checkpoint import load_checkpoint, trained_settings
    from detector.training.sharing import describe_network, metrics_beside, model_card

    checkpoint = load_checkpoint(arguments.checkpoint)
    card = model_card(checkpoint, metrics_beside(arguments.checkpoint, checkpoint["iteration"]), arguments.licence)
    settings = trained_settings(checkpoint)
    require_supported(settings, arguments.checkpoint)
    model = build_trained_model(settings.model, checkpoint["model"], len(checkpoint["classes"]))
    about = describe_network(checkpoint) | {"format": FORMAT}
    content = export_onnx(model, BoxCoder(settings.roi.delta_std), about)
    write_atomically(arguments.out, content)
    write_atomically(arguments.out.with_suffix(".md"), card.encode())
    print(f"{arguments.out}: {len(content) / 2**20:.0f} MiB, equal to the checkpoint to {TOLERANCE:g}, and its card")


def export_torchvision(arguments: argparse.Namespace) -> None:
    require_new_file("--out", arguments.out, ".pth", ".pt")
    import torch

    from detector.models.weights import to_torchvision
    from detector.training.checkpoint import load_checkpoint, trained_settings

    checkpoint = load_checkpoint(arguments.checkpoint)
    state = to_torchvision(checkpoint["model"], trained_settings(checkpoint).model.backbone)
    data = io.BytesIO()
    torch.save(state, data)
    write_atomically(arguments.out, data.getvalue())
    print(f"{arguments.out}: {len(state)} tensors")


if __name__ == "__main__":
    sys.exit(main())
