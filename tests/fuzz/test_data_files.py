"""Images, stores, files of settings, folders and detections that no one would write (tests/helpers/fuzzing.py)."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hypothesis import strategies as st
from PIL import Image

from detector.app.compose import compose, typed_settings
from detector.data.formats.folder import read_folder
from detector.data.image import ImageOptions, read_image, read_image_hw, read_thumbnail
from detector.evaluation.results import read_coco_results, read_result_files
from detector.proposals.store import FORMAT, open_proposals, write_store
from detector.schema import defaults
from detector.settings import TrainSettings
from tests.helpers import layouts
from tests.helpers.fuzzing import ANYTHING, SMALL, as_json, changed, damaged, fuzz

pytestmark = pytest.mark.slow


# --- images


def encoded(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def images(format: str) -> list[bytes]:
    """Small files of a format: each mode and compression that Pillow writes."""
    rgb = layouts.picture("a").resize((24, 17))
    palette, gray = rgb.convert("P"), rgb.convert("L")
    deep = Image.fromarray(np.arange(24 * 17, dtype=np.uint16).reshape(17, 24) * 100)
    turned = Image.Exif()
    turned[0x0112] = 6
    if format == "tiff":
        ways = [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"]
        found = [encoded(rgb, format=format, compression=way, exif=turned) for way in ways]
        found.append(encoded(gray.convert("1"), format=format, compression="group4"))
        found.append(encoded(rgb, format=format, save_all=True, append_images=[gray]))
        return found + [encoded(item, format=format) for item in (palette, gray, deep, rgb.convert("CMYK"))]
    if format == "png":
        found = [encoded(item, format=format) for item in (rgb, gray, deep, gray.convert("1"), rgb.convert("RGBA"))]
        found.append(encoded(palette, format=format, transparency=3, exif=turned))
        return [*found, encoded(rgb, format=format, save_all=True, append_images=[gray.convert("RGB")])]
    if format == "webp":
        found = [encoded(item, format=format, lossless=way) for item in (rgb, rgb.convert("RGBA")) for way in (0, 1)]
        found.append(encoded(rgb, format=format, exif=turned, icc_profile=b"x" * 40))
        return [*found, encoded(rgb, format=format, save_all=True, append_images=[gray.convert("RGB")])]
    found = [encoded(rgb, format="jpeg", exif=turned, progressive=way) for way in (False, True)]
    return [
        *found,
        encoded(rgb.convert("CMYK"), format="jpeg"),
        encoded(rgb, format="bmp"),
        encoded(palette, format="bmp"),
    ]


@pytest.mark.parametrize("format", ["tiff", "png", "webp", "jpeg and bmp"])
def test_images(tmp_path, format):
    options = ImageOptions(max_pixels=10**6)

    def read(path: Path) -> None:
        hw = read_image_hw(path, options)
        image = read_image(path, options)
        assert (image.shape, image.dtype) == ((*hw, 3), np.uint8)
        assert read_thumbnail(path, 8, options).shape == (8, 8, 3)

    whole = images(format)
    for content in whole:
        (tmp_path / "a").write_bytes(content)
        read(tmp_path / "a")
    fuzz(f"{format} images", st.sampled_from(whole).flatmap(damaged) | st.binary(max_size=60), read, tmp_path / "a")


# --- stores

DTYPES = ["F32", "F64", "F16", "BF16", "F8_E4M3", "I64", "I32", "U64", "U8", "BOOL", "C64", "x"]
SIZES = st.integers(0, 4) | st.sampled_from([-1, 2**31, 2**32 - 1, 2**62, 2**64 - 1, 2**64])


@st.composite
def headers(draw: st.DrawFn, whole: bytes) -> bytes:
    """A store whose header has another dtype, shape, position, tensor or anything else, and as much data as it says."""
    length = int.from_bytes(whole[:8], "little")
    head, body = json.loads(whole[8 : 8 + length]), bytearray(whole[8 + length :])
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(head)) if head else st.just("boxes"))
        kind = draw(st.sampled_from(["dtype", "shape", "moved", "ids", "data", "out", "new", "metadata", "any"]))
        item = head.get(name)
        if kind == "out":
            head.pop(name, None)
        elif kind == "new":
            head[draw(st.text(max_size=5))] = item
        elif kind == "metadata":
            head["__metadata__"] = draw(st.dictionaries(st.just(FORMAT), ANYTHING.map(json.dumps)) | ANYTHING)
        elif kind == "data" and body:
            start = draw(st.integers(0, len(body) - 1))
            body[start : start + 8] = draw(st.sampled_from([-1, 0, 1, 2, 2**31, 2**62])).to_bytes(
                8, "little", signed=True
            )
        elif not isinstance(item, dict) or kind == "any":
            head = draw(changed(head))
            break
        elif kind == "dtype":
            item["dtype"] = draw(st.sampled_from(DTYPES))
        elif kind == "shape":
            item["shape"] = draw(st.lists(SIZES, max_size=3))
        elif kind == "moved":
            item["data_offsets"] = draw(st.lists(st.integers(0, len(body)) | SIZES, min_size=2, max_size=2))
        else:  # the last tensor has any length
            body += draw(st.binary(max_size=24))
            item["data_offsets"] = [item.get("data_offsets", [0])[0], len(body)]
            item["shape"] = [len(body) - item["data_offsets"][0]]
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + bytes(body)


def test_stores_of_any_header(tmp_path):
    def read(path: Path) -> None:
        store = open_proposals(path)
        assert len(store) == len(store.image_ids) == len({*store.image_ids})
        count = 0
        for image_id in store.image_ids:
            boxes, scores = store[image_id], store.scores(image_id)
            store.image_hw(image_id)
            assert (boxes.ndim, boxes.shape[1], boxes.dtype) == (2, 4, np.float32)
            assert scores is None or (scores.shape, scores.dtype) == ((len(boxes),), np.float32)
            count += len(boxes)
        assert count == store.num_boxes
        "".join(store.raw.rows).encode()

    path = tmp_path / "p.safetensors"
    boxes = [np.array([[0, 0, 5, 6], [1, 2, 3, 4]], np.float32), np.zeros((0, 4), np.float32)]
    write_store(path, ["a", "b"], boxes, [(40, 60)] * 2, {"name": "by hand", "unreadable": {"b": "damaged"}})
    read(path)
    fuzz("stores", headers(path.read_bytes()), read, path)


# --- files of settings

OVERLAY = {
    "defaults": [{"override /model": "resnet18"}, {"override /data": "voc"}, "_self_"],
    "data": {"root": "/data", "classes": ["cat", "dog"], "short_side_px": 600},
    "train": {"iterations": 10, "images_per_batch": "${workers}"},
    "optimizer": {"lr": 0.01, "weight_decay": 0.1},
    "augment": {"transforms": [{"_target_": "albumentations.HorizontalFlip", "p": 0.5}]},
    "workers": 2,
    "seed": "${train.iterations}",
}
WORDS = st.sampled_from([
    "${seed}", "${x}", "${.}", "${oc.env:HOME}", "${", "???", "*a", "&a x", "!!python/name:os.system", "/model",
    "override /model", "nothing", "_self_", "2001-01-01", "1:30", "<<", "=", "@",
])  # fmt: skip


def test_files_of_settings(tmp_path):
    def read(path: Path) -> None:
        typed_settings(TrainSettings, compose(TrainSettings, str(tmp_path), ["experiment=x"], "train"))

    path = tmp_path / "experiment/x.yaml"
    path.parent.mkdir()
    text = "# @package _global_\n" + yaml.safe_dump(OVERLAY, sort_keys=False)
    path.write_text(text)
    ConfigStore.instance().store("train_settings", defaults(TrainSettings))
    read(path)
    lines = st.lists(st.tuples(st.sampled_from(text.splitlines()), st.text(max_size=4) | WORDS), max_size=9).map(
        lambda items: "\n".join(line + more for line, more in items).encode()
    )
    nested = changed(OVERLAY).map(lambda content: b"# @package _global_\n" + yaml.dump(content).encode())
    fuzz("files of settings", nested | damaged(text.encode()) | lines, read, path)


# --- folders of annotated images

EDITABLE = {
    "labelme": (layouts.labelme_json, "img 0.json"),
    "label_studio": (layouts.label_studio_json, "project.json"),
    "label_studio JSON-MIN": (layouts.label_studio_json_min, "project-1.json"),
    "createml": (layouts.labelimg_createml, "phone.json"),
    "coco": (layouts.label_studio_coco, "result.json"),
    "yolo": (layouts.roboflow_yolo, "data.yaml"),
    "yolo of lists": (layouts.cvat_ultralytics, "data.yaml"),
    "yolo labels": (layouts.labelimg_yolo, "img 0.txt"),
    "cvat": (layouts.cvat_images, "annotations.xml"),
    "csv": (layouts.csv_table, "boxes.csv"),
}


@pytest.mark.parametrize("name", EDITABLE)
def test_folders(tmp_path, name, monkeypatch):
    def read(path: Path) -> None:
        for split in ("all", "train"):
            dataset = read_folder(tmp_path, split, name.split()[0])
            assert all([*map(str.encode, [*dataset.classes, *dataset.image_ids])])
            for index in range(len(dataset)):
                if dataset.records[index].invalid is None:
                    truth = dataset.ground_truth(index)
                    assert len(truth.boxes) == len(truth.labels)
                    assert np.isfinite(truth.boxes).all()
                    assert (truth.boxes[:, 2:] > truth.boxes[:, :2]).all()

    layout, file = EDITABLE[name]
    monkeypatch.setattr(layouts, "SCENES", {key: layouts.SCENES[key] for key in ("img 0", "img 3", "img 7", "img 9")})
    layout(tmp_path)
    path = tmp_path / file
    text = path.read_bytes()
    read(path)
    examples = damaged(text)
    if path.suffix == ".json":
        examples |= changed(json.loads(text)).map(as_json)
    if path.suffix == ".yaml":
        examples |= changed(yaml.safe_load(text)).map(lambda content: yaml.dump(content).encode())
    fuzz(f"folders of {name}", examples, read, path)


# --- detections

ENTRY = {"image_id": "a", "category_id": 1, "category_name": "cat", "bbox": [1, 2, 30, 40], "score": 0.5}


@pytest.mark.parametrize("name", ["COCO results", "devkit's results"])
def test_detections(tmp_path, name):
    def read(path: Path) -> None:
        if name == "COCO results":
            found = read_coco_results(path, ["a", "7"], ["cat", "dog"], {"cat": 1, "dog": 3}, ["c"])
        else:
            found = read_result_files(tmp_path, ["a", "7"], ["cat", "dog"], ["c"])
        assert [item.image_id for item in found] == ["a", "7"]
        for item in found:
            assert item.boxes.shape == (len(item.labels), 4)
            assert np.isfinite(item.boxes).all()
            assert np.isfinite(item.scores).all()

    path = tmp_path / "comp4_det_test_cat.txt"
    results = [ENTRY, {**ENTRY, "image_id": 7, "category_name": "dog"}, {**ENTRY, "image_id": "c"}]
    text = as_json(results) if name == "COCO results" else b"a 0.5 1 2 30 40\n7 1e-9 3 4 50.5 60\nc 1 1 1 2 2\n"
    path.write_bytes(text)
    read(path)
    examples = damaged(text)
    if name == "COCO results":
        examples |= changed(results).map(as_json)
    else:
        examples |= st.lists(SMALL.map(str), max_size=8).map(lambda words: " ".join(words).encode(errors="replace"))
    fuzz(name, examples, read, path)
