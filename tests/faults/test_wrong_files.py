"""Wrong files of every kind, one row each: what is wrong, the command, its exit status, and what it says."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detector.proposals.store import FORMAT
from tests.helpers.wrong_input import (
    CHECK,
    COCO,
    DETECT,
    ENTRY,
    NESTED,
    SAVED,
    SCORE,
    TRAIN,
    USE_STORE,
    Case,
    all_of,
    check,
    coco,
    endless,
    item,
    picture,
    pipe,
    replace,
    rewrite,
    write,
)


def store(change: Callable[[dict, dict], object] = lambda tensors, metadata: None) -> Callable[[], None]:
    """p.safetensors with other tensors (name -> (dtype, shape, bytes)) or metadata."""

    def make() -> None:
        data = Path("p.safetensors").read_bytes()
        length = int.from_bytes(data[:8], "little")
        head, body = json.loads(data[8 : 8 + length]), data[8 + length :]
        metadata = head.pop("__metadata__")
        tensors = {
            name: (item["dtype"], item["shape"], body[slice(*item["data_offsets"])]) for name, item in head.items()
        }
        change(tensors, metadata)
        head, body = {"__metadata__": metadata}, b""
        for name, (dtype, shape, content) in tensors.items():
            head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(content)]}
            body += content
        text = json.dumps(head).encode()
        Path("p.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)

    return make


def tensor(name: str, dtype: str, shape: list[int], array: np.ndarray) -> Callable[[], None]:
    return store(lambda tensors, _: tensors.update({name: (dtype, shape, array.tobytes())}))


def metadata(text: str) -> Callable[[], None]:
    return store(lambda _, about: about.update({FORMAT: text}))


def zeros() -> None:
    """p.npz whose directory says that an array unpacks to 1 GiB, as zeros do from less than a MiB."""
    with zipfile.ZipFile("p.npz", "w") as file:
        file.writestr("a.npy", b"")
        file.filelist[0].file_size = 2**30


def claims() -> None:
    """p.npz whose header claims an array of 32 TB."""
    with zipfile.ZipFile("p.npz", "w") as file, file.open("a.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 4)})


N = 9
FROM_NPZ = "scripts.proposals convert --from npz --to store --order xyxy --base 0 p.npz"
STORE = "damaged proposal store"
PROPOSALS_CASES = [
    Case("boxes of bool", USE_STORE, "boxes is BOOL", tensor("boxes", "BOOL", [18, 4], np.ones(72, bool))),
    Case("boxes of bfloat16", USE_STORE, "boxes is BF16", tensor("boxes", "BF16", [18, 4], np.ones(72, np.int16))),
    Case("boxes of float8", USE_STORE, "boxes is F8_E4M3", tensor("boxes", "F8_E4M3", [18, 4], np.ones(72, np.int8))),
    Case("boxes of float64", USE_STORE, "boxes is F64", tensor("boxes", "F64", [18, 4], np.ones(72))),
    Case("boxes of one dimension", USE_STORE, "boxes is F32 of shape", tensor("boxes", "F32", [72], np.ones(72, "f4"))),
    Case("boxes of three numbers", USE_STORE, STORE, tensor("boxes", "F32", [24, 3], np.ones(72, "f4"))),
    Case("offsets as floats", USE_STORE, "offsets is F64", tensor("offsets", "F64", [N + 1], np.arange(N + 1.0))),
    Case("offsets of two dimensions", USE_STORE, "offsets is I64", tensor("offsets", "I64", [5, 2], np.arange(10))),
    Case(
        "offsets as uint64",
        USE_STORE,
        "offsets is U64",
        tensor("offsets", "U64", [N + 1], np.arange(N + 1, dtype="u8")),
    ),
    Case("offsets that descend", USE_STORE, STORE, tensor("offsets", "I64", [N + 1], np.array([0, 4, 2, *[18] * 7]))),
    Case("offsets below zero", USE_STORE, STORE, tensor("offsets", "I64", [N + 1], np.array([-2, *[18] * 9]))),
    Case("offsets beyond the boxes", USE_STORE, STORE, tensor("offsets", "I64", [N + 1], np.array([*[0] * 9, 99]))),
    Case("no offsets", USE_STORE, STORE, store(lambda tensors, _: tensors.pop("offsets"))),
    Case("empty offsets", USE_STORE, STORE, tensor("offsets", "I64", [0], np.zeros(0, int))),
    Case("sizes of one column", USE_STORE, STORE, tensor("image_hws", "I32", [N, 1], np.ones(N, "i4"))),
    Case("sizes of three columns", USE_STORE, STORE, tensor("image_hws", "I32", [N, 3], np.ones(27, "i4"))),
    Case("scores of bool", USE_STORE, "scores is BOOL", tensor("scores", "BOOL", [18], np.ones(18, bool))),
    Case("too few scores", USE_STORE, STORE, tensor("scores", "F32", [17], np.ones(17, "f4"))),
    Case("a tensor of no store", USE_STORE, "more is F32", tensor("more", "F32", [1], np.ones(1, "f4"))),
    Case("ids that are no text", USE_STORE, STORE, tensor("image_ids", "U8", [2], np.array([255, 0], "u1"))),
    Case("an id twice", USE_STORE, STORE, tensor("image_ids", "U8", [18], np.array([97, 0] * 9, "u1"))),
    Case("metadata nested deep", USE_STORE, STORE, metadata("[" * 100_000)),
    Case("metadata that are a list", USE_STORE, STORE, metadata("[]")),
    Case("metadata that are no JSON", USE_STORE, STORE, metadata("{")),
    Case("reasons that are numbers", USE_STORE, STORE, metadata('{"unreadable": {"a": 1}}')),
    Case("a store without metadata", USE_STORE, "not a proposal store", store(lambda _, about: about.clear())),
    Case("an empty store", USE_STORE, STORE, write("p.safetensors", b"")),
    Case("a header bomb", USE_STORE, STORE, write("p.safetensors", b"\xff" * 7 + b"\x7f{}")),
    Case("a pipe as proposals", USE_STORE, "not a regular file", pipe("p.safetensors")),
    Case(
        "a folder as proposals",
        "scripts.proposals info T.safetensors",
        "T.safetensors",
        lambda: os.mkdir("T.safetensors"),
    ),
    Case("a device as proposals", USE_STORE, "not a regular file", endless("p.safetensors")),
    Case("a pipe as a .mat", "scripts.proposals info p.mat", "p.mat", pipe("p.mat")),
    Case(
        "a pipe to convert from",
        "scripts.proposals convert --from csv --to store p.csv q.safetensors",
        "p.csv",
        pipe("p.csv"),
    ),
    Case(
        "a pipe of COCO proposals",
        "scripts.proposals convert --from coco-json --to store p.json q.safetensors",
        "p.json",
        pipe("p.json"),
    ),
    Case(
        "an .npz that unpacks to any size",
        f"{FROM_NPZ} q.safetensors",
        "unpacks to 1073741824 bytes; the limit is 268435456: store",
        zeros,
    ),
    Case("an .npz that claims any size", f"{FROM_NPZ} q.safetensors", "p.npz: ", claims),
    Case(
        "proposals of one image, to train on",
        f"{TRAIN} data.train_proposals=p.safetensors",
        "no proposals for 6 of 6",
        tensor("image_ids", "U8", [18], np.frombuffer(b"a\0b\0c\0d\0e\0f\0g\0h\0i\0", "u1")),
    ),
]
BOMB = "# @package _global_\nx0: &x0 [1]\n" + "".join(
    f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 8)
)
FILE_CASES = [
    Case(
        "a TIFF with a tag of another type, to detect",
        f"{DETECT} --input pics --out found",
        "pics/a.tif: damaged image",
        all_of(picture("pics/a.tif", (72, 11)), picture("pics/b.tif")),
        1,
    ),
    Case(
        "a TIFF with a tag of another type, to check",
        CHECK,
        "train_0.tif: damaged image",
        all_of(lambda: os.remove("T/JPEGImages/train_0.jpg"), picture("T/JPEGImages/train_0.tif", (72, 11))),
        1,
    ),
    Case("a pipe as an image", CHECK, "train_0.jpg: not a regular file", pipe("T/JPEGImages/train_0.jpg"), 1),
    Case("a device as an image", CHECK, "train_0.jpg: not a regular file", endless("T/JPEGImages/train_0.jpg"), 1),
    Case("a pipe as an image, to train on", TRAIN, "train_0.jpg: not a regular file", pipe("T/JPEGImages/train_0.jpg")),
    Case(
        "a pipe as an image, to score",
        f"{SCORE} checkpoint=best.pt",
        "test_0.jpg: not a regular file",
        pipe("T/JPEGImages/test_0.jpg"),
    ),
    Case(
        "a device as an image, to generate for",
        "scripts.proposals generate --data T --split train --mode single --out q.safetensors",
        "train_0: not a regular file",
        endless("T/JPEGImages/train_0.jpg"),
    ),
    Case(
        "a pipe among the images to detect in",
        f"{DETECT} --input pics --out found",
        "1 images",
        all_of(picture("pics/a.png"), pipe("pics/b.png")),
        0,
    ),
    Case("a pipe to detect in", f"{DETECT} --input b.png --out found", "b.png", pipe("b.png")),
    Case("a pipe as a video", f"{DETECT} --input b.mp4 --out found", "b.mp4", pipe("b.mp4")),
    Case("a device as a video", f"{DETECT} --input b.mp4 --out found", "b.mp4", endless("b.mp4")),
    Case("text as a video", f"{DETECT} --input b.mp4 --out found", "b.mp4", write("b.mp4", "x" * 999)),
    Case("a pipe as an annotation", CHECK, "no XML file: train_0", pipe("T/Annotations/train_0.xml")),
    Case("a device as an annotation", CHECK, "no XML file: train_0", endless("T/Annotations/train_0.xml")),
    Case("a pipe as a split", CHECK, "train.txt", pipe("T/ImageSets/Main/train.txt")),
    Case("a pipe as COCO JSON", "scripts.check_data --data T --annotations a.json", "a.json", pipe("T/a.json")),
    Case("a device as COCO JSON", "scripts.check_data --data T --annotations a.json", "a.json", endless("T/a.json")),
    Case("a pipe as a checkpoint", f"{SCORE} checkpoint=c.pt", "c.pt", pipe("c.pt")),
    Case("a device as a checkpoint", f"{SCORE} checkpoint=c.pt", "c.pt", endless("c.pt")),
    Case("a pipe as weights", f"{TRAIN} model.weights=c.pt", "c.pt", pipe("c.pt")),
    Case(
        "a pipe as an exported network",
        "scripts.detect --checkpoint c.onnx --input T/JPEGImages --out found",
        "c.onnx",
        pipe("c.onnx"),
    ),
    Case(
        "text as an exported network",
        "scripts.detect --checkpoint c.onnx --input T/JPEGImages --out found",
        "c.onnx",
        write("c.onnx", "x" * 99),
    ),
    Case("a pipe as detections", SAVED, "D.json", pipe("D.json")),
    Case("a device as detections", SAVED, "D.json", endless("D.json")),
    Case(
        "a pipe as a devkit's results",
        f"{SCORE} data=voc detections=D",
        "comp4_det_test_ball.txt",
        pipe("D/comp4_det_test_ball.txt"),
    ),
    Case(
        "a config whose aliases expand without end",
        f"{TRAIN} --config-dir C +experiment=bomb",
        r"bomb\.yaml: more than 20 of \*name and \$\{name\} \(63 and 0\).*: write the values out",
        write("C/experiment/bomb.yaml", BOMB),
    ),
    Case(
        "a config whose interpolations expand without end",
        f"{TRAIN} --config-dir C experiment=bomb",
        r"bomb\.yaml: more than 20 of \*name and \$\{name\} \(0 and 60\).*: write the values out",
        write("C/experiment/bomb.yaml", "x0: aa\n" + "".join(f"x{n + 1}: ${{x{n}}}${{x{n}}}\n" for n in range(30))),
    ),
    Case("a pipe as a config", f"{TRAIN} --config-dir C +experiment=a", "a.yaml", pipe("C/experiment/a.yaml")),
    Case(
        "a device as a config",
        f"{TRAIN} --config-dir C +experiment=a",
        "a.yaml",
        all_of(lambda: os.makedirs("C/experiment"), endless("C/experiment/a.yaml")),
    ),
    Case(
        "a folder as a config",
        f"{TRAIN} --config-dir C experiment=a",
        "experiment",
        lambda: os.makedirs("C/experiment/a.yaml"),
    ),
]
CJK = "\u4e2d" * 25
LABEL_CASES = [
    Case(
        "a split of 25 CJK letters",
        f"scripts.check_data --data T --splits {CJK}",
        "6 images found",
        lambda: shutil.copy("T/ImageSets/Main/train.txt", f"T/ImageSets/Main/{CJK}.txt"),
        0,
    ),
    Case(
        "a split of 80 CJK letters to generate for",
        f"scripts.proposals generate --data T --split {CJK * 3} --mode single --out q.safetensors",
        "6 images",
        lambda: shutil.copy("T/ImageSets/Main/train.txt", f"T/ImageSets/Main/{CJK * 3}.txt"),
        0,
    ),
    Case(
        "a split of 80 CJK letters to train on",
        f"{TRAIN} data.train_split={CJK * 3}",
        "no such split",
        lambda: None,
    ),
    Case(
        "names of control characters, emoji and no UTF-8",
        f"{DETECT} --input pics --out found --voc-xml",
        "detections in 3 of 3 images",
        all_of(picture("pics/a\x01b.png"), picture("pics/\U0001f600.png"), picture("pics/\udcff.png")),
        0,
    ),
    Case(
        "a.png beside a folder a.jpg",
        f"{DETECT} --input 'pics/**/*.*' --out found --voc-xml",
        "in 2 of 2 images",
        all_of(picture("pics/a.png"), picture("pics/a.jpg/b.png")),
        0,
    ),
    Case(
        "a picture whose name has 255 bytes",
        f"{DETECT} --input pics --out found --voc-xml",
        "1 of 1",
        picture(f"pics/{'n' * 251}.png"),
        0,
    ),
    Case(
        "<Object> in place of <object>",
        CHECK,
        "<Object> is not VOC's <object>",
        lambda: rewrite("T/Annotations/train_0.xml", "object>", "Object>"),
        1,
    ),
    Case(
        "<objects> around the objects",
        CHECK,
        "<objects> is not VOC's <object>",
        all_of(
            replace("T/Annotations/train_0.xml", "</size>", "</size><objects>"),
            replace("T/Annotations/train_0.xml", "</annotation>", "</objects></annotation>"),
        ),
        1,
    ),
    Case(
        "<objekt> in place of <object>",
        CHECK,
        "objekt",
        lambda: rewrite("T/Annotations/train_0.xml", "object>", "objekt>"),
        1,
    ),
    Case(
        "<difficult> of an unknown value",
        CHECK,
        "<difficult>maybe</difficult>: must be 0 or 1",
        lambda: rewrite("T/Annotations/train_0.xml", "<difficult>0<", "<difficult>maybe<"),
        1,
    ),
    Case(
        "a class that differs in its case",
        CHECK,
        "differ only in case",
        replace("T/Annotations/train_0.xml", "<name>ball<", "<name>Ball<"),
        1,
    ),
    Case(
        "an id twice in a split", CHECK, "listed more than once", write("T/ImageSets/Main/train.txt", "train_0\n" * 2)
    ),
    Case("an id with a zero byte", CHECK, "cannot be an image id", write("T/ImageSets/Main/train.txt", "a\0b\n")),
    Case("an id that leads out", CHECK, "\\.\\.", write("T/ImageSets/Main/train.txt", "../../x\n")),
    Case("an id that is absolute", CHECK, "/etc/passwd", write("T/ImageSets/Main/train.txt", "/etc/passwd\n")),
]
COCO_CASES = [
    Case(f"COCO with {name}", COCO, says, coco(change))
    for name, change, says in [
        ("an id of text", item("images", id="x"), "image_id 2, which is not among"),
        ("an id of a list", item("images", id=[1]), "images\\[1\\] has no valid 'id'"),
        ("an id of true", item("images", id=True), "images\\[1\\] has no valid 'id'"),
        ("an id twice", item("images", id=1), "image ids are listed more than once"),
        ("a huge id", item("images", id=10**4000), "id"),
        ("a huge image_id", item("annotations", image_id=10**4000), "image_id"),
        ("a huge category_id", item("annotations", category_id=10**400), "category_id"),
        ("a huge id of a category", item("categories", id=10**400), "53 bits"),
        ("a category of a list", item("categories", name=["x"]), "has no valid 'name'"),
        ("a category twice", item("categories", name="cat"), "two categories have the name cat"),
        ("a category that is a path", item("categories", name="../x"), "\\.\\./x"),
        ("a box of NaN", item("annotations", bbox=[float("nan"), 1, 2, 3]), "annotation 2 has the bbox"),
        ("a box without end", item("annotations", bbox=[0, 1, float("inf"), 3]), "annotation 2 has the bbox"),
        ("a box of huge integers", item("annotations", bbox=[0, 1, 10**400, 3]), "annotation 2 has the bbox"),
        ("a box of text", item("annotations", bbox="1234"), "annotation 2 has no valid 'bbox'"),
        ("a box of three numbers", item("annotations", bbox=[1, 2, 3]), "annotation 2 has the bbox"),
        ("a box of lists", item("annotations", bbox=[[1], [2], [3], [4]]), "annotation 2 has the bbox"),
        ("a box of negative size", item("annotations", bbox=[1, 2, -3, 4]), "of negative size"),
        ("a file name of a number", item("images", file_name=5), "has no valid 'file_name'"),
        ("no file name", lambda content: content["images"][1].pop("file_name"), "'file_name': it is missing"),
        ("no categories", lambda content: content.pop("categories"), "no list of objects 'categories'"),
        ("a map of images", lambda content: content.update(images={}), "no list of objects 'images'"),
        ("images of numbers", lambda content: content.update(images=[1]), "no list of objects 'images'"),
        ("no image", lambda content: content.update(images=[], annotations=[]), "it has no images"),
    ]
] + [
    Case("COCO JSON nested deep", COCO, "a.json: broken JSON", write("T/a.json", NESTED)),
    Case("COCO JSON that is empty", COCO, "a.json: broken JSON", write("T/a.json", "")),
    Case("COCO JSON that is a list", COCO, "not a COCO annotation file", write("T/a.json", "[]")),
    Case("COCO JSON that is no UTF-8", COCO, "a.json: broken JSON", write("T/a.json", b"\xff\xff")),
    Case(
        "COCO with an image outside",
        COCO,
        "missing|cannot be read|leads out",
        coco(item("images", file_name="../../../etc/passwd")),
        1,
    ),
    Case(
        "COCO with a class in NFD",
        COCO,
        "two categories have the name",
        coco(
            lambda content: [
                content["categories"][0].update(name="\u00e9"),
                content["categories"][1].update(name="e\u0301"),
            ]
        ),
    ),
]
SAVED_CASES = [
    Case(f"detections with {name}", SAVED, "entry 2", write("D.json", [ENTRY, {**ENTRY, **change}]))
    for name, change in {
        "an unknown image": {"image_id": "x"},
        "an image of a list": {"image_id": [1]},
        "a box of NaN": {"bbox": [float("nan")] * 4},
        "a box of three numbers": {"bbox": [1, 2, 3]},
        "a box of text": {"bbox": "abcd"},
        "a score of text": {"score": "x"},
        "a score without end": {"score": float("inf")},
        "a score of null": {"score": None},
        "a huge score": {"score": 10**400},
        "a huge image": {"image_id": 10**4000},
        "a class of a list": {"category_name": ["x"]},
        "a class of a map": {"category_name": {}},
        "a category of a list": {"category_name": None, "category_id": [1]},
    }.items()
] + [
    Case("detections that are a map", SAVED, "D.json has no COCO results", write("D.json", "{}")),
    Case("detections nested deep", SAVED, "D.json: broken JSON", write("D.json", NESTED)),
    Case("detections that are no UTF-8", SAVED, "D.json: broken JSON", write("D.json", b"\xff")),
    Case("detections of entries that are numbers", SAVED, "entry 1", write("D.json", "[1]")),
    Case("no file of detections", SAVED, "D.json", lambda: None),
    Case("an empty folder of detections", f"{SCORE} data=voc detections=D", "has no file comp4", lambda: os.mkdir("D")),
    Case(
        "a devkit's results of no UTF-8",
        f"{SCORE} data=voc detections=D",
        "not UTF-8",
        write("D/comp4_det_test_ball.txt", b"\xff"),
    ),
    Case(
        "a devkit's results of words",
        f"{SCORE} data=voc detections=D",
        "line 1",
        write("D/comp4_det_test_ball.txt", "test_0 a b c d e\n"),
    ),
    Case(
        "a devkit's results of an unknown image",
        f"{SCORE} data=voc detections=D",
        "line 1",
        write("D/comp4_det_test_ball.txt", "x 0.5 1 2 3 4\n"),
    ),
]
MORE_LINES = (  # a list of images, a command to copy, or what a library prints
    "a pipe as an image, to train on", "a pipe as an image, to score", "text as a video",
    "proposals of one image, to train on",
)  # fmt: skip


@pytest.mark.parametrize(
    "case", [*FILE_CASES, *PROPOSALS_CASES, *LABEL_CASES, *COCO_CASES, *SAVED_CASES], ids=lambda case: case.id
)
def test_wrong_input(case, folder, capfd, monkeypatch):
    one_line = case in (*FILE_CASES, *PROPOSALS_CASES) and case.status == 2 and case.name not in MORE_LINES
    check(case, folder, capfd, monkeypatch, one_line)
