"""The commands of a program, each a module of one folder of scripts/; only the selected one is imported."""

import argparse
import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path


def add_commands(
    parser: argparse.ArgumentParser, folder: str, command_line: Sequence[str] | None
) -> argparse.ArgumentParser | None:
    """Add a command for each module in scripts/FOLDER, with `run` of the selected one. Returns its parser, if any.

    A module has `add_arguments(parser)` and `run(arguments)`; the first line of its docstring is the command's help.
    """
    given = sys.argv[1:] if command_line is None else command_line
    chosen = next((argument for argument in given if not argument.startswith("-")), None)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    found = None
    for path in sorted((Path(__file__).parent / folder).glob("[a-z]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        command = commands.add_parser(
            path.stem,
            help=text.partition("\n")[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if path.stem == chosen:
            module = importlib.import_module(f"scripts.{folder}.{path.stem}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
            found = command
    return found
