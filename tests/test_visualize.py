"""scripts/visualize.py: the files of each command, and invalid input."""

import numpy as np
import pytest
from PIL import Image

from scripts.visualize import main


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_roi_pool_writes_pictures_and_an_animation(tmp_path, capsys):
    out, small = tmp_path / "out", str(tmp_path / "map.npy")
    np.save(small, np.eye(4))
    options = ["--map", small, "--region", "0", "0", "2", "2", "--output-size", "1", "2"]
    assert main(["roi_pool", *options, "--out", str(out)]) == 0
    names = ["comparison", "steps_disjoint", "steps_overlapping"]
    assert files(out) == sorted(["roi_pool.gif", *(f"{name}.{kind}" for name in names for kind in ("png", "svg"))])
    assert str(out / "roi_pool.gif") in capsys.readouterr().out
    with Image.open(out / "roi_pool.gif") as animation:
        assert animation.n_frames == 10
    assert main(["roi_pool", "--out", str(out)]) == 2  # nothing is overwritten
    assert "not an empty folder" in capsys.readouterr().err


def test_roi_pool_reads_other_maps(tmp_path):
    np.savetxt(tmp_path / "map.csv", np.arange(12).reshape(3, 4), delimiter=",")
    options = ["--map", str(tmp_path / "map.csv"), "--region", "0", "0", "9", "9"]
    assert main(["roi_pool", *options, "--out", str(tmp_path / "out")]) == 0
    assert files(tmp_path / "out") == ["roi_pool.gif", "steps_overlapping.png", "steps_overlapping.svg"]


@pytest.mark.parametrize("name", ["missing.npy", "text.npy", "text.csv", "cube.npy", "folder.csv", "objects.npy"])
def test_unusable_map_is_named(tmp_path, capsys, name):
    (tmp_path / "text.npy").write_text("nothing")
    (tmp_path / "text.csv").write_text("a,b\nc")
    np.save(tmp_path / "cube.npy", np.zeros((2, 3, 4)))
    np.save(tmp_path / "objects.npy", np.array([[{}]]), allow_pickle=True)
    (tmp_path / "folder.csv").mkdir()
    assert main(["roi_pool", "--map", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the map has the shape (2, 3, 4)" in error if name == "cube.npy" else str(tmp_path / name) in error
    assert not (tmp_path / "out").exists()
