"""scripts/benchmarks/recipes.py: what it trains, without training."""

import argparse
import json

import pytest

from detector.errors import InputError
from scripts import benchmark
from scripts.benchmarks import recipes


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_composes(name, settings):
    settings("train", *recipes.RECIPES[name])


def test_the_table_of_a_study(make_voc, tmp_path, monkeypatch, capsys):
    objects = [("cat", 1, 1, 20, 20)]
    root = make_voc({"trainval": dict.fromkeys("abcdefgh", objects), "test": {"t": objects}})
    scores, commands = iter([0.5, 0.7]), []

    def fake(command, **options):
        commands.append(command)
        [folder] = [tmp_path / part.partition("=")[2] for part in command if part.startswith("run.dir=")]
        folder.mkdir()
        (folder / "report.html").touch()
        (folder / "metrics.jsonl").write_text('{"iteration": 1, "time/step_s": 0.25}\n')
        (folder / "metrics.json").write_text(json.dumps({"main": {"value": next(scores)}}))
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(recipes.subprocess, "run", fake)
    parser = argparse.ArgumentParser()
    recipes.add_arguments(parser)
    command = ["--data", f"mine={root}", "--seeds", "0", "1", "--iterations", "9", "--folder", str(tmp_path / "study")]
    for _ in range(2):  # the second time no run is repeated
        recipes.run(parser.parse_args(command))
        assert "| mine | default | 9 | 2 | 0.600 | 0.500 | 0.200 | 0.250 |" in capsys.readouterr().out
    assert len(commands) == 2
    [divided] = (tmp_path / "study").glob("data-mine-*")
    splits = {name: (divided / f"ImageSets/Main/{name}.txt").read_text() for name in ("train", "val")}
    assert [len(text.split()) for text in splits.values()] == [6, 2]
    assert sorted("".join(splits.values()).split()) == list("abcdefgh")
    with pytest.raises(InputError, match="--recipes: sdg: must be NAME=OVERRIDES or one of default, "):
        recipes.run(parser.parse_args([*command, "--recipes", "sdg"]))
    assert benchmark.main(["recipes", "--data", "mine"]) == 2
    assert capsys.readouterr().err.startswith("error: --data: mine: must be shapes or NAME=ROOT")
