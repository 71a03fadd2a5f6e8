"""Annotations, proposals, settings and checkpoints that no one would write on purpose (tests/helpers/fuzzing.py)."""

import copy
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import strategies as st

from detector import evaluator
from detector.builders import datasets
from detector.builders.network import build_compute, build_trained_model
from detector.builders.training import build_optimizer, build_training_config
from detector.data.formats.coco import read_coco
from detector.data.formats.voc import read_annotation
from detector.data.transforms import Augment
from detector.errors import InputError
from detector.models import build_model
from detector.proposals.convert import READERS, WRITERS
from detector.proposals.formats import mat, tables
from detector.proposals.formats.records import BoxFormat, ImageProposals
from detector.proposals.store import open_proposals, require_images, write_store
from detector.schema import parse
from detector.settings import TrainSettings
from detector.training.checkpoint import load_checkpoint, trained_settings
from detector.training.sharing import save_weights
from tests.helpers.fuzzing import ANYTHING, as_json, changed, damaged, fuzz
from tests.helpers.proposal_files import voc_mat_v7_3

pytestmark = pytest.mark.slow


@st.composite
def zip_surgery(draw: st.DrawFn, whole: bytes) -> bytes:
    """A zip with a member damaged, exchanged, renamed, left out or added."""
    with zipfile.ZipFile(io.BytesIO(whole)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(members) or [""]))
        kind = draw(st.sampled_from(["damage", "exchange", "rename", "out", "add"]))
        if kind == "add":
            members["../" * draw(st.integers(0, 3)) + draw(st.text("ab/.", min_size=1, max_size=9)) + "x"] = draw(
                st.binary(max_size=40)
            )
        elif name in members and kind == "damage":
            members[name] = draw(damaged(members[name]))
        elif name in members and kind == "exchange":
            members[name] = members[draw(st.sampled_from(sorted(members)))]
        elif name in members and kind == "rename":
            members[draw(st.sampled_from(["a/data.pkl", "archive/data.pkl", "x", "../data.pkl"]))] = members.pop(name)
        elif name in members:
            del members[name]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return made.getvalue()


# --- annotations

TAGS = [
    "annotation",
    "object",
    "name",
    "bndbox",
    "xmin",
    "ymin",
    "xmax",
    "ymax",
    "size",
    "width",
    "height",
    "difficult",
]
TEXTS = st.sampled_from(
    ["", "cat", "1", "0", "-5", "1e400", "nan", "9" * 400, "&#0;", "&a;", "<![CDATA[x]]>", "\u0661"]
)


def element(tag: str, inner: str) -> str:
    return f"<{tag}>{inner}</{tag}>"


XML = st.recursive(
    st.builds(element, st.sampled_from(TAGS), TEXTS | st.text(max_size=6)),
    lambda inner: st.builds(
        lambda tag, parts: element(tag, "".join(parts)), st.sampled_from(TAGS), st.lists(inner, max_size=5)
    ),
    max_leaves=25,
).map(lambda text: element("annotation", text).encode(errors="replace"))
SOUND_XML = (
    b'<?xml version="1.0" encoding="utf-8"?><annotation><size><width>60</width><height>40</height></size><object><name>'
    b"cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>"
    b"</object></annotation>"
)


def test_annotations(tmp_path):
    def read(path: Path) -> None:
        annotation = read_annotation(path)
        assert len(annotation.names) == len(annotation.boxes) == len(annotation.difficult)
        assert (annotation.boxes[:, 2:] > annotation.boxes[:, :2]).all()

    (tmp_path / "a.xml").write_bytes(SOUND_XML)
    assert read_annotation(tmp_path / "a.xml").names == ("cat",)
    fuzz("annotations", damaged(SOUND_XML) | XML | st.binary(max_size=60), read, tmp_path / "a.xml")


def test_coco_annotations(tmp_path):
    whole = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": 40, "width": 60}, {"id": 8, "file_name": "b.jpg"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 9.5, "iscrowd": 0},
            {"id": 2, "image_id": 8, "category_id": 3, "bbox": [0.5, 0, 30, 20], "area": 600, "iscrowd": 1},
        ],
    }

    def read(path: Path) -> None:
        dataset = read_coco(path.parent, path.name)
        for index in range(len(dataset)):
            truth = dataset.ground_truth(index)
            assert np.isfinite(truth.boxes).all()
            assert len(truth.boxes) == len(truth.labels) == len(truth.areas)

    text = json.dumps(whole).encode()
    (tmp_path / "a.json").write_bytes(text)
    read(tmp_path / "a.json")
    fuzz(
        "COCO annotations",
        changed(whole).map(as_json) | damaged(text) | st.binary(max_size=60),
        read,
        tmp_path / "a.json",
    )


# --- proposals

IDS, BOXES = ["a", "b"], [np.array([[0, 0, 5, 6], [1, 2, 3, 4]], np.float32), np.zeros((0, 4), np.float32)]


def store(path: Path) -> None:
    write_store(path, IDS, BOXES, [(40, 60)] * 2, {"name": "by hand"})


def release(path: Path) -> None:
    cells, images = np.empty((1, 2), dtype=object), np.empty((2, 1), dtype=object)
    for number in range(2):
        cells[0, number], images[number, 0] = BOXES[number].astype(np.uint16), IDS[number]
    scipy.io.savemat(path, {"boxes": cells, "images": images})


@pytest.mark.parametrize(("name", "write"), [("p.safetensors", store), ("p.mat", release)])
def test_proposals(tmp_path, name, write):
    def read(path: Path) -> None:
        proposals = open_proposals(path)
        require_images(proposals, IDS, [(40, 60)] * 2)
        for image_id in IDS:
            boxes = proposals[image_id]
            assert (boxes.ndim, boxes.shape[1], boxes.dtype) == (2, 4, np.float32)

    path = tmp_path / name
    write(path)
    read(path)
    fuzz(name, damaged(path.read_bytes()) | st.binary(max_size=60), read, path)


def test_matlab_7_3(tmp_path):
    def read(path: Path) -> None:
        raw = READERS["voc-mat"](path)
        for image_id in raw.rows:
            raw.boxes(image_id, raw.box_format or BoxFormat("xyxy", "0"))

    path = tmp_path / "p.mat"
    voc_mat_v7_3(path)
    read(path)
    fuzz("MATLAB 7.3", damaged(path.read_bytes()), read, path)


NUMBERS = st.sampled_from([np.zeros((0, 4)), np.ones((2, 5)), np.ones(3), np.array([[np.nan, 0, 1, 2]]), np.array("x")])
IN_PICKLES = ("boxes", "ids", "indexes", "scores", "objectness_logits", "bbox_mode", "bboxes", "train/a.jpg", "b.png")


@pytest.mark.parametrize("name", ["detectron", "detectron2", "mmdetection"])
def test_what_trusted_pickles_hold(tmp_path, name):
    """Sound pickles of anything. Python's own reader takes the memory that a damaged one asks for."""

    def read(path: Path) -> None:
        raw = READERS[name](path)
        for image_id in raw.rows:
            raw.boxes(image_id, raw.box_format or BoxFormat("xyxy", "0"))

    parts = ANYTHING | NUMBERS | st.lists(NUMBERS | st.text("ab", max_size=2), max_size=3)
    inner = st.dictionaries(st.sampled_from(IN_PICKLES), parts, max_size=5)
    content = st.dictionaries(st.sampled_from(IN_PICKLES) | st.integers(), parts | inner, max_size=5) | parts
    fuzz(name, content.map(pickle.dumps), read, tmp_path / "p.pkl", but="pickle.find_class")


@pytest.mark.parametrize("name", [*tables.WRITERS, *mat.WRITERS, "coco-json"])
def test_proposals_to_convert(tmp_path, name):
    def read(path: Path) -> None:
        raw = READERS[name](path)
        for image_id in raw.rows:
            boxes = raw.boxes(image_id, raw.box_format or BoxFormat("xyxy", "0"))
            assert (boxes.ndim, boxes.shape[1], boxes.dtype) == (2, 4, np.float32)

    written = tmp_path / ("p.json" if name == "coco-json" else f"p.{name}")
    WRITERS[name](written, [ImageProposals(id, boxes, image_hw=(40, 60)) for id, boxes in zip(IDS, BOXES, strict=True)])
    path = written if written.is_file() else sorted(written.rglob("*.mat"))[0]
    read(path)
    fuzz(name, damaged(path.read_bytes()) | st.binary(max_size=60), read, path)


# --- settings


def test_settings(tmp_path, settings):
    whole = settings("train", "data=voc", f"data.root={tmp_path}").plain()

    def read(config: dict) -> None:
        typed = parse(TrainSettings, config)
        assert parse(TrainSettings, typed.plain()) == typed
        build_compute(typed)
        build_training_config(typed, ())
        with torch.device("meta"):
            model = build_model(typed.model, 2)
        _, schedule = build_optimizer(typed, model)
        assert min(schedule(0), schedule(typed.train.iterations - 1)) >= 0
        Augment(datasets.build_transforms(typed.augment.transforms))
        datasets.build_dataset(typed.data, "train")

    with pytest.raises(InputError, match="not in VOC layout"):  # so far it comes
        read(copy.deepcopy(whole))
    fuzz("settings", changed(whole), read)


# --- checkpoints


@pytest.fixture
def content(settings, tmp_path) -> dict:
    """A checkpoint's, with few and small tensors."""
    config = settings("train", "data=voc", f"data.root={tmp_path}").plain()
    model = {"a.weight": torch.rand(3, 4), "a.bias": torch.rand(3), "n": torch.tensor(7)}
    return {"model": model, "config": config, "classes": ["cat", "dog"], "iteration": 7}


def test_checkpoints(tmp_path, content):
    def read(path: Path) -> None:
        state = load_checkpoint(path)["model"]
        assert all(torch.isfinite(value.double()).shape == value.shape for value in state.values())  # all in memory

    path = tmp_path / "c.pt"
    torch.save(content, path)
    read(path)
    whole = path.read_bytes()
    fuzz("checkpoints", damaged(whole) | zip_surgery(whole) | st.binary(max_size=60), read, path)


def test_shared_weights(tmp_path, content):
    save_weights(tmp_path, content)
    path = tmp_path / "model.safetensors"
    load_checkpoint(path)
    fuzz("weights to share", damaged(path.read_bytes()), load_checkpoint, path)


def test_what_a_checkpoint_says(tmp_path, content, settings):
    """The description beside shared weights, up to the network that is built by it."""
    evaluation = settings("evaluate", f"checkpoint={tmp_path}/model.safetensors")
    save_weights(tmp_path, content)
    about = tmp_path / "model.json"
    said = json.loads(about.read_text())
    said["config"]["data"]["root"] = str(tmp_path)

    def read(path: Path) -> None:
        checkpoint = load_checkpoint(tmp_path / "model.safetensors")
        config = evaluator.with_training_settings(evaluation, trained_settings(checkpoint))
        build_training_config(config, ())
        with pytest.raises(InputError, match="does not fit its own settings"):
            build_trained_model(config.model, checkpoint["model"], len(checkpoint["classes"]))
        datasets.build_dataset(config.data, "val")

    texts = changed(said).map(lambda value: json.dumps(value).encode()) | damaged(json.dumps(said).encode())
    fuzz("what checkpoints say", texts, read, about)
