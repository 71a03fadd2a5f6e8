"""scripts/visualize.py: the files of each command, and invalid input."""

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from detector.errors import InputError
from detector.inference.video import Video
from detector.models.pooling import PyramidPooling, RoIAlign
from detector.roi_pool import RoIPool
from detector.settings import Detect
from detector.visualization.detection import draw_stages
from detector.visualization.features import pool_roi
from scripts import detect
from scripts.visualizations import _animation, _trained
from scripts.visualizations.detection import stages_of
from scripts.visualizations.features import pooling_of
from scripts.visualize import main
from tests.helpers import layouts


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
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


def test_an_mp4_shows_each_picture_as_long_as_the_gif(tmp_path):
    pictures = [np.full((35, 41, 3), shade, dtype=np.uint8) for shade in (0, 250)]  # an odd size
    _animation.write_animation(tmp_path / "new", "a", "mp4", pictures, [0.1, 1.0])
    video = Video(str(tmp_path / "new/a.mp4"))
    shades = [frame.mean() for frame in video]
    assert video.fps == _animation.FPS
    np.testing.assert_allclose(shades, [0] * 2 + [250] * 20, atol=6)


def test_roi_pool_reads_other_maps(tmp_path):
    np.savetxt(tmp_path / "map.csv", np.arange(12).reshape(3, 4), delimiter=",")
    options = ["--map", str(tmp_path / "map.csv"), "--region", "0", "0", "9", "9", "--animation", "mp4"]
    assert main(["roi_pool", *options, "--out", str(tmp_path / "out")]) == 0
    assert files(tmp_path / "out") == ["roi_pool.mp4", "steps_overlapping.png", "steps_overlapping.svg"]
    assert len([*Video(str(tmp_path / "out/roi_pool.mp4"))]) > 20


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


@pytest.fixture
def image(small_shapes):
    return small_shapes / "JPEGImages/test_0.jpg"


@pytest.fixture
def seen(checkpoint, image):
    """A pass of the untrained network over the image, as the commands make it."""
    parser = argparse.ArgumentParser()
    _trained.add_arguments(parser)
    options = ["--checkpoint", str(checkpoint), "--image", str(image), "--score-threshold", "0.15", "--device", "cpu"]
    return _trained.forward(parser.parse_args(options))


def test_drawn_detections_are_those_of_detect(seen, checkpoint, image, tmp_path):
    options = ["--score-threshold", "0.15", "--device", "cpu"]
    detect.main(["--checkpoint", str(checkpoint), "--input", str(image), "--out", str(tmp_path / "found"), *options])
    found = json.loads((tmp_path / "found/detections.json").read_text())
    _, captions = draw_stages(stages_of(seen, 0.15))
    assert captions == [f"{item['category_name']} {item['score']:.2f}" for item in found]
    assert 0 < len(captions) < len(seen.candidates.rows)


def test_pooled_roi_and_its_cells_are_those_of_the_network(seen):
    box = seen.batch.proposals[0][7]
    roi = pool_roi(seen.features, box.numpy(), (7, 7), 1 / 16)
    expected = seen.model.roi_pool(seen.features, seen.rois[7:8])[0].float()
    assert np.array_equal(roi.pooled, expected.numpy())
    assert roi.counts.sum() == roi.pooled.size
    features = seen.features.float().detach().clone().requires_grad_()
    torchvision.ops.roi_pool(features, seen.rois[7:8].clone(), 7, 1 / 16).sum().backward()  # 1 per maximum of a cell
    assert np.array_equal(roi.counts, features.grad[0].sum(dim=0).numpy())


def test_roi_is_pooled_from_its_level_of_a_pyramid():
    def detecting(**values):
        return SimpleNamespace(detect=Detect(**values))

    maps = [torch.zeros(1, 1, 64 // 2**level, 64 // 2**level) for level in range(4)]
    rois = torch.tensor([[0, 0, 0, 224, 224], [0, 0, 0, 100, 100.0]])
    pools = PyramidPooling([RoIPool(7, 1 / 4 / 2**level) for level in range(4)])
    layer, features = pooling_of(pools, maps, rois[:1])
    assert (layer.spatial_scale, features.shape[2]) == (1 / 16, 16)
    assert pooling_of(pools, maps, rois[1:])[0].spatial_scale == 1 / 4
    with pytest.raises(InputError, match="RoI Align, which takes no maxima"):
        pooling_of(RoIAlign(7, 1 / 16), maps[0], rois[:1])
    with pytest.raises(InputError, match=r"detect\.pyramid_px"):
        _trained.require_one_scale(detecting(pyramid_px=(400,)))


@pytest.mark.slow
def test_detection_and_features_write_their_pictures(checkpoint, image, tmp_path, capsys):
    options = ["--checkpoint", str(checkpoint), "--image", str(image), "--score-threshold", "0.15", "--device", "cpu"]
    assert main(["detection", *options, "--out", str(tmp_path / "detection")]) == 0
    assert files(tmp_path / "detection") == ["detection.gif", "stages.png", "stages.svg"]
    assert main(["features", *options, "--out", str(tmp_path / "features")]) == 0
    assert files(tmp_path / "features") == ["features.png", "features.svg"]
    assert "one pass for 60 RoIs" in capsys.readouterr().out
    assert main(["features", *options, "--detection", "5000", "--out", str(tmp_path / "more")]) == 2
    assert main(["features", *options[:-3], "1", "--out", str(tmp_path / "none")]) == 2
    assert "lower --score-threshold" in capsys.readouterr().err


def test_proposals_of_an_image_and_of_a_dataset(small_shapes, image, tmp_path):
    assert main(["proposals", str(image), "--out", str(tmp_path / "one")]) == 0
    assert files(tmp_path / "one") == ["hierarchy.png", "hierarchy.svg", "proposals.png", "proposals.svg"]
    options = ["--split", "test", "--count", "3", "--drawn", "1", "--mode", "single"]
    assert main(["proposals", str(small_shapes), *options, "--out", str(tmp_path / "two")]) == 0
    names = ["recall", "test_0"]
    assert files(tmp_path / "two") == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]


def test_a_folder_as_it_is_found_is_shown(tmp_path):
    layouts.label_studio_yolo(tmp_path / "set")
    assert main(["data", str(tmp_path / "set"), "--out", str(tmp_path / "out")]) == 0
    assert "data.html" in files(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["missing", "--split", "test"], "missing: there is no file"),
        (["{root}/JPEGImages/test_0.jpg", "--split", "test"], "--split belongs to DATASET, a folder"),
        (["{root}"], "is in VOC layout: name a split, of which it has"),
        (["{root}", "--split", "test", "--images", "x"], "--images belongs to --annotations"),
        (["{root}", "--split", "test", "--count", "0"], "--count: 0 must be 1 or more"),
        (["{root}/JPEGImages/test_0.jpg", "--proposals", "none.mat"], "none.mat"),
    ],
)
def test_unusable_source_of_proposals_is_named(small_shapes, tmp_path, capsys, options, message):
    options = [option.format(root=small_shapes) for option in options]
    assert main(["proposals", *options, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "missing.jpg"], "--image: missing.jpg: there is no such file"),
        (["--checkpoint", "missing.pt"], "missing.pt"),
        (["--score-threshold", "nan"], "--score-threshold: nan"),
    ],
)
def test_unusable_network_or_image_is_named(checkpoint, image, tmp_path, capsys, options, message):
    usual = ["--checkpoint", str(checkpoint), "--image", str(image)]
    assert main(["detection", *usual, *options, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_data_writes_one_page_with_all_its_pictures(small_shapes, tmp_path):
    assert main(["data", str(small_shapes), "--split", "train", "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/data.html").read_text()
    sheets = [name for name in files(tmp_path / "out") if name.startswith("sheet_")]
    assert page.count("data:image/jpeg") == len(sheets) + 1  # and the statistics
    assert "train: 6 images found" in page
    assert "http" not in page


@pytest.mark.slow
def test_augment_uses_the_settings_of_training(small_shapes, tmp_path):
    common = ["data=voc", f"data.root={small_shapes}", "data.train_split=train", "data.short_side_px=96"]
    pictures = []
    for choice in ("augment=none", "augment=none", "augment=scale"):
        out = tmp_path / str(len(pictures))
        options = ["--image-id", "train_3", "--count", "1", "--out", str(out)]
        assert main(["augment", "--settings", *common, "proposals.mode=single", choice, *options]) == 0
        names = ["augmentation.png", "augmentation.svg", "sampled_rois.png", "sampled_rois.svg"]
        assert files(out) == names
        pictures.append((out / "augmentation.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--settings", "augment=zoom"], "augment=zoom: must be one of"),
        (["--count", "0"], "--count: 0 must be 1 or more"),
        (
            ["--settings", "data=voc", "data.root={root}", "data.train_split=train", "--image-id", "none"],
            "none is not in",
        ),
    ],
)
def test_unusable_settings_of_augment_are_named(small_shapes, tmp_path, capsys, options, message):
    options = [option.format(root=small_shapes) for option in options]
    assert main(["augment", *options, "--out", str(tmp_path / "c")]) == 2
    assert message in capsys.readouterr().err
