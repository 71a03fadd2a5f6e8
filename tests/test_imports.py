"""The parts may only know each other along one direction: structures <- boxes <- parts <- engine <- programs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# module or package of detector -> what of detector it may import
ALLOWED = {
    "errors": set(),
    "distributed": {"errors"},
    "signals": {"distributed"},
    "files": set(),
    "classes": {"errors"},
    "seeds": set(),
    "structures": set(),
    "boxes": set(),
    "schedules": set(),
    "roi_pool": set(),
    "selective_search": set(),
    "optim": {"errors"},
    "ema": set(),
    "diagnostics": set(),
    "run_folder": {"errors", "files"},
    "device": {"distributed", "errors"},
    "config": {"errors"},
    "cli": {"config", "distributed", "errors", "signals"},
    "resume": {"checkpoint", "config", "errors", "files", "run_folder"},
    "targets": {"boxes", "seeds", "structures"},
    "losses": {"targets"},
    "postprocess": {"boxes", "structures"},
    "visualize": {"structures", "targets"},
    "tracking": {"errors"},
    "data": {"boxes", "classes", "errors", "files", "seeds", "selective_search", "structures"},
    "models": {"errors", "roi_pool"},
    "checkpoint": {"classes", "errors", "files", "models"},
    "evaluation": {"boxes", "errors", "files", "structures", "visualize"},
    "engine": {"boxes", "device", "distributed", "errors", "losses", "postprocess", "seeds", "structures", "targets"},
    "compose": {"boxes", "config", "data", "device", "engine", "errors", "models", "optim", "postprocess", "targets"},
    "run": {
        "checkpoint", "config", "data", "device", "diagnostics", "distributed", "engine", "evaluation", "files",
        "models", "signals", "structures", "tracking", "visualize",
    },
}  # fmt: skip
ONLY_IN = {"hydra": {"cli"}, "omegaconf": {"cli"}, "tensorboard": {"tracking"}, "torch.utils.tensorboard": {"tracking"}}
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
def test_imports_follow_the_arrows(path):
    part = part_of(path)
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("detector.")}
    assert ours - {part} <= ALLOWED.get(part, set())
    for library, parts in ONLY_IN.items():
        if part not in parts:
            assert not any(name == library or name.startswith(library + ".") for name in imported(path))


def test_every_part_is_listed_and_the_arrows_have_no_cycle():
    assert {part_of(path) for path in FILES} - {"__init__"} == set(ALLOWED)
    done: set[str] = set()
    while len(done) < len(ALLOWED):
        ready = {part for part, needs in ALLOWED.items() if part not in done and needs <= done}
        assert ready, f"a cycle among {set(ALLOWED) - done}"
        done |= ready


def test_the_package_loads_without_the_compilers():
    code = "import sys, detector.roi_pool; print([m for m in ('numba', 'triton') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
