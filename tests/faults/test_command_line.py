"""Case 57 of FAULTS.md: the command line, sweeps, and how a program ends."""

import importlib
import logging
import os
import re
import runpy
import subprocess
import sys
from contextlib import suppress

import pytest

from detector.app import start
from detector.errors import InputError, RunFailure
from detector.runtime.exits import exit_status
from detector.runtime.logs import LogFileHandler, log_to_file
from detector.settings import EvaluateSettings, TrainSettings
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left", "out/a.json"), "the disk is full: [Errno 28] No space left: 'out/a.json'"),
        (PermissionError(13, "Denied", "a"), "a file cannot be read or written: [Errno 13] Denied: 'a'"),
        (NotADirectoryError(20, "Not one", "a/b"), "a file cannot be read or written: [Errno 20] Not one: 'a/b'"),
        (OSError(24, "Too many"), "[Errno 24] Too many: raise the limit (ulimit -n), or use fewer workers"),
        (MemoryError(), "out of memory: use smaller images, fewer images per batch or fewer RoIs"),
    ],
)
def test_an_error_of_the_machine_is_one_line_wherever_it_occurs(monkeypatch, capsys, error, says):
    def full(settings: EvaluateSettings | None = None) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    with pytest.raises(SystemExit, match="1"):
        start.run_program(full, "evaluate", EvaluateSettings)
    assert capsys.readouterr().err == f"error: {says}\n"
    assert exit_status(full, "") == 1
    assert capsys.readouterr().err == f"error: {says}\n"


def test_each_run_of_a_sweep_has_its_own_log(tmp_path, monkeypatch):
    def main(settings: TrainSettings) -> None:
        logging.getLogger("run").info("before there is a file, of seed %d", settings.seed)
        log_to_file(tmp_path / f"{settings.seed}.log")
        logging.getLogger("run").info("of seed %d", settings.seed)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1,2", "data=shapes"])
    start.run_program(main, "train", TrainSettings)
    for seed, log in ((1, tmp_path / "1.log"), (2, tmp_path / "2.log")):
        lines = [line.split(" ", 1)[1] for line in log.read_text().splitlines() if "of seed" in line]
        assert lines == [f"before there is a file, of seed {seed}", f"of seed {seed}"]


@pytest.mark.parametrize(("error", "status"), [(InputError("seed=2: bad"), 2), (RunFailure("seed=2: no luck"), 1)])
def test_a_failed_run_of_a_sweep_does_not_stop_the_others(tmp_path, monkeypatch, capsys, error, status):
    begun = []

    def main(settings: TrainSettings) -> None:
        begun.append(settings.seed)
        if settings.seed == 2:
            raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1,2,3", "data=shapes"])
    with pytest.raises(SystemExit) as end:
        start.run_program(main, "train", TrainSettings)
    assert (begun, end.value.code) == ([1, 2, 3], status)
    assert capsys.readouterr().err == f"error: {error}\nerror: 1 run(s) of the sweep failed; see the errors above\n"


@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_a_process_that_a_launcher_starts_can_import_the_program(program, monkeypatch):
    """Launchers such as submitit's hand it over by name; what is defined in `__main__` they cannot."""
    handed = []
    module = importlib.import_module(program)
    monkeypatch.setattr(module, "run_program", lambda main, name, schema: handed.append((main, name)))
    runpy.run_path(str(REPOSITORY / f"{program}.py"), run_name="__main__")
    assert handed == [(module.main, program)]
    assert handed[0][0].__module__ == program


@pytest.mark.parametrize(
    "defect", [FileNotFoundError(2, "no file"), PermissionError(1, "kill"), BrokenPipeError(32, "a worker's")]
)
def test_a_script_s_own_defect_is_shown_whole(defect):
    def script() -> int:
        raise defect

    with pytest.raises(type(defect)):
        exit_status(script, "")


BUFFERED = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}

RUNS = {
    "script": "import sys; from detector.runtime.exits import exit_status; sys.exit(exit_status(lambda: {}, ''))",
    "program": "from detector.app.start import run_program; from detector.settings import EvaluateSettings; "
    "run_program(lambda config: {}, 'evaluate', EvaluateSettings)",
}


@pytest.mark.parametrize(
    ("kind", "status", "prints"),
    [
        ("script", 0, "print('x')"),  # was done when nobody read it
        *(("script", 1, text) for text in ("print('x' * 100_000)", "print('x', flush=True)")),
        ("program", 0, "print('x' * 100_000)"),
        pytest.param("program", 0, "__import__('logging').warning('x')", marks=pytest.mark.slow),
    ],
)
def test_a_program_whose_reader_ends_says_nothing(kind, status, prints):
    code = [sys.executable, "-c", RUNS[kind].format(prints)]
    with subprocess.Popen(code, stdout=-1, stderr=-1, cwd=REPOSITORY, env=BUFFERED) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == status


def test_case_07_a_log_file_on_a_full_disk_is_silent(capsys):
    handler = LogFileHandler("/dev/full", encoding="utf-8")
    handler.handle(logging.makeLogRecord({"msg": "a line"}))
    assert capsys.readouterr().err == ""
    handler.handle(logging.makeLogRecord({"msg": "%d", "args": ("a word",)}))
    assert "TypeError" in capsys.readouterr().err
    with suppress(OSError):
        handler.close()


def test_case_07_a_script_that_prints_to_a_full_disk():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", RUNS["script"].format("print('x')")]
        result = subprocess.run(command, stdout=full, stderr=-1, cwd=REPOSITORY, env=BUFFERED, text=True)
    cause = "the disk, or /dev/shm of the data workers, is full: free space, or use workers=0"
    says = f"error: {cause}: [Errno 28] No space left on device\n"
    assert (result.returncode, result.stderr) == (1, says)


@pytest.fixture
def ended(tmp_path, monkeypatch, capsys):
    """Call train.py with these arguments but an empty main: (its status, its stderr). files/ has settings."""
    files = tmp_path / "files/experiment"
    files.mkdir(parents=True)
    (files / "broken.yaml").write_text("train: [\n")
    (files / "nowhere.yaml").write_text("train:\n  iterations: 5\n")
    (files / "choice.yaml").write_text("# @package _global_\ndefaults:\n  - override /model: resnet19\n")
    (files / "group.yaml").write_text("# @package _global_\ndefaults:\n  - override /modell: resnet18\n")
    (files / "latin.yaml").write_bytes("# größe\n".encode("latin-1"))
    (files / "number.yaml").write_text("defaults: 5\n")
    (files / "unnamed.yaml").write_text("# @package _global_\ndefaults:\n  - '': null\n")
    (files / "deep.yaml").write_text("x: " + "[" * 500)
    bomb = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 8))
    (tmp_path / "bombs/experiment").mkdir(parents=True)
    (tmp_path / "bombs/experiment/bomb.yaml").write_text("# @package _global_\nx0: &x0 [1]\n" + bomb)
    (files / "right.yaml").write_text("# @package _global_\ntrain:\n  iterations: 5\n")
    monkeypatch.chdir(tmp_path)

    def end(arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments.split()])
        try:
            start.run_program(lambda settings: None, "train", TrainSettings)
        except SystemExit as error:
            return int(error.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return end


@pytest.mark.parametrize("options", ["", "-m ", "--config-dir files ", "--cfg job "])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("train.iteration=3", r"^error: train\.iteration: no such setting; did you mean train\.iterations\? "),
        ("optimiser.lr=1", r"^error: optimiser\.lr: no such setting; did you mean optimizer\.lr\? "),
        ("frobnicate=1", "^error: frobnicate: no such setting"),
        (
            "model=resnet19",
            "^error: model=resnet19: must be one of alexnet, resnet18, resnet50, resnet50_fpn, vgg16, vgg_cnn_m$",
        ),
        ("train.iterations", "train.iterations"),
    ],
)
def test_case_57_a_mistyped_setting_is_one_line_with_the_nearest(ended, options, arguments, says):
    status, error = ended(options + arguments)
    assert (status, error.count("\n")) == (2, 1), error
    assert re.search(says, error), error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--config-dir files experiment=broken", 'files/experiment/broken.yaml", line 2'),
        ("--config-dir files experiment=nowhere data=shapes", "must begin with the line `# @package _global_`"),
        ("--config-dir files experiment=choice", "model=resnet19: must be one of alexnet, resnet18, resnet50"),
        ("--config-dir files experiment=group", "In 'experiment/group': Could not override 'modell'"),
        ("--config-dir filez experiment=right", "--config-dir: filez: no such folder"),
        ("data=shapes --frobnicate seed=1", "--frobnicate"),
        ("--config-name nothing", "--config-name"),
        ("data=voc", "data.root: must be given: data.root="),
        ("seed=1,2", "Ambiguous value"),
        ("experiment=null", "a group takes the name of one of its files"),
        ("-m --help", "--multirun cannot be combined with --help or --cfg"),
        ("-m model=glob(*)", "list the choices"),
        ("data.classes=[größe]", "put names with other letters in quotes, as in 'data.classes=["),
        ("hydra.mode=FOO", "FOO"),
        ("~train.iterations", "train.iterations is not given: settings cannot be removed"),
        ("-m seed=1,2 ~roi.nothing", "roi.nothing"),
        ("--cfg job train.iterations=-3", "train.iterations=-3: must be an integer above 0"),
        ("seed=1 optimizer=null data=shapes", "error: optimizer=null: a group takes"),
        ("seed=1 =3 data=shapes", "error: =3: a group takes"),
        ("data=voc data.root=/tmp/a,b", "a value with a comma 'KEY=\"a,b\"'"),
        ("--config-dir files experiment=latin", "a file of settings is not in UTF-8"),
        ("--config-dir files experiment=number", "defaults"),
        ("--config-dir files experiment=unnamed", "a file of settings has an invalid entry in its list `defaults`"),
        ("--config-dir files experiment=deep", "recursion"),
        ("--config-dir bombs experiment=bomb", "bomb.yaml: more than 20 of *name and ${name} (63 and 0)"),
    ],
)
def test_settings_that_cannot_be_read_are_one_line(ended, arguments, says):
    status, error = ended(arguments)
    assert (status, error.count("\n")) == (2, 1), error
    assert error.startswith("error: ")
    assert says in error


@pytest.mark.parametrize(
    "value", ["/data/josé", "日本", "it's", 'q"q', "a&b", "#1", "d(1)", "a=b", "a[1]", "a{b", "~t", "~/b c", "plain"]
)
def test_a_path_may_hold_what_hydra_cannot_read(tmp_path, monkeypatch, value):
    got = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["train.py", "--config-dir", ".", "data=voc", f"data.root={value}", "seed=1"])
    start.run_program(got.append, "train", TrainSettings)
    assert (got[0].data.root, got[0].seed) == (value.replace("~/", f"{tmp_path}/"), 1)


@pytest.mark.parametrize(
    "arguments",
    [
        "data=voc data.root=x model=vgg16 experiment=paper optimizer=sgd optimizer.nesterov=true train.iterations=3",
        "--config-dir files data=shapes experiment=right",
    ],
)
def test_case_57_right_settings_pass(ended, arguments):
    assert ended(arguments) == (0, "")


def test_case_57_a_data_set_of_evaluation_is_none_to_train_on(settings):
    with pytest.raises(
        InputError,
        match=r"data\.reader is not given: must be voc, coco, folder or shapes: give data=voc data\.root=DIR",
    ):
        settings("train", "~data")


def test_a_deleted_working_directory_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert exit_status(lambda: 0, "") == 2
    assert capsys.readouterr().err == "error: the working directory was deleted: change to another, with cd\n"
