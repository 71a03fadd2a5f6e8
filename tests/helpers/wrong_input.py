"""Commands with wrong input: how a case is described, made, run and checked, in a folder of its own."""

import contextlib
import hashlib
import importlib
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

import evaluate
import train
from detector.app.start import run_program
from detector.settings import EvaluateSettings, TrainSettings
from tests.helpers.surroundings import allow, in_fork

LONG = "x" * 300
HANGS_S = 60
TRAIN = (
    "train data=voc data.root=T data.train_split=train data.short_side_px=64 data.max_side_px=96 model.hidden=16 "
    "model.weights=null train.iterations=1 train.images_per_batch=2 roi.rois_per_image=16 workers=0 device=cpu "
    "precision=float32 proposals.mode=single run.dir=R"
)
DETECT = "scripts.detect --checkpoint best.pt --device cpu --mode single"
GENERATE = "scripts.proposals generate --data T --split train --mode single --out"
CHECK = "scripts.check_data --data T --splits train"
SCORE = "evaluate device=cpu data.root=T data.val_split=test out=E"
SAVED = f"{SCORE} data=voc detections=D.json"


@dataclass(frozen=True)
class Case:
    """A command in a folder with T (a dataset in VOC layout), p.safetensors (its proposals) and best.pt."""

    name: str
    command: str
    says: str  # how the first line of stderr begins after "error: ", or of stdout where that is empty; ... is any text
    make: Callable[[], object] = lambda: None  # called in the folder
    status: int = 2  # nothing may be written then
    environment: dict[str, str] = field(default_factory=dict)
    within: Callable[[], object] | None = None  # called in a fork of this process, in which the command then runs

    @property
    def id(self) -> str:
        return self.name.replace(" ", "-")


def replace(name: str, old: str, new: str) -> Callable[[], None]:
    """Replace a part of a file's text."""

    def change() -> None:
        text = Path(name).read_text()
        assert old in text
        Path(name).write_text(text.replace(old, new, 1))

    return change


def rewrite(name: str, old: str, new: str) -> None:
    """Replace a text wherever it is in a file."""
    Path(name).write_text(Path(name).read_text().replace(old, new))


def write(name: str, content: str | bytes | object) -> Callable[[], None]:
    """Write a file, as JSON if it is neither text nor bytes."""

    def change() -> None:
        Path(name).unlink(missing_ok=True)
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return change


def all_of(*steps: Callable[[], object]) -> Callable[[], None]:
    def change() -> None:
        for step in steps:
            step()

    return change


def pipe(name: str) -> Callable[[], None]:
    """A named pipe in place of a file: reading it waits without end."""

    def change() -> None:
        Path(name).unlink(missing_ok=True)
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(name)

    return change


def endless(name: str) -> Callable[[], None]:
    def change() -> None:
        Path(name).unlink(missing_ok=True)
        Path(name).symlink_to("/dev/zero")

    return change


def picture(name: str, byte: tuple[int, int] | None = None) -> Callable[[], None]:
    """A gray image, one of whose bytes can be another."""

    def change() -> None:
        path = Path(os.fsdecode(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (90, 90, 90)).save(path)
        if byte:
            data = bytearray(path.read_bytes())
            data[byte[0]] = byte[1]
            path.write_bytes(data)

    return change


IDS = [*(f"train_{number}" for number in range(6)), *(f"test_{number}" for number in range(3))]


def finished(change: Callable[[], object]) -> Callable[[], None]:
    """What is left of a finished run in R, after this change."""
    return all_of(
        write("R/.lock", "process 1 on here\n"), write("R/metrics.jsonl", '{"iteration": 1, "loss/val": 1.5}\n'),
        write("R/metrics.json", "{}"), write("R/report.html", "<html>"), change,
    )  # fmt: skip


USE_STORE = "scripts.proposals info p.safetensors"


def coco(change: Callable[[dict], object]) -> Callable[[], None]:
    """T/a.json, a COCO file of two images and objects, after this change."""

    def make() -> None:
        content = {
            "images": [
                {"id": 1, "file_name": "JPEGImages/train_0.jpg"},
                {"id": 2, "file_name": "JPEGImages/train_1.jpg"},
            ],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40]},
                {"id": 2, "image_id": 2, "category_id": 2, "bbox": [5, 5, 30, 40]},
            ],
        }
        change(content)
        write("T/a.json", content)()

    return make


def item(part: str, **values: object) -> Callable[[dict], object]:
    return lambda content: content[part][1].update(values)


COCO = "scripts.check_data --data T --annotations a.json"
NESTED = "[" * 100_000
ENTRY = {"image_id": "test_0", "category_id": 1, "category_name": "ball", "bbox": [1, 2, 30, 40], "score": 0.5}


def run(command: str) -> int:
    """A command in this process; returns its exit status."""
    program, *arguments = shlex.split(command)
    sys.argv[:] = [program, *arguments]
    try:
        if program in ("train", "evaluate"):
            main, schema = {"train": (train.main, TrainSettings), "evaluate": (evaluate.main, EvaluateSettings)}[
                program
            ]
            run_program(main, program, schema)
            return 0
        return importlib.import_module(program).main() or 0
    except SystemExit as end:
        return int(end.code or 0)


def run_within(change: Callable[[], object], command: str) -> int:
    """As `run`, after a change of what surrounds this process."""
    change()
    return run(command)


@contextlib.contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        pytest.fail(f"hangs for {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def contents(folder: Path) -> dict[str, str]:
    """The digest of each file below a folder."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
        for path in sorted(folder.rglob("*"))
        if not path.is_dir() and path.name != ".lock"
    }


def check(
    case: Case, folder: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, one_line: bool
) -> None:
    """Run the command of a case in `folder`: its exit status, what it says, and that no file of the user changes.

    one_line: all that it prints to stderr is one line.
    """
    case.make()
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", [])
    before = contents(folder)
    with no_longer_than(HANGS_S):
        status = run(case.command) if case.within is None else in_fork(lambda: run_within(case.within, case.command))
    allow(folder)
    out, err = capfd.readouterr()
    err = re.sub(r"^\[mov,mp4.*\n", "", err)  # of OpenCV
    assert (status, "Traceback" in out + err) == (case.status, False), out + err
    said = re.sub(r"^(\d\d:\d\d:\d\d |error: )", "", err or out)  # the time of a log
    assert re.match(".*".join(map(re.escape, case.says.split("..."))), said, re.DOTALL), said
    if one_line:
        assert err.count("\n") == 1, err
    after = contents(folder)
    assert {path: digest for path, digest in after.items() if path in before} == before
    if status == 2:
        new = [path for path in after if path not in before]
        assert [path for path in new if ".unfinished/" not in path and not path.endswith("multirun.yaml")] == []
