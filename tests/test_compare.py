import dataclasses
import json
import shutil

import numpy as np
import pytest
import yaml

from detector.data.formats.voc import read_voc
from detector.errors import InputError
from detector.evaluation.report import score_detections
from detector.evaluation.results import write_result_files
from detector.settings import Metric
from detector.structures import Detections
from scripts import compare

OBJECTS = [("cat", 3, 3, 20, 20), ("dog", 30, 5, 50, 30)]


@pytest.fixture
def make_run(make_voc, settings, tmp_path):
    """An evaluated run that finds the objects of a share of the images, and has settings of its own."""
    root = make_voc({"val": {f"{number:02d}": OBJECTS for number in range(20)}})

    def make(name: str, share: float, *overrides: str, root=root, classes=("cat", "dog")):
        folder, dataset = tmp_path / name, read_voc(root, "val", classes=classes)
        generator, detections = np.random.default_rng(len(name)), []
        for index, image_id in enumerate(dataset.image_ids):
            truth = dataset.ground_truth(index)
            good = np.arange(len(truth.labels)) < (2 if index < 20 * share else 1)
            boxes = np.where(good[:, None], truth.boxes, truth.boxes + 30).astype(np.float32)
            scores = generator.uniform(0.6, 0.9, len(good)).astype(np.float32)
            order = np.argsort(-scores)
            detections.append(Detections(image_id, boxes[order], truth.labels[order], scores[order]))
        write_result_files(folder / "detections", detections, dataset.classes, devkit=False)
        metrics = score_detections(dataset, detections, Metric()).metrics
        (folder / "metrics.json").write_text(json.dumps(metrics))
        config = settings("train", "data=voc", f"data.root={root}", "data.val_split=val", *overrides).plain()
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        lines = [{"iteration": 10 * n, "loss/train": 1 / n, "mAP/11point_0.50": share * n / 9} for n in range(1, 10)]
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return folder

    return make


def test_page_and_table_of_two_runs(make_run, tmp_path, capsys, open_page):
    worse, better = make_run("worse", 0.2), make_run("better", 1.0, "seed=7")
    out = tmp_path / "comparison.html"
    assert compare.main([str(worse), str(better), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines() if line]
    main = json.loads((worse / "metrics.json").read_text())["main"]["value"]
    row = next(line for line in lines if line[0] == "mAP")
    assert (row[1], row[4]) == (f"{main:.3f}", "1.000")
    assert [line[-1] for line in lines if line[0] in ("cat", "dog", "mAP")][3:] == ["clear", "better", "better"]
    text = out.read_text()
    assert "http" not in text
    assert "<td>7</td>" in text  # seed
    assert "data.root" not in text  # equal in both
    assert "better finds, worse misses: 16 objects" in text
    assert "worse finds, better misses: 0 objects" in text
    page = open_page(out)
    assert page.locator(".plot path.curve").count() == 4  # training loss and mAP of each run
    assert page.locator(".picture").count() == 8
    page.locator(".picture").first.click()
    assert page.locator("#viewer rect.line.detection").count() == 1
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_three_runs_and_another_metric(make_run, tmp_path, capsys):
    folders = [str(make_run(name, share)) for name, share in (("a", 0.5), ("bb", 0.4), ("ccc", 0.9))]
    history = tmp_path / "a/metrics.jsonl"
    history.write_text(history.read_text().splitlines()[0])  # evaluated once
    assert compare.main([*folders, "--out", str(tmp_path / "c.html"), "--metric", "area@0.50:0.95"]) == 0
    assert (tmp_path / "c.html").read_text().count("a3 3 0 1 0 6 0") == 1  # a ring for its loss
    printed = capsys.readouterr().out
    assert "area@0.50:0.95, 20 images of" in printed
    assert "bb minus a" in printed
    assert "ccc minus a" in printed


def test_lines_of_a_killed_run_are_passed_over(make_run):
    folder = make_run("a", 0.5)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"loss/train": 1}\n[1]\n{"iteration": 100, "lo')
    assert [line["iteration"] for line in compare.read_history(compare.read_run(folder))] == [*range(10, 100, 10)]


@pytest.mark.parametrize(("field", "value"), [("crowd", [True, False]), ("areas", [1.0, 2.0])])
def test_annotations_that_differ_in_one_field(field, value, make_voc, monkeypatch):
    one, other = (read_voc(make_voc({"val": {"00": OBJECTS}}, name), "val") for name in ("one", "other"))
    compare.require_same(one, other, "differ")
    truth = other.ground_truth(0)
    changed = dataclasses.replace(truth, **{field: np.array(value)})
    monkeypatch.setattr(type(other), "ground_truth", lambda self, index: changed if self is other else truth)
    with pytest.raises(InputError, match="the annotations of 00 differ"):
        compare.require_same(one, other, "differ")


def test_comparisons_that_are_refused(make_run, make_voc, tmp_path, capsys):
    one, other = make_run("one", 0.5), make_run("other", 0.6)

    def refused(*arguments: object) -> str:
        assert compare.main([*map(str, arguments)]) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    out = ("--out", tmp_path / "out.html")
    assert "give at least two runs" in refused(one, *out)
    assert "give at least two runs" in refused(one, one, *out)
    assert f"{tmp_path / 'none'}: no such folder" in refused(one, tmp_path / "none", *out)
    (tmp_path / "empty").mkdir()
    assert "is not the folder of a run: it has no config.yaml" in refused(one, tmp_path / "empty", *out)
    shutil.copy(one / "config.yaml", tmp_path / "empty")
    assert "has no evaluation (metrics.json)" in refused(one, tmp_path / "empty", *out)
    (tmp_path / "empty/metrics.json").write_text("[]")
    assert "is not of this program" in refused(one, tmp_path / "empty", *out)
    assert "--metric: area@0.75 is not in every run" in refused(one, other, *out, "--metric", "area@0.75")
    assert "page.txt must end in .html" in refused(one, other, "--out", tmp_path / "page.txt")
    assert "out.html already exists and is not overwritten" in (
        (tmp_path / "out.html").touch() or refused(one, other, *out)
    )
    (tmp_path / "out.html").unlink()
    shorter = make_voc({"val": {"00": OBJECTS}}, "shorter")
    message = refused(one, make_run("short", 1.0, root=shorter), *out)
    assert "was evaluated on other data than" in message
    assert "1 images of" in message
    moved = make_voc({"val": {f"{number:02d}": [OBJECTS[0], ("dog", 31, 5, 50, 30)] for number in range(20)}}, "moved")
    assert "the annotations of 00 differ" in refused(one, make_run("relabelled", 1.0, root=moved), *out)
    cats = make_run("cats", 1.0, classes=("cat", "dog", "cow"))
    assert "other classes than" in refused(one, cats, *out)
    metrics = make_run("devkit", 0.5, "metric.devkit=true")
    assert "metric.devkit differs: false in" in refused(one, metrics, *out)
    seven = [tmp_path / f"run{number}" for number in range(7)]
    assert "at most 6 runs can be compared: 7 are given" in refused(*seven, *out)
    shutil.rmtree(other / "detections")
    assert "has no folder detections" in refused(one, other, *out)
    assert not (tmp_path / "out.html").exists()
