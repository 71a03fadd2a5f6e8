"""The Python interface, on an untrained network, which finds something everywhere."""

import re
import shutil
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import detector
from detector.errors import InputError
from detector.inference.tiles import Tiles, given_inside
from detector.runtime import files
from detector.training.checkpoint import load_checkpoint
from detector.training.sharing import save_weights
from tests.conftest import REPOSITORY

LOW = {"score_threshold": 0.05}
BOXES = np.array([[10, 10, 60, 50], [30, 20, 90, 80]], dtype=np.float32)


@pytest.fixture(scope="module")
def model(untrained_checkpoint) -> detector.Detector:
    return detector.load(untrained_checkpoint, "cpu")


@pytest.fixture(scope="module")
def photo(small_shapes):
    return small_shapes / "JPEGImages/test_0.jpg"


@pytest.fixture(scope="module")
def image(photo) -> np.ndarray:
    return np.array(Image.open(photo).convert("RGB"))


def same(result: detector.Result, other: detector.Result) -> bool:
    return all(np.array_equal(getattr(result, name), getattr(other, name)) for name in ("boxes", "labels", "scores"))


# One detection needs none of these: figures, training, augmentation, .mat files, configs, exported networks.
NOT_TO_DETECT = (
    "matplotlib", "tensorboard", "torch.utils.tensorboard", "albumentations", "h5py", "hydra", "omegaconf",
    "onnxruntime", "timm", "detector.app", "detector.evaluation.report", "detector.training.engine",
    "detector.training.trainer",
)  # fmt: skip
IMPORTS = """
import sys, detector
early = [name for name in ("torch", "numpy", "detector.api") if name in sys.modules]
from scripts.detect import main
status = main(sys.argv[2:])
print(status, early, [name for name in sys.argv[1].split(",") if name in sys.modules], "torchvision" in sys.modules)
"""


@pytest.mark.slow
def test_one_detection_imports_no_more_than_it_needs(untrained_checkpoint, photo, image, make_proposals, tmp_path):
    make_proposals(tmp_path / "p.safetensors", {"test_0": BOXES}, hw=image.shape[:2])
    given = {"checkpoint": untrained_checkpoint, "input": photo, "proposals": tmp_path / "p.safetensors"}
    options = [f"--{name}={value}" for name, value in (given | {"out": tmp_path / "found", "device": "cpu"}).items()]
    code = [sys.executable, "-c", IMPORTS, ",".join(NOT_TO_DETECT), *options]
    result = subprocess.run(code, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 [] [] True"
    assert set(detector.__all__) == {"Detector", "Result", "Tiles", "load"}
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        detector.lode  # noqa: B018


def test_a_path_an_array_and_a_pil_image_give_the_same(model, photo, image):
    results = [model.detect(source, **LOW) for source in (photo, str(photo), image, Image.open(photo))]
    assert len(results[0]) > 3
    assert all(same(results[0], other) for other in results)
    assert all(np.array_equal(result.image, image) for result in results)
    first = results[0]
    assert first.boxes.shape == (len(first), 4)
    assert first.labels.min() >= 1
    assert first.names == [model.classes[label - 1] for label in first.labels]
    assert (np.diff(first.scores) <= 0).all()


def test_a_list_a_folder_and_a_pattern_give_lists(model, photo, image, tmp_path):
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(photo, tmp_path / name)
    alone = model.detect(photo, **LOW)
    for images, ids in (
        ([photo, image], [str(photo), "1"]),
        (tmp_path, ["a.jpg", "b.jpg"]),
        (f"{tmp_path}/b*", None),
        ([], []),
        ({"mine": image}, ["mine"]),
    ):
        results = model.detect(images, **LOW)
        assert all(same(result, alone) for result in results)
        assert ids is None or [result.image_id for result in results] == ids
    streamed = list(model.stream((image for _ in range(3)), **LOW))
    assert [result.image_id for result in streamed] == ["0", "1", "2"]
    assert all(same(result, alone) for result in streamed)


def test_gray_and_turned_images_are_read_as_in_training(model, photo, image, tmp_path):
    gray = image[..., 0]
    assert same(model.detect(gray, **LOW), model.detect(np.stack([gray] * 3, axis=2), **LOW))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    results = [model.detect(source, **LOW) for source in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png"))]
    assert results[0].image.shape == (image.shape[1], image.shape[0], 3)
    assert same(*results)


def test_options_have_their_effect(model, image):
    usual = model.detect(image, **LOW)
    assert len(model.detect(image, **LOW, max_detections=3)) == 3 < len(usual)
    assert len(model.detect(image, **LOW, nms_iou=0.9)) > len(usual)
    options = {"score_threshold": 0.0, "nms_iou": 1.0, "max_detections": 10000}
    fewer = model.detect(image, **options, max_proposals=5)
    assert len(fewer) == 5 * len(model.classes) < len(model.detect(image, **options))
    middle = float(np.median(usual.scores))
    assert (model.detect(image, score_threshold=middle).scores > middle).all()
    assert len(model.detect(image)) == (usual.scores > 0.3).sum()  # the default
    fewer = usual.only(["kite", "ball"])
    assert {*fewer.names} <= {"kite", "ball"}
    assert len(fewer) == np.isin(usual.names, ["kite", "ball"]).sum()


def test_with_soft_nms_the_iou_is_that_of_merging_tiles(model, image):
    detect = model.settings.detect.plain() | {"nms": "soft"}
    soft = detector.Detector(model.network, model.settings.with_values(detect=detect), model.classes)
    with pytest.raises(InputError, match="nms_iou: this network was trained with detect.nms=soft"):
        soft.detect(image, nms_iou=0.5)
    options = {"tiles": Tiles(96, 0.5), "proposals": BOXES, "score_threshold": 0.0, "max_detections": 10000}
    assert len(soft.detect(image, **options, nms_iou=0.1)) < len(soft.detect(image, **options, nms_iou=0.9))


def test_the_mode_of_selective_search_is_chosen_on_load(untrained_checkpoint, image, model):
    other = detector.load(untrained_checkpoint, "cpu", mode="fast")
    assert other.settings.proposals.mode == "fast"
    assert not same(other.detect(image, **LOW), model.detect(image, **LOW))


def test_given_proposals_are_what_is_classified(model, photo, image, make_proposals, tmp_path):
    options = {"score_threshold": 0.0, "nms_iou": 1.0}
    result = model.detect(image, proposals=BOXES, **options)
    assert len(result) == len(BOXES) * len(model.classes)
    assert same(model.detect([image], proposals=[BOXES], **options)[0], result)
    make_proposals(tmp_path / "p.safetensors", {"test_0": BOXES.tolist()}, hw=image.shape[:2])
    assert same(model.detect(photo, proposals=tmp_path / "p.safetensors", **options), result)
    assert len(model.detect(image, proposals=np.zeros((0, 4)), **options)) == 0


def test_exported_weights_find_the_same(model, image, untrained_checkpoint, tmp_path):
    save_weights(tmp_path, load_checkpoint(untrained_checkpoint))
    assert same(detector.load(tmp_path / "model.safetensors", "cpu").detect(image, **LOW), model.detect(image, **LOW))


def test_threads_share_one_model(model, image):
    images = [np.ascontiguousarray(np.roll(image, 9 * shift, axis=1)) for shift in range(6)]
    alone = [model.detect(each, **LOW) for each in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda each: model.detect(each, **LOW), images))
    assert all(map(same, alone, together))


def test_features_of_boxes_are_what_the_output_layers_see(model, image):
    features = model.roi_features(image, BOXES)
    assert (features.shape, features.dtype) == ((2, 32), np.float32)
    assert not np.allclose(features[0], features[1])
    np.testing.assert_allclose(model.roi_features(image, BOXES[1:])[0], features[1], atol=1e-5)
    layer = model.network.model.cls_score
    logits = features @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = model.detect(image, proposals=BOXES[:1], score_threshold=0.0, nms_iou=1.0)
    np.testing.assert_allclose(np.sort(found.scores), np.sort(scores[0, 1:]), atol=1e-5)


def test_drawing_saves_what_it_returns(model, image, tmp_path):
    result = model.detect(image, **LOW)
    picture = result.draw(tmp_path / "new/out.png")
    assert np.array_equal(np.array(Image.open(tmp_path / "new/out.png")), picture)
    assert picture.shape == image.shape
    assert not np.array_equal(picture, image)
    assert np.array_equal(result.only([]).draw(), image)


def test_supervision_gets_class_ids_from_0(model, image, monkeypatch):
    result = model.detect(image, **LOW)
    monkeypatch.setitem(sys.modules, "supervision", types.SimpleNamespace(Detections=dict))
    given = result.to_supervision()
    assert given["class_id"].tolist() == [model.classes.index(name) for name in result.names]
    assert np.array_equal(given["xyxy"], result.boxes)
    assert np.array_equal(given["confidence"], result.scores)
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match="needs the package supervision"):
        result.to_supervision()


def test_tiles_cover_the_image_and_their_detections_are_merged(model, image):
    windows = Tiles(100, 0.2).windows((100, 250))
    assert windows == [(0, 0, 100, 100), (80, 0, 180, 100), (150, 0, 250, 100)]
    assert Tiles(100, 0.2).windows((50, 60)) == [(0, 0, 60, 50)]
    assert Tiles(100, 0.0).windows((200, 100)) == [(0, 0, 100, 100), (0, 100, 100, 200)]
    whole = model.detect(image, **LOW)
    assert same(model.detect(image, **LOW, tiles=Tiles(5000)), whole)
    tiled = model.detect(image, **LOW, tiles=Tiles(96, 0.25))
    assert not same(tiled, whole)
    one = model.detect(image[:96, :96], **LOW)  # the first tile as an image of its own
    mine = {tuple(box) for box in one.boxes.tolist()} & {tuple(box) for box in tiled.boxes.tolist()}
    assert mine
    assert tiled.boxes[:, 2].max() > 96  # and other tiles, in the frame of the image
    boxes, scores = given_inside(BOXES, np.array([0.2, 0.9]), (50, 0, 150, 100))
    assert (boxes.tolist(), scores.tolist()) == ([[-20, 20, 40, 80]], [0.9])
    given = model.detect(image, tiles=Tiles(96, 0.25), proposals=BOXES, score_threshold=0.0, nms_iou=1.0)
    assert len(given) >= 2 * len(model.classes)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda model, image: model.detect("nowhere.jpg"), "nowhere.jpg: there is no file"),
        (lambda model, image: model.detect(["nowhere.jpg"]), "nowhere.jpg: no such file"),
        (lambda model, image: model.detect(image.astype(float)), "image 0: is an array of float64"),
        (lambda model, image: model.detect([image, None]), "image 1: is a NoneType: give a path"),
        (lambda model, image: model.detect(image[:9, :8, :2]), "is an array of uint8 and shape (9, 8, 2)"),
        (lambda model, image: model.detect(image, score_threshold=3), "score_threshold=3"),
        (lambda model, image: model.detect(image, max_detections=0), "max_detections=0"),
        (lambda model, image: model.detect(image, nms_iou=-1), "nms_iou=-1"),
        (lambda model, image: model.detect(image, max_proposals=0), "val_max_proposals=0"),
        (lambda model, image: model.detect(image, proposals=[[1, 2, 3]]), "must be boxes (N, 4)"),
        (lambda model, image: model.detect([image], proposals=[BOXES, BOXES]), "2 arrays of boxes for 1 images"),
        (lambda model, image: model.detect([image], proposals="p.safetensors"), "p.safetensors needs names"),
        (lambda model, image: model.detect(image, tiles=Tiles(0)), "size is 0"),
        (lambda model, image: model.detect(image, tiles=Tiles(10, 1)), "overlap is 1"),
        (lambda model, image: model.roi_features(image, [[5, 5, 5, 9]]), "number 0 is [5.0, 5.0, 5.0, 9.0]"),
        (lambda model, image: model.detect(image).only(["dog"]), "class 'dog' is not known"),
        (lambda model, image: detector.load("nowhere.pt"), "nowhere.pt: no such file"),
        (lambda model, image: detector.load(REPOSITORY / "tests"), "tests: is a folder, not a file"),
    ],
)
def test_wrong_input(model, image, call, says):
    with pytest.raises(InputError, match=re.escape(says)):
        call(model, image)


def test_a_bad_image_of_a_stream_does_not_end_it(model, image):
    results = list(model.stream([image, "nowhere.jpg", image], **LOW))
    assert str(results[1]) == "nowhere.jpg: no such file"
    assert same(results[0], results[2])


def test_an_error_in_a_thread_ends_the_stream_of_results(model, image):
    def then(result: detector.Result) -> tuple[str, int]:
        return threading.current_thread().name, len(result)

    alone = model.detect(image, **LOW)
    names, counts = zip(*model.stream([image] * 5, then=then, **LOW), strict=True)
    assert all(name.startswith("compute") for name in names)
    assert counts == (len(alone),) * 5
    with pytest.raises(InputError, match="class 'dog' is not known"):
        list(model.stream([image], then=lambda result: result.only(["dog"]), **LOW))


def test_the_examples_of_the_documentation_run(untrained_checkpoint, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/mine/checkpoints").mkdir(parents=True)
    (tmp_path / "photographs").mkdir()
    shutil.copy(untrained_checkpoint, "runs/mine/checkpoints/best.pt")
    for name in ("photo.jpg", "photographs/one.jpg", "photographs/two.jpg"):
        shutil.copy(photo, name)
    text = (REPOSITORY / "docs/api.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 6
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert np.array(Image.open("out.jpg")).shape == names["result"].image.shape
    assert "one.jpg " in capsys.readouterr().out
    np.testing.assert_allclose(np.diag(names["similarity"]), 1, atol=1e-5)


def test_a_drawing_is_whole_or_not_there(model, image, tmp_path, monkeypatch):
    result = model.detect(image, **LOW)
    for name in ("a/b.jpg", "c.PNG"):
        picture = result.draw(tmp_path / name)
        assert np.asarray(Image.open(tmp_path / name)).shape == picture.shape
    with pytest.raises(InputError, match=r"out.txt: its suffix is not one of an image format"):
        result.draw(tmp_path / "out.txt")
    before = (tmp_path / "c.PNG").read_bytes()

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        result.draw(tmp_path / "c.PNG")
    assert (tmp_path / "c.PNG").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["c.PNG"]


def test_the_thresholds_of_the_paper_give_the_fewest_detections(model, image):
    paper = {"score_threshold": 0.0, "average_per_class": 40.0, "max_detections": 10_000}
    settings = model.settings.with_values(detect=model.settings.detect.plain() | paper)
    trained = detector.Detector(model.network, settings, model.classes)
    assert (trained.detect(image).scores > 0.3).all()
    assert same(trained.detect(image, **LOW, max_detections=100), model.detect(image, **LOW, max_detections=100))
