"""Benchmark a part of this project against a reference implementation, in one run on the same inputs.

    python scripts/benchmark.py selective_search --help
    python scripts/benchmark.py roi_pool --help

Each benchmark is a module of scripts/benchmarks. BENCHMARKS.md keeps measured tables, with the machine they ran on.
"""

import argparse
from collections.abc import Sequence

from scripts._commands import add_commands


def main(command_line: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_commands(parser, "benchmarks", command_line)
    arguments = parser.parse_args(command_line)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
