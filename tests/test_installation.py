"""The package as others install it: a wheel in an environment of its own."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector import commands
from scripts import detect
from tests.conftest import REPOSITORY


def test_commands_of_a_checkout_run_its_programs(monkeypatch, capsys):
    for name, program in (("train", commands.train), ("evaluate", commands.evaluate)):
        assert Path(importlib.import_module(name).__file__) == REPOSITORY / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [f"/somewhere/fast-rcnn-{name}", "--help"])
        program()
        assert f"usage: fast-rcnn-{name} " in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["fast-rcnn-detect", "--help"])
    with pytest.raises(SystemExit) as end:
        commands.detect()
    assert end.value.code == 0
    assert "usage: fast-rcnn-detect" in capsys.readouterr().out


def test_the_container_for_cpus_leaves_out_the_libraries_of_cuda():
    """The Dockerfile deletes these lines; torch is then one that does not need them."""
    pattern = re.search(r"sed -i -E '/(.*)/d' requirements\.txt", (REPOSITORY / "Dockerfile").read_text())[1]
    names = [line.partition("==")[0] for line in (REPOSITORY / "requirements.txt").read_text().splitlines()]
    left = [name for name in names if not re.search(pattern, f"{name}==")]
    assert {"torch", "torchvision", "numba", "psutil"} <= {*left}
    assert {*names} - {*left} == {name for name in names if re.search("nvidia|cuda|triton", name)} != set()


@pytest.mark.slow
def test_a_wheel_brings_the_commands_and_the_configurations(
    untrained_checkpoint, small_shapes, make_proposals, tmp_path
):
    """The environment has the wheel alone, and finds the libraries in that of the tests."""
    uv = shutil.which("uv", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))
    if uv is None:
        pytest.skip("uv, which builds the wheel, is not installed")

    def run(*command: object, cwd: Path = tmp_path) -> subprocess.CompletedProcess:
        return subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)

    built = run(uv, "build", "--wheel", "--out-dir", tmp_path / "wheels", REPOSITORY)
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip("hatchling, which builds the wheel, cannot be fetched")
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    environment = tmp_path / "environment"
    run(uv, "venv", "--python", sys.executable, environment).check_returncode()
    run(uv, "pip", "install", "--no-deps", "--python", environment / "bin/python", wheel).check_returncode()
    (packages,) = environment.glob("lib/*/site-packages")
    # The libraries of the tests, but not the checkout: a .pth file there is not read from here.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert sorted(path.name for path in packages.glob("detector/*s") if path.is_dir()) == [
        "builders", "configs", "models", "programs", "proposals",
    ]  # fmt: skip

    for name in ("train", "evaluate"):
        result = run(environment / f"bin/fast-rcnn-{name}", "--help")
        assert (result.returncode, result.stderr) == (0, "")
        assert f"usage: fast-rcnn-{name} " in result.stdout
    result = run(environment / "bin/fast-rcnn-train", "model=vgg16", "--cfg", "job")
    assert "backbone: vgg16" in result.stdout
    image = small_shapes / "JPEGImages/test_0.jpg"
    hw = np.asarray(Image.open(image)).shape[:2]
    make_proposals(tmp_path / "p.safetensors", {"test_0": [[0, 0, 50, 50], [20, 30, 90, 80]]}, hw=hw)
    options = ["--checkpoint", str(untrained_checkpoint), "--input", str(image), "--score-threshold", "0.05"]
    options += ["--proposals", f"{tmp_path}/p.safetensors"]
    result = run(environment / "bin/fast-rcnn-detect", *options, "--out", "found")
    assert (result.returncode, result.stderr) == (0, "")
    assert detect.main([*options, "--out", str(tmp_path / "expected")]) == 0
    found, expected = (json.loads((tmp_path / name / "detections.json").read_text()) for name in ("found", "expected"))
    assert found == expected != []
