"""scripts/detect.py on the checkpoint of a short training."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import detector
import evaluate
from detector import api, selective_search
from detector.data import image as image_files
from detector.data.dataset import DetectionDataset, Record
from detector.data.formats.voc import read_annotation, read_voc
from detector.errors import InputError
from detector.inference.video import Video, VideoWriter, is_video
from detector.proposals import generate
from detector.training.checkpoint import load_checkpoint
from detector.training.sharing import save_weights
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
    assert found("--max-proposals", "5") != usual
    assert {item["bbox"][0] for item in found("--mode", "fast")} != {item["bbox"][0] for item in usual}
    middle = float(np.median([item["score"] for item in usual]))
    above = [item for item in usual if item["score"] > middle]
    assert found("--score-threshold", str(middle)) == above != usual


def test_one_image_is_searched_on_all_cores_and_many_in_parallel(checkpoint, images, tmp_path, monkeypatch):
    search, asked = selective_search.selective_search, []
    monkeypatch.setattr(api, "cores", lambda: 4)
    monkeypatch.setattr(
        selective_search, "selective_search", lambda *a, **b: asked.append(b["threads"]) or search(*a, **b)
    )
    assert run(checkpoint, images / "good.jpg", tmp_path / "one") == 0
    assert run(checkpoint, images / "[gd]*.*", tmp_path / "two") == 0
    assert run(checkpoint, images, tmp_path / "four") == 1
    assert asked == [4, 2, 2, 1, 1]


def test_each_image_is_decoded_once(checkpoint, small_shapes, tmp_path, monkeypatch):
    to_rgb, decoded = image_files._to_rgb, []
    monkeypatch.setattr(image_files, "_to_rgb", lambda image: decoded.append(image) or to_rgb(image))
    source = ["--checkpoint", str(checkpoint), "--data", str(small_shapes), "--split", "test", "--device", "cpu"]
    assert detect.main([*source, "--out", str(tmp_path / "out"), "--voc-xml", "--yolo"]) == 0
    assert len(decoded) == len(files(tmp_path / "out/pictures")) == 3


def test_classes_and_nms(checkpoint, images, tmp_path):
    for name, options in {"a": [], "b": ["--classes", "kite", "ball"], "c": ["--nms-iou", "0.9"]}.items():
        assert run(checkpoint, images / "good.jpg", tmp_path / name, *options) == 0
    usual = read(tmp_path / "a")
    assert read(tmp_path / "b") == [item for item in usual if item["category_name"] in ("kite", "ball")] != usual
    assert len(read(tmp_path / "c")) > len(usual)


def test_a_dataset_is_drawn_with_its_objects(checkpoint, small_shapes, tmp_path, capsys):
    options = ["--checkpoint", str(checkpoint), "--device", "cpu", "--score-threshold", "1"]
    dataset = ["--data", str(small_shapes), "--split", "test"]
    assert detect.main([*options, *dataset, "--out", str(tmp_path / "out")]) == 0
    assert files(tmp_path / "out/pictures") == ["test_0.jpg", "test_1.jpg", "test_2.jpg"]
    picture = np.asarray(Image.open(tmp_path / "out/pictures/test_0.jpg"))
    assert not np.allclose(picture, np.asarray(Image.open(small_shapes / "JPEGImages/test_0.jpg")), atol=60)
    assert detect.main([*options, "--out", str(tmp_path / "none")]) == 2
    assert "give either --input IMAGES or --data ROOT" in capsys.readouterr().err


def test_an_invalid_record_of_a_dataset_is_reported_and_skipped(checkpoint, make_coco, tmp_path, capsys):
    """The first image has an object of a class that the network does not know; the second has no file."""
    coco = make_coco({"val": {"a.b": [("dog", 5, 5, 20, 20), ("kite", 5, 5, 20, 20)], "gone": [("kite", 1, 1, 9, 9)]}})
    next(coco.rglob("gone.*")).unlink()
    options = ["--checkpoint", str(checkpoint), "--device", "cpu", "--out", str(tmp_path / "out")]
    data = ["--data", str(coco), "--annotations", "val.json", "--images", "images"]
    assert detect.main([*options, *data]) == 1
    captured = capsys.readouterr()
    assert "gone.jpg: there is no such file" in captured.err.splitlines()[-1]
    assert "in 1 of 2 images" in captured.out
    assert len(files(tmp_path / "out/pictures")) == 1


@pytest.mark.parametrize("image_id", ["../../x", "a/../../x", "{tmp_path}/x"])
def test_an_id_that_leads_out_of_the_folder_writes_nothing(checkpoint, images, tmp_path, capsys, monkeypatch, image_id):
    monkeypatch.setattr(DetectionDataset, "__post_init__", lambda _: None)  # which refuses these ids too
    record = Record(image_id.format(tmp_path=tmp_path), images / "good.jpg", tmp_path / "val.json")
    monkeypatch.setattr(detect, "given_dataset", lambda *_: DetectionDataset("val", ("kite",), [record]))
    before = files(tmp_path)
    options = ["--checkpoint", str(checkpoint), "--device", "cpu", "--out", str(tmp_path / "out"), "--yolo"]
    assert detect.main([*options, "--data", str(images)]) == 2
    assert "its id leads out of" in capsys.readouterr().err
    assert files(tmp_path) == before


def test_tiles(checkpoint, images, tmp_path):
    assert run(checkpoint, images / "good.jpg", tmp_path / "a", "--tiles", "200", "--tile-overlap", "0.5") == 0
    model = detector.load(checkpoint, "cpu")
    expected = model.detect(images / "good.jpg", score_threshold=0.05, tiles=detector.Tiles(200, 0.5))
    assert [item["score"] for item in read(tmp_path / "a")] == expected.scores.tolist()


def test_yolo_text_and_csv_have_the_same_boxes(checkpoint, images, tmp_path):
    assert run(checkpoint, images / "good.jpg", tmp_path / "out", "--yolo", "--csv") == 0
    height, width = np.asarray(Image.open(images / "good.jpg")).shape[:2]
    names = (tmp_path / "out/labels/classes.txt").read_text().split()
    lines = (tmp_path / "out/labels/good.txt").read_text().splitlines()
    table = (tmp_path / "out/detections.csv").read_text().splitlines()
    assert table[0] == "image,class,score,x1,y1,x2,y2"
    found = read(tmp_path / "out")
    assert len(found) == len(lines) == len(table) - 1 > 3
    for item, line, row in zip(found, lines, table[1:], strict=True):
        index, *numbers = line.split()
        x, y, w, h = item["bbox"]
        assert names[int(index)] == item["category_name"]
        expected = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height, item["score"]]
        np.testing.assert_allclose([float(number) for number in numbers], expected, atol=1e-5)
        image, name, *numbers = row.split(",")
        assert (image, name) == ("good.jpg", item["category_name"])
        np.testing.assert_allclose([float(n) for n in numbers], [item["score"], x, y, x + w, y + h], atol=0.01)


def write_video(path: Path, frames: int) -> None:
    """A bright square that moves to the right over noise."""
    generator = np.random.default_rng(0)
    with VideoWriter(path, fps=10) as writer:
        for number in range(frames):
            frame = generator.integers(0, 90, (48, 64, 3), dtype=np.uint8)
            frame[10:30, number % 40 : number % 40 + 20] = (250, 60, 40)
            writer.write(frame)


@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_the_frames_of_a_video_are_detected_as_single_images(checkpoint, tmp_path, capsys, count):
    write_video(tmp_path / "clip.mp4", count)
    assert run(checkpoint, tmp_path / "clip.mp4", tmp_path / "out", "--max-detections", "5") == 0
    assert re.search(rf"^{count} frames, \d+\.\d\d frames per second -> ", capsys.readouterr().out, flags=re.MULTILINE)
    lines = [json.loads(line) for line in (tmp_path / "out/detections.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(count))
    assert lines[-1]["time_s"] == pytest.approx((count - 1) / 10)
    model = detector.load(checkpoint, "cpu")
    frames = list(Video(str(tmp_path / "clip.mp4")))
    assert len(frames) == count
    assert frames[0][12:28, 2:18].mean(axis=(0, 1)) == pytest.approx((250, 60, 40), abs=25)  # RGB
    for frame, line in zip(frames, lines, strict=True):
        result = model.detect(frame, score_threshold=0.05, max_detections=5)
        assert [item["score"] for item in line["detections"]] == result.scores.tolist()
        assert [item["category_name"] for item in line["detections"]] == result.names
    drawn = list(Video(str(tmp_path / "out/video.mp4")))
    assert len(drawn) == count
    assert drawn[0].shape == frames[0].shape
    assert np.abs(drawn[0].astype(int) - frames[0]).mean() > 5


def test_a_number_is_a_camera_unless_a_folder_has_this_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2007").mkdir()
    assert [is_video(name) for name in ("0", "2007", "clip.MP4", "photographs")] == [True, False, True, False]
    with pytest.raises(InputError, match="2007: no such video file"):
        Video("2007")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("nowhere.mp4", [], "nowhere.mp4: no such video file"),
        ("text.mp4", [], "text.mp4: not a video that OpenCV can read"),
        ("text.mp4", ["--csv"], "--csv: is for images"),
        ("text.mp4", ["--classes", "dog"], "class 'dog' is not known to this network, which finds ball, crate"),
    ],
)
def test_wrong_input_with_a_video(checkpoint, tmp_path, capsys, name, options, says):
    (tmp_path / "text.mp4").write_text("no video")
    assert run(checkpoint, tmp_path / name, tmp_path / "out", *options) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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
        ({"--nms-iou": "2"}, "detect.nms_iou=2.0: must be"),
        ({"--max-proposals": "0"}, "data.val_max_proposals=0: must be"),
        ({"--classes": "dog"}, "class 'dog' is not known to this network"),
        ({"--tiles": "0"}, "tiles: their size is 0"),
        ({"--tile-overlap": "0.2"}, "--tile-overlap belongs to --tiles"),
        ({"--split": "val"}, "--split belongs to --data"),
        ({"--annotations": "val.json"}, "--annotations belongs to --data"),
        ({"--images": "images"}, "--images belongs to --data"),
        ({"--format": "yolo"}, "--format belongs to --data"),
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
    names = ["a.jpg", "a.png", "A.PNG", "a.png.bmp"]
    assert detect.output_stems({name: Path(name) for name in names}) == ["a", "a.png", "A.PNG-2", "a.png.bmp"]


def test_names_of_outputs_are_those_of_the_images():
    assert detect.output_stems({"a_jpg.rf.0a1b": Path("a_jpg.rf.0a1b.jpg")}) == ["a_jpg.rf.0a1b"]
