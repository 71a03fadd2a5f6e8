"""Draw the steps of the program: pictures (PNG, SVG) and animations (GIF, MP4) in a new folder OUT.

    python scripts/visualize.py roi_pool --out OUT
    python scripts/visualize.py COMMAND --help

Each command is a module of scripts/visualizations. Exit status: 0 done, 1 a write failed, 2 invalid input,
130 or 143 interrupted.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from detector.runtime.exits import exit_status
from detector.runtime.files import require_new
from scripts._commands import add_commands


def main(command_line: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command = add_commands(parser, "visualizations", command_line)
    if command is not None:
        command.add_argument("--out", required=True, type=Path, help="folder to write to, new or empty")
    arguments = parser.parse_args(command_line)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return exit_status(lambda: run(arguments), f"{arguments.out} may be incomplete")


def run(arguments: argparse.Namespace) -> None:
    """Draw, and list what was written."""
    require_new("--out", arguments.out)
    arguments.run(arguments)
    for path in sorted(arguments.out.iterdir()):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
