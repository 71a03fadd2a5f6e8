"""scripts/select_images.py with an untrained network."""

import csv
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import detector
from scripts import select_images


@pytest.fixture
def images(small_shapes, tmp_path):
    """Three different images, one of them in a subfolder, and a file that is none."""
    folder = tmp_path / "unlabelled"
    (folder / "more").mkdir(parents=True)
    shutil.copy(small_shapes / "JPEGImages/test_0.jpg", folder / "a.jpg")
    shutil.copy(small_shapes / "JPEGImages/train_0.jpg", folder / "more/b.jpg")
    Image.new("RGB", (64, 64)).save(folder / "empty.jpg")
    (folder / "notes.txt").write_text("no image")
    return folder


def run(checkpoint, source, out, *options):
    common = ["--checkpoint", checkpoint, "--input", source, "--out", out, "--device", "cpu"]
    return select_images.main([str(value) for value in (*common, *options)])


def test_doubt_is_the_squared_margin():
    scores = np.array([0.5, 0.75, 1.0, 0.0], np.float32)
    assert select_images.doubt_of(scores, "sum") == 1 + 0.25
    assert select_images.doubt_of(scores, "mean") == 1.25 / 4
    assert select_images.doubt_of(scores, "max") == 1
    assert [select_images.doubt_of(scores[:0], by) for by in select_images.COMBINE] == [0, 0, 0]


def test_images_are_ranked_and_the_first_copied(checkpoint, images, tmp_path, capsys):
    pattern = f"{images}/**/*"
    assert run(checkpoint, pattern, tmp_path / "out", "--top", "2", "--by", "max") == 1
    assert capsys.readouterr().err.startswith(f"{images}/notes.txt: not an image")
    rows = list(csv.DictReader((tmp_path / "out/ranking.csv").open()))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    model, expected = detector.load(checkpoint, "cpu"), {}
    for name in ("a.jpg", "more/b.jpg", "empty.jpg"):
        scores = model.detect(images / name, score_threshold=0.05).scores.astype(np.float64)
        expected[name] = max([(1 - abs(2 * p - 1)) ** 2 for p in scores], default=0.0)
    assert {row["image"]: float(row["doubt"]) for row in rows} == pytest.approx(expected, abs=1e-6)
    assert [row["image"] for row in rows] == sorted(expected, key=lambda name: (-expected[name], name))
    for row in rows[:2]:
        copied = tmp_path / "out/images" / row["image"]
        assert copied.read_bytes() == (images / row["image"]).read_bytes()
        assert not copied.is_symlink()
    assert not (tmp_path / "out/images" / rows[2]["image"]).exists()


def test_an_interrupt_while_images_are_copied_leaves_whole_files(checkpoint, images, tmp_path, monkeypatch, capsys):
    def stop(source, target):
        target.write(source.read(10))
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfileobj", stop)
    monkeypatch.setattr(os, "_exit", lambda status: None)  # threads may run: the program would end at once
    assert run(checkpoint, images / "a.jpg", tmp_path / "out", "--top", "1") == 130
    assert "every file in OUT is whole, but some may be missing" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["ranking.csv"]


def test_links_in_place_of_copies(checkpoint, images, tmp_path):
    assert run(checkpoint, images / "a.jpg", tmp_path / "out", "--top", "5", "--link") == 0
    link = tmp_path / "out/images/a.jpg"
    assert link.is_symlink()
    assert link.resolve() == (images / "a.jpg").resolve()


def test_wrong_input_is_refused_before_anything_is_written(checkpoint, images, tmp_path, capsys):
    for source, options, message in (
        (images, ["--top", "0"], "--top: 0: must be an integer from 1"),
        (images, ["--link"], "--link belongs to --top"),
        (tmp_path / "none", [], "there is no file"),
    ):
        assert run(checkpoint, source, tmp_path / "out", *options) == 2
        assert message in capsys.readouterr().err
    assert run(checkpoint, images, images) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
