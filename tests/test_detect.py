"""scripts/detect.py on the checkpoint of a short training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
from detector import api
from detector.data.voc import read_annotation, read_voc
from detector.proposals import generate
from detector.proposals import search as image_search
from detector.training.checkpoint import load_checkpoint, save_weights
from scripts import detect


@pytest.fixture
def images(small_shapes, tmp_path) -> Path:
    """Two good images, of which one has 16 bits, and two bad ones."""
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(small_shapes / "JPEGImages/test_0.jpg", folder / "good.jpg")
    gray = np.asarray(Image.open(folder / "good.jpg").convert("L")).astype(np.uint16) * 256
    Image.fromarray(gray).save(folder / "deep.png")
    (folder / "cut.jpg").write_bytes((folder / "good.jpg").read_bytes()[:3000])
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden").write_text("not looked at")
    return folder


def run(checkpoint: Path, source: object, out: Path, *options: str) -> int:
    usual = ["--score-threshold", "0.05", "--device", "cpu"]
    return detect.main(["--checkpoint", str(checkpoint), "--input", str(source), "--out", str(out), *usual, *options])


def read(out: Path) -> list[dict]:
    return json.loads((out / "detections.json").read_text())


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_exported_weights_find_the_same(checkpoint, images, tmp_path):
    save_weights(tmp_path / "shared", load_checkpoint(checkpoint))
    for name, source in (("a", checkpoint), ("b", tmp_path / "shared/model.safetensors")):
        assert run(source, images / "good.jpg", tmp_path / name) == 0
    assert read(tmp_path / "a") == read(tmp_path / "b") != []


def test_a_bad_image_is_reported_and_the_rest_goes_on(checkpoint, images, tmp_path, capsys):
    before = {path: path.read_bytes() for path in images.iterdir()}
    assert run(checkpoint, images, tmp_path / "out", "--voc-xml") == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{images}/cut.jpg: damaged image")
    assert lines[1].startswith(f"{images}/notes.txt: not an image")
    pictures = ["pictures/deep.jpg", "pictures/good.jpg"]
    assert files(tmp_path / "out") == ["annotations/deep.xml", "annotations/good.xml", "detections.json", *pictures]
    found = read(tmp_path / "out")
    assert {item["image_id"] for item in found} == {"deep.png", "good.jpg"}
    assert {path: path.read_bytes() for path in images.iterdir()} == before
    # pictures are the images with something drawn on them
    drawn = np.asarray(Image.open(tmp_path / "out/pictures/deep.jpg")).astype(int)
    original = np.asarray(Image.open(images / "good.jpg").convert("L")).astype(int)
    assert drawn.shape == (*original.shape, 3)
    assert 0 < (abs(drawn[..., 0] - original) > 60).mean() < 0.8
    # annotations are the detections, to the pixel
    mine = [item for item in found if item["image_id"] == "good.jpg"]
    xml = read_annotation(tmp_path / "out/annotations/good.xml")
    assert xml.annotated_hw == original.shape
    assert list(xml.names) == [item["category_name"] for item in mine]
    corners = [[x, y, x + width, y + height] for x, y, width, height in (item["bbox"] for item in mine)]
    np.testing.assert_allclose(xml.boxes, corners, atol=1)


def test_it_finds_what_evaluate_finds(checkpoint, small_shapes, settings, tmp_path):
    """On proposals of its own and on those of a file."""
    common = ["workers=0", f"proposals.folder={tmp_path}/p", "data.val_split=test"]
    evaluate.main(settings("evaluate", f"checkpoint={checkpoint}", f"out={tmp_path}/scored", *common))
    expected = set()
    for name in ("ball", "crate", "kite", "star"):
        for line in (tmp_path / f"scored/detections/comp4_det_test_{name}.txt").read_text().splitlines():
            image_id, score, x1, y1, x2, y2 = line.split()
            expected.add((image_id, name, round(float(score), 3), *(round(float(v)) for v in (x1, y1, x2, y2))))
    dataset = read_voc(small_shapes, "test")
    generate.generate_proposals(dataset, tmp_path / "file.safetensors", "single", workers=1)
    assert len(expected) > 30
    pattern = small_shapes / "JPEGImages/test_*.jpg"
    for out, options in (("searched", []), ("given", ["--proposals", f"{tmp_path}/file.safetensors"])):
        assert run(checkpoint, pattern, tmp_path / out, *options) == 0
        found = set()
        for item in read(tmp_path / out):
            x, y, width, height = item["bbox"]
            corners = (round(v) for v in (x + 1, y + 1, x + width, y + height))
            found.add((Path(item["image_id"]).stem, item["category_name"], round(item["score"], 3), *corners))
        assert len(found & expected) >= 0.97 * len(expected)  # but for values on the edge of rounding
        assert len(found) == len(expected)


def test_proposals_that_do_not_fit_are_reported(checkpoint, images, make_proposals, tmp_path, capsys):
    height, width = np.asarray(Image.open(images / "good.jpg")).shape[:2]
    make_proposals(tmp_path / "p.safetensors", {"good": [[0, 0, 50, 50]]}, hw=(height, width))
    assert run(checkpoint, images, tmp_path / "out", "--proposals", f"{tmp_path}/p.safetensors") == 1
    assert "deep.png: " in (errors := capsys.readouterr().err)
    assert f"{tmp_path}/p.safetensors has no proposals for it" in errors
    assert {item["image_id"] for item in read(tmp_path / "out")} == {"good.jpg"}
    make_proposals(tmp_path / "other.safetensors", {"good": [[0, 0, 50, 50]]}, hw=(1, 2))
    options = ["--proposals", f"{tmp_path}/other.safetensors"]
    assert run(checkpoint, images / "good.jpg", tmp_path / "other", *options) == 1
    assert "the proposals of good were made on an image of height and width (1, 2)" in capsys.readouterr().err
    assert run(checkpoint, images / "deep.png", tmp_path / "none", *options) == 2
    assert "has none of these images; it must have deep.png" in capsys.readouterr().err


def test_options_have_their_effect(checkpoint, images, tmp_path):
    def found(*options: str) -> list[dict]:
        out = tmp_path / "-".join(("out", *options))
        assert run(checkpoint, images / "good.jpg", out, *options) == 0
        assert not (out / "annotations").exists()
        return read(out)

    usual = found()
    assert len(found("--max-detections", "3")) == 3 < len(usual)
    assert {item["bbox"][0] for item in found("--mode", "fast")} != {item["bbox"][0] for item in usual}
    middle = float(np.median([item["score"] for item in usual]))
    above = [item for item in usual if item["score"] > middle]
    assert found("--score-threshold", str(middle)) == above != usual


def test_one_image_is_searched_on_all_cores_and_many_beside_each_other(checkpoint, images, tmp_path, monkeypatch):
    search, asked = image_search.selective_search, []
    monkeypatch.setattr(api.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(image_search, "selective_search", lambda *a, **b: asked.append(b["threads"]) or search(*a, **b))
    assert run(checkpoint, images / "good.jpg", tmp_path / "one") == 0
    assert run(checkpoint, images / "[gd]*.*", tmp_path / "two") == 0
    assert run(checkpoint, images, tmp_path / "four") == 1
    assert asked == [4, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"--input": "nowhere/*.jpg"}, "nowhere/*.jpg: there is no file"),
        ({"--input": "{empty}"}, "its subfolders are not searched, but those of '{empty}/**/*' are"),
        ({"--checkpoint": "nowhere.pt"}, "nowhere.pt: no such file"),
        ({"--out": "{images}"}, "--out: {images} is not an empty folder, and nothing is overwritten"),
        ({"--out": "{images}/good.jpg"}, "--out: {images}/good.jpg cannot be written"),
        ({"--score-threshold": "3"}, "detect.score_threshold=3.0: must be a number from 0 to 1"),
        ({"--max-detections": "0"}, "detect.max_detections=0: must be"),
        ({"--device": "cuda:99"}, "device: 'cuda:99' is not available"),
        ({"--proposals": "p.npy"}, "p.npy: proposals are read from"),
    ],
)
def test_wrong_input(checkpoint, images, tmp_path, capsys, options, says):
    places = {"images": str(images), "empty": str(tmp_path / "empty")}
    (tmp_path / "empty/sub").mkdir(parents=True)
    before = files(tmp_path)
    usual = {"--checkpoint": str(checkpoint), "--input": str(images), "--out": str(tmp_path / "out")}
    command = [text.format(**places) for option in (usual | options).items() for text in option]
    assert detect.main(command) == 2
    assert says.format(**places) in capsys.readouterr().err
    assert files(tmp_path) == before


def test_images_of_the_same_name_are_told_apart(checkpoint, images, tmp_path):
    (images / "sub").mkdir()
    for name in ("good.png", "sub/good.jpg", "sub/a b.bmp"):
        Image.open(images / "good.jpg").save(images / name)
    assert run(checkpoint, images / "**/[ga]*", tmp_path / "out", "--max-detections", "1") == 0
    assert {item["image_id"] for item in read(tmp_path / "out")} == {
        "good.jpg",
        "good.png",
        "sub/good.jpg",
        "sub/a b.bmp",
    }
    pictures = ["good.jpg", "good.png.jpg", "sub/a b.jpg", "sub/good.jpg"]
    assert files(tmp_path / "out/pictures") == pictures
    assert detect.output_stems(["a.jpg", "a.png", "A.PNG", "a.png.bmp"]) == ["a", "a.png", "A.PNG-2", "a.png.bmp"]
