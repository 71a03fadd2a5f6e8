"""Make proposals for a data set by selective search.

    python scripts/proposals.py generate --data ROOT --split trainval --out FILE.safetensors

ROOT is in VOC layout and is only read. A run that was stopped goes on where it was when called again.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detector.data.generate import generate_proposals
from detector.data.proposals import ProposalStore
from detector.data.voc import VocDataset
from detector.errors import InputError
from detector.run_folder import require_writable
from detector.selective_search import MODES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("generate", help="selective search over all images of a split")
    command.add_argument("--data", required=True, type=Path, help="root of a data set in VOC layout")
    command.add_argument("--split", required=True, help="file in ImageSets/Main, without .txt")
    command.add_argument("--out", required=True, type=Path, help="the store to write, FILE.safetensors")
    command.add_argument("--mode", default="fast", choices=list(MODES), help="how thoroughly (default: %(default)s)")
    command.add_argument("--workers", type=int, default=os.cpu_count(), help="images at a time (default: all cores)")
    command.set_defaults(run=generate)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        arguments.run(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def generate(arguments: argparse.Namespace) -> None:
    if arguments.out.suffix != ".safetensors":
        raise InputError(f"--out: {arguments.out} must end in .safetensors")
    if arguments.out.exists():
        raise InputError(f"--out: {arguments.out} is there already, and nothing is overwritten")
    if arguments.workers < 1:
        raise InputError(f"--workers: {arguments.workers} must be 1 or more")
    require_writable("--out", arguments.out.parent)
    reader = VocDataset(arguments.data, arguments.split)
    generate_proposals(reader, arguments.out, arguments.mode, arguments.workers)
    store = ProposalStore(arguments.out)
    count = sum(len(store[image_id]) for image_id in store.image_ids)
    print(f"{arguments.out}: {count} boxes of {len(store)} images, {count / len(store):.0f} an image")


if __name__ == "__main__":
    main()
