"""Benchmark a part of this project against a reference implementation, in one run on the same inputs.

    python scripts/benchmark.py selective_search --help
    python scripts/benchmark.py roi_pool --help

Each benchmark is a module of scripts/benchmarks. BENCHMARKS.md keeps measured tables, with the machine they ran on.
Exit status: 0 done, 1 a run failed, 2 invalid input, 130 or 143 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence

from detector.runtime.exits import exit_status
from scripts._commands import add_commands


def main(command_line: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_commands(parser, "benchmarks", command_line)
    arguments = parser.parse_args(command_line)
    return exit_status(lambda: arguments.run(arguments), "the table is incomplete; finished runs of train.py are kept")


if __name__ == "__main__":
    sys.exit(main())
