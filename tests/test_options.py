"""scripts/benchmarks/options.py: what it trains and evaluates, without doing it."""

import argparse
import json

import pytest

from detector.errors import InputError
from scripts.benchmarks import options, recipes


@pytest.mark.parametrize("row", options.ROWS)
def test_every_row_composes(row, settings):
    settings("train", *options.ROWS[row])
    settings("evaluate", *options.EVALUATED.get(row, []))


def parse(benchmark, command):
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    return parser.parse_args(command)


def test_rows_of_inference_evaluate_the_default(tmp_path, monkeypatch, capsys):
    commands = []

    def fake(command, **_):
        given = dict(part.split("=", 1) for part in command if "=" in part)
        commands.append((command[1].rpartition("/")[2], given))
        folder = tmp_path / given.get("run.dir", given.get("out"))
        folder.mkdir()
        (folder / "report.html").touch()
        (folder / "metrics.jsonl").write_text('{"iteration": 1, "time/step_s": 0.25}\n')
        value = 0.25 if "detect.nms" in given else 0.5
        (folder / "metrics.json").write_text(json.dumps({"main": {"value": value}}))
        return argparse.Namespace(returncode=0, stderr="", stdout="60 images in 12.0 s: 0.2000 s per image\n")

    monkeypatch.setattr(recipes.subprocess, "run", fake)
    command = ["--data", "shapes", "--seeds", "0", "--iterations", "9", "--folder", str(tmp_path)]
    for _ in range(2):  # the second time nothing is repeated
        options.run(parse(options, [*command, "--rows", "default", "GIoU", "soft-NMS"]))
        lines = capsys.readouterr().out.splitlines()[-3:]
        assert lines == [
            "| shapes | default | 9 | 1 | 0.500 | 0.500 | 0.000 | 0.200 |",
            "| shapes | GIoU | 9 | 1 | 0.500 | 0.500 | 0.000 | 0.200 |",
            "| shapes | soft-NMS | 9 | 1 | 0.250 | 0.250 | 0.000 | 0.200 |",
        ]
    assert [name for name, _ in commands] == ["train.py", "evaluate.py", "train.py", "evaluate.py", "evaluate.py"]
    default = commands[0][1]["run.dir"]
    assert commands[4][1]["checkpoint"] == f"{default}/checkpoints/last.pt"
    assert commands[2][1]["loss.box"] == "giou"
    recipes.run(parse(recipes, [*command, "--recipes", "default"]))  # the same run
    options.run(parse(options, [*command, "--rows", "both=augment=strong detect.flip=true"]))
    assert [name for name, _ in commands[5:]] == ["train.py", "evaluate.py"]
    assert commands[5][1]["augment"] == "strong"
    assert commands[5][1]["detect.flip"] == "true"
    with pytest.raises(InputError, match="--rows: nothing: must be NAME=OVERRIDES or one of default, "):
        options.run(parse(options, [*command, "--rows", "nothing"]))
