"""Programs answer --help and invalid arguments before they import what takes seconds."""

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

# Arguments that are invalid whatever files there are. The first three programs need not even numpy.
INVALID = {
    "scripts/visualize.py": [],
    "scripts/benchmark.py": ["nothing"],
    "scripts/download_voc.py": ["--only", "nothing"],
    "train.py": ["workers=-1"],
    "evaluate.py": ["workers=-1", "checkpoint=last.pt"],
    "scripts/document_settings.py": ["--all"],
    "scripts/export.py": ["onnx", "--checkpoint", "last.pt", "--out", "model.pt"],
    "scripts/build_page.py": ["--checkpoint", "last.pt", "--image", "a.jpg", "--counts", "0"],
    "scripts/check_data.py": ["--data", "missing", "--images", "JPEGImages"],
    "scripts/convert_data.py": ["--data", "missing", "--to", "voc", "--out", "new", "--images", "JPEGImages"],
    "scripts/proposals.py": ["generate", "--data", "missing", "--out", "boxes.npy"],
    "scripts/detect.py": ["--checkpoint", "last.pt", "--out", "found"],
    "scripts/compress.py": ["--checkpoint", "last.pt", "--out", "small", "--ranks", "0", "1"],
}
SCRIPTS = sorted(f"scripts/{path.name}" for path in (REPOSITORY / "scripts").glob("[a-z]*.py"))
PROGRAMS = INVALID | {name: ["--no-such-option"] for name in SCRIPTS if name not in INVALID}
SLOW = ("torch", "numba", "matplotlib", "scipy", "albumentations")

# Runs all programs in one process; what one of them imports counts for the later ones too.
RUN_ALL = """
import contextlib, io, json, runpy, sys, traceback
found = {}
for program, invalid in json.loads(sys.argv[1]).items():
    found[program] = []
    for arguments in (["--help"], invalid):
        sys.argv = [program, *arguments]
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                runpy.run_path(program, run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        except Exception:
            status = traceback.format_exc()
        else:
            status = 0
        found[program].append([status, printed.getvalue(), sorted(sys.modules)])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, list]:
    """Of each program, (exit status, what it printed, all modules imported so far) for --help and invalid arguments."""
    command = [sys.executable, "-c", RUN_ALL, json.dumps(PROGRAMS)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_and_errors_come_without_slow_imports(program, answers):
    (help_status, shown, _), (status, error, loaded) = answers[program]
    assert (help_status, status) == (0, 2), error
    assert program.rpartition("/")[2] in shown
    assert "error: " in error
    unwanted = (*SLOW, "numpy", "pydantic") if program in [*INVALID][:3] else SLOW
    assert not {*unwanted} & {*loaded}


def test_invalid_settings_are_one_line(answers):
    assert answers["train.py"][1][1] == "error: workers=-1: must be auto or an integer from 0 to 1000\n"
    assert answers["evaluate.py"][1][1] == "error: workers=-1: must be auto or an integer from 0 to 1000\n"
