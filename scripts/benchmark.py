"""Benchmark a part of this project against a reference implementation, in one run on the same inputs.

    python scripts/benchmark.py selective_search --help
    python scripts/benchmark.py roi_pool --help

Each benchmark is a module of scripts/benchmarks with `add_arguments(parser)` and `run(arguments)`; its first
docstring line is its help. BENCHMARKS.md keeps measured tables, with the machine they ran on.
"""

import argparse
import importlib
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK")
    for path in sorted((Path(__file__).parent / "benchmarks").glob("[a-z]*.py")):
        benchmark = importlib.import_module(f"scripts.benchmarks.{path.stem}")
        first_line = benchmark.__doc__.splitlines()[0]
        command = commands.add_parser(path.stem, help=first_line, description=benchmark.__doc__)
        benchmark.add_arguments(command)
        command.set_defaults(run=benchmark.run)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
