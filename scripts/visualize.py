"""Draw what the program does: pictures (PNG, SVG) and animations (GIF) in a new folder OUT.

    python scripts/visualize.py roi_pool --out OUT
    python scripts/visualize.py COMMAND --help

Each command is a module of scripts/visualizations with `add_arguments(parser)` and `run(arguments)`; its first
docstring line is its help. Exit status: 0 done, 1 a write failed, 2 invalid input, 130 interrupted.
"""

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from detector.runtime.exits import exit_status
from detector.training.run_folder import require_new


def main(command_line: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for path in sorted((Path(__file__).parent / "visualizations").glob("[a-z]*.py")):
        module = importlib.import_module(f"scripts.visualizations.{path.stem}")
        command = commands.add_parser(
            path.stem,
            help=module.__doc__.splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.add_argument("--out", required=True, type=Path, help="folder to write to, new or empty")
        command.set_defaults(run=module.run)
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
