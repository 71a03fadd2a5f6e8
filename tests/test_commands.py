"""scripts/visualize.py and scripts/benchmark.py: the lists of their commands, and the help of each."""

import importlib
import sys

import pytest

from scripts import benchmark, visualize
from tests.conftest import REPOSITORY

PROGRAMS = {"visualize": ("visualizations", visualize), "benchmark": ("benchmarks", benchmark)}
COMMANDS = [
    (name, path.stem)
    for name, (folder, _) in PROGRAMS.items()
    for path in sorted((REPOSITORY / "scripts" / folder).glob("[a-z]*.py"))
]


@pytest.mark.parametrize("name", PROGRAMS)
def test_commands_are_listed(name, capsys):
    with pytest.raises(SystemExit, match="^0$"):
        PROGRAMS[name][1].main(["--help"])
    listed = " ".join(capsys.readouterr().out.split())
    for command in (command for program, command in COMMANDS if program == name):
        module = importlib.import_module(f"scripts.{PROGRAMS[name][0]}.{command}")
        assert f" {command} {module.__doc__.splitlines()[0]}" in listed


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_help_of_a_command_describes_its_options(name, command, monkeypatch, capsys):
    folder, program = PROGRAMS[name]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", command, "--help"])
    with pytest.raises(SystemExit, match="^0$"):
        program.main()
    shown = capsys.readouterr().out
    assert sys.modules[f"scripts.{folder}.{command}"].__doc__.strip() in shown
    assert ("--out OUT" in shown) == (name == "visualize")


def test_what_a_benchmark_counts_is_at_least_one(capsys):
    with pytest.raises(SystemExit, match="^2$"):
        benchmark.main(["scoring", "--images", "0"])
    assert "argument --images: 0: must be 1 or more" in capsys.readouterr().err
