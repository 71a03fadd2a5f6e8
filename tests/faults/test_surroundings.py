"""What surrounds a program: environment variables, names of files, and closed streams."""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

LONG = "x" * 300


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "arguments", "variables", "says"),
    [
        ("train.py", ["seed=1"], {"RANK": "x", "WORLD_SIZE": "2"}, "error: the environment variable RANK=x: must be"),
        ("train.py", ["data=voc", f"data.root=/{LONG}"], {}, "error: a name that no file can have"),
        ("train.py", [f"run.dir=/{LONG}"], {}, "error: a name that no file can have"),
        ("train.py", [f"resume=/{LONG}"], {}, "error: a name that no file can have"),
        ("evaluate.py", [f"checkpoint=/{LONG}"], {}, "error: a name that no file can have"),
        ("scripts/detect.py", ["--checkpoint", "x", "--input", LONG, "--out", "y"], {}, "error: a name that no file"),
    ],
)
def test_wrong_surroundings_are_one_line(tmp_path, program, arguments, variables, says):
    command = [sys.executable, str(REPOSITORY / program), *arguments]
    result = subprocess.run(command, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert result.stderr.startswith(says)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams_end_no_program(tmp_path, closed):
    code = (
        "import sys; from detector.runtime.exits import exit_status; from detector.runtime.logs import set_up_logging\n"
        "def program():\n"
        "    set_up_logging()\n"
        "    file = open('made', 'w')\n"
        "    print('printed'); __import__('logging').info('logged'); file.write('written')\n"
        "sys.exit(exit_status(program, ''))"
    )
    shell = f'{sys.executable} -c "$CODE" {closed}'
    environment = os.environ | {"CODE": code, "PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run(shell, shell=True, cwd=tmp_path, env=environment, capture_output=True).returncode == 0
    assert (tmp_path / "made").read_text() == "written"
