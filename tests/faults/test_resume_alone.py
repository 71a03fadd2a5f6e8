"""train.py resume=RUN: the run continues with the settings that it has saved."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

import train
from detector.app.compose import plain
from detector.app.restore import restored, run_to_restore
from tests.helpers.runs import same
from tests.helpers.watch import nothing_happens


@pytest.fixture
def stopped(whole, tmp_path) -> Path:
    """A copy of the finished run whose last checkpoint is of iteration 4 of 6."""
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "checkpoints/previous.pt").replace(folder / "checkpoints/last.pt")
    (folder / "checkpoints/best.pt").unlink()
    assert torch.load(folder / "checkpoints/last.pt", weights_only=True)["iteration"] == 4
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    """Run train.py in this process: command("resume=RUN") -> exit status, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        try:
            train.command()
            status = 0
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def shown(command):
    """The settings that train.py prints: shown("resume=RUN") -> nested dicts."""

    def settings(*arguments: str) -> dict:
        status, text, error = command("--cfg", "job", *arguments)
        assert status == 0, error
        return yaml.safe_load(text)

    return settings


def test_resume_alone_is_exact_and_shows_what_is_changed(whole, stopped, command):
    before = yaml.safe_load((stopped / "config.yaml").read_text())
    status, _, err = command(f"resume={stopped}", "train.log_every=3", "workers=0")
    assert status == 0, err
    table = [line.split() for line in (stopped / "train.log").read_text().splitlines() if line.startswith("  ")]
    assert table[-2:] == [["setting", "saved", "now"], ["train.log_every", "1", "3"]]
    ours, theirs = (torch.load(run / "checkpoints/last.pt", weights_only=True) for run in (stopped, whole))
    assert ours["iteration"] == 6
    for part in ("model", "raw_model", "optimizer"):
        assert same(ours[part], theirs[part])
    assert (stopped / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    after = yaml.safe_load((stopped / "config.yaml").read_text())
    assert after["train"].pop("log_every") == 3
    before["train"].pop("log_every")
    assert after | {"resume": None, "run": None} == before | {"resume": None, "run": None}


def test_given_settings_take_the_place_of_saved_ones(stopped, shown):
    saved = yaml.safe_load((stopped / "config.yaml").read_text())
    expected = saved | {"resume": "auto", "run": {"dir": str(stopped)}}
    assert shown(f"resume={stopped}") == shown(f"resume={stopped}/", f"run.dir={stopped}") == expected
    found = shown(f"resume={stopped}", "train.iterations=9", "optimizer.lr=0.5", "train.eval_every=${train.iterations}")
    assert found["train"] == expected["train"] | {"iterations": 9, "eval_every": "${train.iterations}"}
    assert found["optimizer"] == expected["optimizer"] | {"lr": 0.5}
    found = shown(f"resume={stopped}", "schedule=step", "schedule.gamma=0.25", "train.patience=2")  # another group
    assert (found["schedule"]["_target_"].rpartition(".")[2], found["schedule"]["gamma"]) == ("Step", 0.25)
    assert found["train"] == expected["train"] | {"patience": 2}
    assert found["data"] == expected["data"]
    found = shown(f"resume={stopped}", "augment={transforms: []}", "data.root=/data/josé")
    assert (found["augment"], found["data"]["root"]) == ({"transforms": []}, "/data/josé")


def test_fixed_settings_are_refused_by_one_error(stopped, command):
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    status, _, error = command(f"resume={stopped}", "seed=1", "model.hidden=8", "workers=1")
    assert status == 2
    assert error.splitlines() == [
        f"error: resume={stopped}: these settings are fixed when a run resumes:",
        "  setting       saved  now",
        "  model.hidden  16     8",
        "  seed          0      1",
        "Leave them out, or begin a new run from its weights: model.weights=CHECKPOINT run.dir=ANOTHER",
    ]
    assert before == {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("experiment=paper", "experiment=paper: an experiment cannot be chosen beside resume=RUN"),
        ("seed=1,2", "seed=1,2: resume=RUN continues one run: give one value"),
        ("~train.iterations", "~train.iterations: settings cannot be removed"),
        ("run.dir=elsewhere", "run.dir=elsewhere: the run of resume="),
        ("train.iteration=3", "train.iteration: no such setting; did you mean train.iterations?"),
        ("trian.iterations=3", "trian: no such setting; did you mean train?"),
        ("seed.first=3", "seed.first=3: seed is a setting, and has none below it"),
        ("train=3", "train=3: must be a group of settings"),
        ("workers=-1", "workers=-1: must be auto or an integer from 0 to 1000"),
        ("data=voc", "data.root: must be given: data.root=..."),
        ("schedule=nothing", "schedule=nothing: must be one of"),
        ("train.iterations", "train.iterations"),
        ("hydra.verbose=true", "hydra.verbose=true: Hydra's own settings apply to sweeps only"),
        ("-m", "is a folder: in a sweep, resume=auto run.dir="),
    ],
)
def test_what_cannot_be_given_beside_it_is_one_line(overrides, says, stopped, command):
    status, _, error = command(f"resume={stopped}", *overrides.split())
    assert status == 2
    assert says in error
    assert error.startswith("error: ")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "not the folder of a run with settings: it has no config.yaml"),
        (b"", "config.yaml: has no settings"),
        (b"[1, 2]", "config.yaml: has no settings"),
        (b"\xff\xfe", "config.yaml: cannot be read"),
        (b"seed: [", "config.yaml: cannot be read"),
        (b"[" * 500, "config.yaml: cannot be read"),
        (b"a: &a [1]\nb: [" + b"*a, " * 30 + b"]", "config.yaml: more than 20 of *name and ${name} (30 and 0)"),
        (b"seed: !!python/object/apply:os.system ['touch owned']", "could not determine a constructor"),
        (b"hydra: {run: {dir: x}}", "config.yaml: data is not given"),
        (b"seed: many", "config.yaml: seed=many: must be an integer"),
    ],
)
def test_untrusted_settings_run_nothing(content, says, tmp_path, command):
    folder = tmp_path / "run"
    folder.mkdir()
    if content is not None:
        (folder / "config.yaml").write_bytes(content)
    command("workers=-1")  # imports what is imported late, which may write bytecode
    with nothing_happens():
        status, _, error = command(f"resume={folder}")
    assert (status, says in error) == (2, True), error
    assert len(error.splitlines()) == 1


def test_saved_settings_read_no_environment_and_name_no_class(stopped, command, monkeypatch):
    path = stopped / "config.yaml"
    saved = yaml.safe_load(path.read_text())
    monkeypatch.setenv("SECRET", "s3cret")
    path.write_text(yaml.safe_dump(saved | {"device": "${oc.env:SECRET}"}))
    status, _, error = command(f"resume={stopped}")
    assert status == 2
    assert "s3cret" not in error
    path.write_text(yaml.safe_dump(saved | {"schedule": {"_target_": "os.system", "command": "touch owned"}}))
    with nothing_happens():
        status, _, error = command(f"resume={stopped}", "--help")
    assert not (Path.cwd() / "owned").exists()
    status, _, error = command(f"resume={stopped}")
    assert status == 2, error
    assert "os.system" in error


@pytest.mark.parametrize("name", ["${seed}", r"\${seed}", r"a\\${seed}b", "${", "$seed", "${nothing.here}"])
def test_saved_strings_are_not_interpolated(name, stopped):
    path = stopped / "config.yaml"
    saved = yaml.safe_load(path.read_text())
    saved["proposals"]["folder"] = saved["data"]["root"] = name
    path.write_text(yaml.safe_dump(saved))
    values = plain(restored(stopped, [], {}))
    assert (values["proposals"]["folder"], values["data"]["root"]) == (name, name)
    assert plain(restored(stopped, ["data.root=${seed}"], {}))["data"]["root"] == saved["seed"]  # of the command line


def test_a_folder_named_auto_is_no_run_to_restore(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("auto").mkdir()
    assert run_to_restore(["resume=auto", "run.dir=x"]) is None
    assert run_to_restore(["resume=./auto"]) == Path("auto")


def test_a_run_without_a_checkpoint_begins_with_its_settings(stopped, shown, command):
    shutil.rmtree(stopped / "checkpoints")
    for name in ("metrics.jsonl", "metrics.json"):
        (stopped / name).unlink()
    assert shown(f"resume={stopped}")["train"]["iterations"] == 6
    status, _, error = command(f"resume={stopped}", "seed=1")
    assert (status, "seed " in error) == (2, True)
