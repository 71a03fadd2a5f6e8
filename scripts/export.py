"""Write what was learned in a form to share.

    python scripts/export.py weights --checkpoint runs/mine/checkpoints/best.pt --out shared/mine

writes model.safetensors and model.json (classes, settings, iteration) without any path of this machine. They are taken
wherever a checkpoint is: python evaluate.py checkpoint=shared/mine/model.safetensors data=voc data.root=DIR
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detector.checkpoint import load_checkpoint, save_weights
from detector.errors import run_script
from detector.run_folder import require_writable


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("weights", help="weights as .safetensors, with a .json that describes them")
    command.add_argument("--checkpoint", required=True, type=Path, help="RUN/checkpoints/best.pt")
    command.add_argument("--out", required=True, type=Path, help="folder to write both files into")
    command.set_defaults(run=export_weights)
    arguments = parser.parse_args()
    return run_script(lambda: arguments.run(arguments), "nothing half written is left")


def export_weights(arguments: argparse.Namespace) -> None:
    require_writable("--out", arguments.out)
    save_weights(arguments.out, load_checkpoint(arguments.checkpoint))
    print(f"{arguments.out}/model.safetensors and model.json")


if __name__ == "__main__":
    sys.exit(main())
