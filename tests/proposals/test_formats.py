"""Every format in both directions: files written here as their own programs write them, then read, and written back."""

import csv
import json
import os
import pickle
import sys
import types
import zipfile

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from pycocotools import mask as coco_mask

from detector.errors import InputError
from detector.evaluation.results import write_coco_results
from detector.proposals.convert import READERS, WRITERS, convert
from detector.proposals.formats import mat5
from detector.proposals.formats.records import BoxFormat, ImageProposals
from detector.proposals.store import ProposalStore, stream_store
from detector.runtime.files import MAX_BYTES, read_json, reading
from detector.structures import Detections
from tests.helpers.proposal_files import (
    AS_WRITTEN,
    BOXES,
    FILES,
    SCORES,
    A,
    B,
    boxes,
    cells,
    csv_named,
    detectron2,
    npz,
    v7_3,
)


@pytest.mark.parametrize(
    ("box_format", "written"),
    [
        (BoxFormat("yxyx", "1"), "yxyx from 1"),
        (BoxFormat("xyxy", "1"), "xyxy from 1"),
        (BoxFormat("xyxy", "0-inclusive"), "xyxy from 0, last included"),
        (BoxFormat("xyxy", "0"), "xyxy"),
        (BoxFormat("xywh", "0"), "xywh"),
        (BoxFormat("xywh", "0-inclusive"), "xywh"),
    ],
    ids=str,
)
def test_a_box_format_says_what_four_numbers_mean(box_format, written):
    assert box_format.to_boxes(np.array(AS_WRITTEN[written])).tolist() == BOXES[A].tolist()
    assert box_format.to_boxes(np.array(AS_WRITTEN[written], np.uint16)).dtype == np.float32
    assert box_format.from_boxes(BOXES[A]).tolist() == AS_WRITTEN[written]


def test_a_coordinate_of_0_counted_from_1_does_not_wrap_around():
    assert BoxFormat("xyxy", "1").to_boxes(np.array([[0, 0, 5, 5]], np.uint16)).tolist() == [[-1, -1, 5, 5]]


READ_ONLY = {"sam-json", "edge-boxes"}
BEST_FIRST = ("sam-json",)
NAMES_NO_EMPTY_IMAGE = ("csv", "coco-json")


@pytest.mark.parametrize("name", FILES)
def test_from_every_format(name, tmp_path):
    format, write, declared, scored = FILES[name]
    write(tmp_path / "p")
    convert(tmp_path / "p", format, tmp_path / "p.safetensors", "store", **declared)
    store = ProposalStore(tmp_path / "p.safetensors")
    step = -1 if scored and format in BEST_FIRST else 1
    assert store[A].tolist() == BOXES[A][::step].tolist()
    assert (store.scores(A) is not None) == scored
    if scored:
        assert store.scores(A).tolist() == SCORES[::step].tolist()
    if format not in NAMES_NO_EMPTY_IMAGE:
        assert store[B].shape == (0, 4)
    assert len(store) == (1 if format in NAMES_NO_EMPTY_IMAGE else 2)


def test_every_format_is_tried():
    assert {format for format, *_ in FILES.values()} | {"store"} == set(READERS) == set(WRITERS) | READ_ONLY


# what has to stand in the file, read without our readers
def raw(path, format):
    if format == "voc-mat":
        content = scipy.io.loadmat(path)
        assert [str(cell[0]) for cell in content["images"].ravel()] == [A, B]
        return content["boxes"][0, 0]
    if format.endswith("-mat"):
        names = {"demo-mat": f"{A}_boxes.mat"}
        if format in ("mcg-mat", "hosang-mat"):
            assert (path / B[:14] / B[:22] / f"{B}.mat").is_file()
        return scipy.io.loadmat(path / names.get(format, f"{A}.mat"))["boxes"]
    if format == "npz":
        return np.load(path)[A][:, :4]
    if format == "csv":
        lines = list(csv.reader(path.read_text().splitlines()))
        assert lines[0][:5] == ["image_id", "x1", "y1", "x2", "y2"]
        return [list(map(float, line[1:5])) for line in lines[1:]]
    if format == "coco-json":
        return [item["bbox"] for item in json.loads(path.read_text())]
    content = pickle.loads(path.read_bytes())
    if format == "mmdetection":
        return content[f"JPEGImages/{A}.jpg"]["bboxes"]
    return content["boxes"][content["ids"].index(A)]


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize(
    ("format", "written"),
    [
        ("voc-mat", "yxyx from 1"),
        ("ijcv-mat", "xyxy from 1"),
        ("demo-mat", "xyxy from 0, last included"),
        ("mcg-mat", "yxyx from 1"),
        ("hosang-mat", "xyxy from 1"),
        ("npz", "xyxy"),
        ("csv", "xyxy"),
        ("coco-json", "xywh"),
        ("detectron", "xyxy from 0, last included"),
        ("detectron2", "xyxy"),
        ("mmdetection", "xyxy"),
    ],
)
def test_to_every_format_and_back(format, written, scored, tmp_path):
    images = [
        ImageProposals(
            id, found, SCORES[: len(found)] if scored else None, image_path=tmp_path / f"JPEGImages/{id}.jpg"
        )
        for id, found in BOXES.items()
    ]
    WRITERS[format](tmp_path / "p", images)
    assert np.asarray(raw(tmp_path / "p", format)).tolist() == AS_WRITTEN[written]
    back = READERS[format](tmp_path / "p")
    box_format = back.box_format or BoxFormat("xyxy", "0")
    assert back.boxes(A, box_format).tolist() == BOXES[A].tolist()
    if scored and format != "voc-mat":
        assert back.scores(A).tolist() == SCORES.tolist()
    elif format in ("coco-json", "detectron", "detectron2", "mmdetection"):
        assert back.scores(A).tolist() == [1, 0.5]  # these do not go without, so the rank stands in
    else:
        assert back.scores(A) is None


def test_fractions_survive_every_format(tmp_path):
    exact = np.array([[0.1, 0.2, 5.3, 6.7]], np.float32)
    for format in WRITERS:
        path = tmp_path / format
        WRITERS[format](path, [ImageProposals(A, exact, image_path=tmp_path / f"x/{A}.jpg")])
        back = READERS[format](path)
        assert back.boxes(A, back.box_format or BoxFormat("xyxy", "0")) == pytest.approx(exact, abs=1e-6), format


def test_files_of_proposals_may_have_any_size(tmp_path, monkeypatch):
    for function in (reading.__wrapped__, read_json):
        assert function.__defaults__ == (MAX_BYTES,)
        monkeypatch.setattr(function, "__defaults__", (1,))
    for format in WRITERS:
        WRITERS[format](tmp_path / format, [ImageProposals(A, BOXES[A], image_path=tmp_path / f"x/{A}.jpg")])
        READERS[format](tmp_path / format)


@pytest.mark.parametrize("seed", range(40))
def test_the_box_of_an_rle_is_that_of_pycocotools(seed, tmp_path):
    generator = np.random.default_rng(seed)
    height, width = generator.integers(1, 60, 2).tolist()
    mask = np.zeros((height, width), np.uint8)
    y, x = generator.integers(0, height), generator.integers(0, width)
    mask[y:, x:] = generator.random((height - y, width - x)) < generator.choice([0.01, 0.5, 1])
    compressed = coco_mask.encode(np.asfortranarray(mask))
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1:]))
    runs = np.diff(edges, prepend=0).tolist()
    x, y, w, h = coco_mask.toBbox(compressed).tolist()
    for counts in (compressed["counts"].decode(), runs):
        segmentation = {"size": [height, width], "counts": counts}
        (tmp_path / "p.json").write_text(json.dumps([{"segmentation": segmentation}]))
        assert READERS["sam-json"](tmp_path / "p.json").rows["p"].tolist() == [[x, y, x + w - 1, y + h - 1]]


@pytest.mark.parametrize(
    ("format", "name", "content", "says"),
    [
        ("sam-json", "p.json", "{", r"p\.json: broken JSON"),
        ("sam-json", "p.json", '{"a.jpg": 3}', r"p\.json: what it has for image 'a' is no list of masks: 3"),
        ("sam-json", "p.json", '[{"bbox": [1, 2, 3]}]', r"image 'p': mask 1 has the bbox \[1, 2, 3\]"),
        ("sam-json", "p.json", '[{"area": 3}]', r"image 'p': mask 1 has neither a bbox nor a segmentation"),
        ("sam-json", "p.json", '[{"segmentation": {"size": [4, 5], "counts": [3]}}]', "mask 1 has neither"),
        ("sam-json", "p.json", '[{"segmentation": {"size": [1e9, 1e9], "counts": "aa"}}]', "mask 1 has neither"),
        ("sam-json", "p.json", '[{"segmentation": {"size": [1000000, 999999], "counts": "a"}}]', "mask 1 has neither"),
        ("sam-json", "p.json", '[{"segmentation": {"size": [4, 5], "counts": "oooooooooo"}}]', "mask 1 has neither"),
        ("sam-json", "p.json", '[{"image": "a.jpg", "masks": []}, {"image": "b/a.jpg", "masks": []}]', "once .1.: a;"),
        ("edge-boxes", "p.txt", "1 2 3 4\n", r"p\.txt: its lines are not `x y width height score`"),
        ("edge-boxes", "p.mat", "no mat", r"p\.mat: not a readable \.mat file"),
    ],
)  # fmt: skip
def test_masks_and_edge_boxes_that_cannot_be_read(format, name, content, says, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=says):
        READERS[format](tmp_path / name)


@pytest.mark.parametrize(("format", "name"), [("sam-json", "p.json"), ("edge-boxes", "p.txt"), ("edge-boxes", "p.mat")])
def test_a_pipe_is_not_waited_for(format, name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=r"not a regular file"):
        READERS[format](tmp_path / name)


def test_edge_boxes_are_never_matched_by_position(tmp_path):
    scipy.io.savemat(tmp_path / "p.mat", {"bbs": cells(np.ones((1, 5)), np.ones((2, 5)))})
    with pytest.raises(InputError, match="`bbs` has cells for 2 images and `images` names 0: save the list of images"):
        READERS["edge-boxes"](tmp_path / "p.mat")
    with pytest.raises(InputError, match="a folder without .mat or .txt files"):
        READERS["edge-boxes"]((tmp_path / "none").mkdir() or tmp_path / "none")


def test_saved_detections_are_proposals(tmp_path):
    """The detections.json of evaluate.py and detect.py."""
    found = Detections("a", BOXES[A][::-1], np.array([1, 2]), SCORES[::-1])
    write_coco_results(tmp_path / "detections.json", [found], ["cat", "dog"], {"cat": 1, "dog": 2})
    back = READERS["coco-json"](tmp_path / "detections.json")
    assert back.boxes("a", back.box_format).tolist() == BOXES[A][::-1].tolist()
    assert back.scores("a").tolist() == [0.5, 0.25]


def test_numbers_stay_numbers_in_coco_s_json(tmp_path):
    ids = ["12", "012", "x"]
    WRITERS["coco-json"](tmp_path / "p.json", [ImageProposals(id, BOXES[A][:1]) for id in ids])
    assert [item["image_id"] for item in json.loads((tmp_path / "p.json").read_text())] == [12, "012", "x"]
    assert list(READERS["coco-json"](tmp_path / "p.json").rows) == ids
    WRITERS["coco-json"](tmp_path / "none.json", [])
    assert json.loads((tmp_path / "none.json").read_text()) == []


@pytest.fixture
def foreign_classes(monkeypatch):
    """Stand-ins for the classes of detectron2 and mmengine, there only while a file is written."""
    enum, instances = (
        types.ModuleType("detectron2.structures.boxes"),
        types.ModuleType("mmengine.structures.instance_data"),
    )
    enum.BoxMode = type(
        "BoxMode", (int,), {"__module__": enum.__name__, "__reduce__": lambda self: (type(self), (int(self),))}
    )
    instances.InstanceData = type("InstanceData", (), {"__module__": instances.__name__})
    packages = ("detectron2", "detectron2.structures", "mmengine", "mmengine.structures")
    for module in (*map(types.ModuleType, packages), enum, instances):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return enum.BoxMode, instances.InstanceData


def test_pickles_of_others_are_read_without_their_classes(foreign_classes, tmp_path, monkeypatch):
    box_mode, instance_data = foreign_classes
    (tmp_path / "d2").write_bytes(pickle.dumps(detectron2("xywh", box_mode(1))))
    item = instance_data()
    item.bboxes, item.scores = torch.tensor(AS_WRITTEN["xyxy"], dtype=torch.float32), torch.from_numpy(SCORES)
    (tmp_path / "mm").write_bytes(pickle.dumps({f"train/{A}.jpg": item}))
    for name in ("detectron2.structures.boxes", "mmengine.structures.instance_data"):
        monkeypatch.delitem(sys.modules, name)
    for path, format in (("d2", "detectron2"), ("mm", "mmdetection")):
        back = READERS[format](tmp_path / path)
        assert back.boxes(A, back.box_format).tolist() == BOXES[A].tolist()
        assert back.scores(A).tolist() == SCORES.tolist()


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_is_refused_unless_trusted_and_calls_nothing(tmp_path):
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"boxes": [Payload(tmp_path / "run")]}))
    for format in ("detectron", "detectron2", "mmdetection"):
        with pytest.raises(InputError, match=r"p\.pkl: a pickle can run any code.*--i-trust-this-file"):
            convert(tmp_path / "p.pkl", format, tmp_path / "out", "npz")
        with pytest.raises(InputError, match=r"it wants to call .*open"):
            convert(tmp_path / "p.pkl", format, tmp_path / "out", "npz", trusted=True)
    assert [path.name for path in tmp_path.iterdir()] == ["p.pkl"]


def test_bad_files_are_named(tmp_path):
    def mat(name, **content):
        scipy.io.savemat(tmp_path / name, content)

    mat("names.mat", b=cells(boxes("xyxy")), i=cells(A))
    mat("short.mat", boxes=cells(boxes("xyxy"), boxes("xyxy")), images=cells(A))
    mat("twice.mat", boxes=cells(boxes("xyxy"), boxes("xyxy")), images=cells(A, A))
    mat("wide.mat", boxes=cells(np.ones((4, 6))), images=cells(A))
    mat("scores.mat", boxes=boxes("xyxy"), scores=np.ones(3))
    (tmp_path / "junk").write_bytes(b"junk" * 100)
    (tmp_path / "new.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n")
    (tmp_path / "folder").mkdir()
    with open(tmp_path / "objects.npz", "wb") as file:
        np.savez(file, a=np.array([{}], dtype=object))
    with zipfile.ZipFile(tmp_path / "lzma.npz", "w", zipfile.ZIP_LZMA) as zipped, zipped.open("a.npy", "w") as member:
        np.lib.format.write_array(member, np.ones((3, 4)))
    data = bytearray((tmp_path / "lzma.npz").read_bytes())
    data[60] ^= 85
    (tmp_path / "lzma.npz").write_bytes(data)
    header = b"{1: 2, 'a': 3}".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "keys.npz", "w") as zipped:
        zipped.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    (tmp_path / "columns.csv").write_text("image_id,left,top,right,bottom\na,1,2,3,4\n")
    (tmp_path / "few.csv").write_text("a,1,2,3\n")
    (tmp_path / "words.csv").write_text("a,1,2,3,4\na,1,2,3,x\n")
    (tmp_path / "dict.json").write_text("{}")
    (tmp_path / "entry.json").write_text('[{"image_id": 1, "bbox": [1, 2, 3]}]')
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([np.zeros((1, 5))]))
    (tmp_path / "mode.pkl").write_bytes(pickle.dumps(detectron2(mode=4)))
    (tmp_path / "length.pkl").write_bytes(pickle.dumps(detectron2() | {"ids": [A]}))
    (tmp_path / "none.pkl").write_bytes(pickle.dumps({"a.jpg": {"boxes": 1}}))
    cases = [
        ("voc-mat", "names.mat", "has no cell arrays"),
        ("voc-mat", "short.mat", "`boxes` of 2 and `images` of 1 images do not fit"),
        ("voc-mat", "twice.mat", "than once .1.: a;"),
        ("voc-mat", "wide.mat", r"`boxes` of a has shape \(4, 6\)"),
        ("voc-mat", "junk", "not a readable .mat"),
        ("voc-mat", "new.mat", "of version 7.3, which must be HDF5, but is not"),
        ("voc-mat", "no.mat", "no such"),
        ("ijcv-mat", "names.mat", "has no variable `boxes`"),
        ("ijcv-mat", "folder", "not a .mat file"),
        ("mcg-mat", "scores.mat", "has 2 boxes but 3 scores"),
        ("npz", "junk", "not a readable .npz"),
        ("npz", "objects.npz", "'a' cannot be read"),
        ("npz", "lzma.npz", "'a' cannot be read: Corrupt input data"),
        ("npz", "keys.npz", "'a' cannot be read"),
        ("csv", "columns.csv", "neither x1, y1, x2, y2 nor"),
        ("csv", "few.csv", "4 columns"),
        ("csv", "words.csv", "box 2 is not"),
        ("csv", "no.csv", "no such"),
        ("coco-json", "junk", "broken JSON"),
        ("coco-json", "dict.json", "is not a list"),
        ("coco-json", "entry.json", "entry 1 has no"),
        ("mmdetection", "list.pkl", "without image ids.*never matched by position"),
        ("mmdetection", "none.pkl", "is a dict without bboxes"),
        ("detectron2", "mode.pkl", "bbox_mode 4"),
        ("detectron2", "length.pkl", "of one length, as detectron2 has"),
        ("detectron", "junk", "not a readable pickle"),
    ]
    for format, name, says in cases:
        with pytest.raises(InputError, match=rf"{name}.*{says}"):
            list(READERS[format](tmp_path / name).rows.values())


def test_the_same_boxes_again_and_again_are_no_trap(tmp_path):
    same = np.arange(8000, dtype=np.uint16).reshape(2000, 4)
    images = [ImageProposals(f"{number:06}", same) for number in range(1200)]
    WRITERS["voc-mat"](tmp_path / "a.mat", images)
    assert (tmp_path / "a.mat").stat().st_size < 10**6 < 1200 * same.nbytes
    assert len(READERS["voc-mat"](tmp_path / "a.mat").rows) == 1200


def v7_3_with(change, tmp_path):
    path = tmp_path / "a.mat"
    v7_3(path, boxes=boxes("xyxy from 1", np.float64))
    with h5py.File(path, "r+") as file:
        del file["boxes"]
        change(file)
    return path


def cells_in_cells(file):
    inner = file["#refs#"].create_dataset("0", data=np.zeros((4, 1)))
    for number in range(1, 7):
        inner = file["#refs#"].create_dataset(str(number), data=np.array([[inner.ref]], dtype=h5py.ref_dtype))
        inner.attrs["MATLAB_class"] = np.bytes_("cell")
    file["boxes"] = inner


def cells_again_and_again(file):
    inner = file["#refs#"].create_dataset("0", data=np.zeros((4, 1)))
    for number in range(1, 4):
        references = np.full((1, 1000), inner.ref, dtype=h5py.ref_dtype)
        inner = file["#refs#"].create_dataset(str(number), data=references)
        inner.attrs["MATLAB_class"] = np.bytes_("cell")
    file["boxes"] = inner


def virtual(file):
    layout = h5py.VirtualLayout((4, 1), np.float64)
    layout[:] = h5py.VirtualSource("other.mat", "boxes", (4, 1))
    file.create_virtual_dataset("boxes", layout)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda file: file.create_dataset("boxes", (4, 2**29), "f4", chunks=(4, 2**10), compression=9),
            "a variable of more than 1[67]",
        ),
        (
            lambda file: file.create_dataset("boxes", (9,), h5py.string_dtype(), fillvalue="x" * 50_000),
            "holds object, which MATLAB does not write",
        ),
        (
            lambda file: file.create_dataset(
                "boxes", data=np.zeros((4, 1)), maxshape=(4, None), chunks=(4, 2**20), compression=9
            ),
            "a variable of more than 1[67]",
        ),
        (cells_again_and_again, "a variable of more than 1[67]"),
        (cells_in_cells, "cells in cells, more than 4 deep"),
        (virtual, "its data lie in another file"),
        (lambda file: file.create_dataset("boxes", (4, 8), "u1", external=[("secret", 0, 32)]), "lie in another file"),
        (lambda file: file.__setitem__("boxes", h5py.ExternalLink("other.mat", "boxes")), "variables lie elsewhere"),
    ],
)
def test_a_file_of_version_7_3_that_is_a_trap(tmp_path, monkeypatch, change, says):
    """Zeros without end, and data of other files, which a pipe would have us wait for."""
    monkeypatch.setattr(mat5, "BYTES", 2**24)
    (tmp_path / "secret").write_bytes(b"1" * 32)
    path = v7_3_with(change, tmp_path)
    os.mkfifo(tmp_path / "other.mat")
    with pytest.raises(InputError, match=says):
        dict(READERS["ijcv-mat"](path).rows)
    assert path.stat().st_size < 100_000


def test_what_cannot_be_written(tmp_path):
    outside = ImageProposals("../../x", BOXES[A])
    with pytest.raises(InputError, match="'../../x' cannot be the name of a file"):
        WRITERS["ijcv-mat"](tmp_path / "out", [outside])
    with pytest.raises(InputError, match="needs the images: give --data"):
        WRITERS["mmdetection"](tmp_path / "out", [ImageProposals(A, BOXES[A])])
    (tmp_path / "there").write_text("mine")
    with pytest.raises(InputError, match="there already"):
        convert(tmp_path / "x.npz", "npz", tmp_path / "there", "csv", "xyxy", "0")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("format", [name for name in WRITERS if name != "mmdetection"])
def test_nothing_to_convert_makes_an_empty_file_or_folder(format, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    assert convert(tmp_path / "none.json", "coco-json", tmp_path / "out", format) == (0, 0)
    assert (tmp_path / "out").exists()


def test_all_images_have_scores_or_none(tmp_path):
    """An image without a box says nothing about it."""
    for name, second in (("bad", boxes("xyxy")), ("good", np.zeros((0, 4)))):
        with open(tmp_path / name, "wb") as file:
            np.savez(file, b=second, a=np.column_stack([boxes("xyxy"), SCORES]))
    for format in ("csv", "store"):
        with pytest.raises(InputError, match="bad: of b and a only one has scores"):
            convert(tmp_path / "bad", "npz", tmp_path / format, format, "xyxy", "0")
        convert(tmp_path / "good", "npz", tmp_path / format, format, "xyxy", "0")
        assert READERS[format](tmp_path / format).scores("a").tolist() == SCORES.tolist()


def test_what_a_file_does_not_say_is_asked_for(tmp_path):
    npz(tmp_path / "p.npz")
    csv_named(tmp_path / "p.csv")
    for name, declared, asked in (
        ("npz", {}, "--order and --base"),
        ("npz", {"pixel_origin": "1"}, "--order;"),
        ("csv", {}, "--base;"),
    ):
        with pytest.raises(InputError, match=rf"p\.{name}: the file does not say .* give {asked}"):
            convert(tmp_path / f"p.{name}", name, tmp_path / "out", "store", **declared)


def test_what_is_declared_comes_before_what_the_format_states(tmp_path):
    stream_store(tmp_path / "p.safetensors", [ImageProposals(A, BOXES[A])], {})
    convert(tmp_path / "p.safetensors", "store", tmp_path / "q", "npz", order="yxyx")
    assert np.load(tmp_path / "q")[A].tolist() == BOXES[A][:, [1, 0, 3, 2]].tolist()
