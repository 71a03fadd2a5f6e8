"""Write the interactive page about RoI pooling, docs/roi_pooling.html, from the tensors of a trained network.

    python scripts/build_page.py --checkpoint runs/demo/checkpoints/last.pt --image data/shapes/JPEGImages/test_0003.jpg

The page is one file that needs no server and no network: the parts in scripts/roi_pooling_page/, with the data as JSON.
The data are the map of the article "Region of Interest Pooling Explained"; feature maps of the image, from a pass of
the network that detects its objects; and the time of a forward pass for many regions with and without a shared feature
map, measured on the CPU of this machine.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detector.errors import InputError
from detector.runtime.exits import exit_status
from detector.runtime.files import require_writable, write_atomically

ROOT = Path(__file__).resolve().parents[1]
PARTS = ROOT / "scripts/roi_pooling_page"
PAGE = ROOT / "docs/roi_pooling.html"
MIN_SCORE = 0.5
COUNTS = (1, 10, 30, 100, 300, 1000, 2000)  # regions per image, timed


def main(command_line: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="the network: RUN/checkpoints/last.pt")
    parser.add_argument("--image", required=True, type=Path, help="an image in which the network finds objects")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write (default: docs/roi_pooling.html)")
    parser.add_argument(
        "--counts",
        type=int,
        nargs="+",
        default=COUNTS,
        metavar="N",
        help="numbers of regions to time (default: 1 to 2000)",
    )
    parser.set_defaults(proposals=None, score_threshold=MIN_SCORE, device="cpu")
    arguments = parser.parse_args(command_line)
    return exit_status(lambda: run(arguments), "the page is not written")


def run(arguments: argparse.Namespace) -> None:
    if min(arguments.counts) < 1:
        raise InputError(f"--counts: {min(arguments.counts)} is not a number of regions: give integers from 1")
    if arguments.out.is_dir():
        raise InputError(f"--out: {arguments.out} is a folder: give a file, such as {arguments.out / PAGE.name}")
    require_writable("--out", arguments.out.parent)
    from scripts._page_contents import page_contents  # imports torch

    page = render(page_contents(arguments))
    write_atomically(arguments.out, page.encode())
    print(f"{arguments.out}: {len(page) / 1000:.0f} kB")


def render(data: dict[str, Any]) -> str:
    """The page with these data."""
    parts = {path.name: path.read_text(encoding="utf-8") for path in PARTS.iterdir()}
    parts["data"] = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    return re.sub("@@(.+?)@@", lambda name: parts[name[1]].rstrip("\n"), parts["page.html"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
