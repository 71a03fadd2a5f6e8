"""Imports go from upper layers to lower ones, and among the packages of a layer one way only."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# From the bottom up: modules and packages of detector. Each may import those of the layers below it, and of its own
# layer those in SIDEWAYS.
LAYERS = [
    {"errors", "structures", "boxes", "box_arrays", "schema", "settings", "allowlist", "runtime"},
    {"roi_pool", "selective_search"},
    {"data", "proposals", "models"},
    {"visualization", "evaluation", "inference"},
    {"training"},
    {"builders", "evaluator", "api", "app", "commands"},
]
SIDEWAYS = {
    "schema": {"errors"},
    "settings": {"schema"},
    "allowlist": {"errors"},
    "runtime": {"errors"},
    "proposals": {"data"},
    "evaluation": {"visualization"},
    "evaluator": {"builders"},
    "api": {"builders"},
}
HYDRA = ("app/compose.py", "app/restore.py", "app/start.py", "app/sweep.py")
ONLY_IN = {
    "hydra": HYDRA,
    "omegaconf": HYDRA,
    "tensorboard": ("training/tracking.py",),
    "torch.utils.tensorboard": ("training/tracking.py",),
}
FILES = sorted((REPOSITORY / "detector").rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(path: Path) -> str:
    return path.relative_to(REPOSITORY / "detector").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_follow_the_layers(path):
    part = part_of(path)
    if part == "__init__":
        return
    layer = next(number for number, parts in enumerate(LAYERS) if part in parts)
    allowed = {part}.union(*LAYERS[:layer]) | SIDEWAYS.get(part, set())
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("detector.")}
    assert ours <= allowed
    for library, files in ONLY_IN.items():
        if str(path.relative_to(REPOSITORY / "detector")) not in files:
            assert not any(name == library or name.startswith(library + ".") for name in imported(path))


def test_programs_import_no_package_that_is_for_development_only():
    about = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    packages = {re.split(r"[^\w-]", line)[0] for line in about["optional-dependencies"]["dev"]}
    packages -= {"playwright"}  # scripts/take_screenshots.py, which makes the pictures of docs/
    programs = [*FILES, *(REPOSITORY / "scripts").rglob("*.py"), REPOSITORY / "train.py", REPOSITORY / "evaluate.py"]
    found = {(str(path), name) for path in programs for name in imported(path) if name.split(".")[0] in packages}
    assert not found


def test_every_part_has_one_layer_and_no_two_import_each_other():
    assert sorted(part for parts in LAYERS for part in parts) == sorted(
        {part_of(path) for path in FILES} - {"__init__"}
    )
    for part, others in SIDEWAYS.items():
        assert not any(part in SIDEWAYS.get(other, set()) for other in others)
