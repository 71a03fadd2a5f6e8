"""Wrong files of every kind, one row each: what is wrong, the command, its exit status, and what it says."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

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
STORE = "p.safetensors: damaged proposal store: "
PROPOSALS_CASES = [
    Case(
        "boxes of bool",
        USE_STORE,
        f"{STORE}boxes is BOOL of shape [18, 4]",
        tensor("boxes", "BOOL", [18, 4], np.ones(72, bool)),
    ),
    Case(
        "boxes of bfloat16",
        USE_STORE,
        f"{STORE}boxes is BF16 of shape [18, 4]",
        tensor("boxes", "BF16", [18, 4], np.ones(72, np.int16)),
    ),
    Case(
        "boxes of float8",
        USE_STORE,
        f"{STORE}boxes is F8_E4M3 of shape [18, 4]",
        tensor("boxes", "F8_E4M3", [18, 4], np.ones(72, np.int8)),
    ),
    Case(
        "boxes of float64",
        USE_STORE,
        f"{STORE}boxes is F64 of shape [18, 4]",
        tensor("boxes", "F64", [18, 4], np.ones(72)),
    ),
    Case(
        "boxes of one dimension",
        USE_STORE,
        f"{STORE}boxes is F32 of shape [72]",
        tensor("boxes", "F32", [72], np.ones(72, "f4")),
    ),
    Case(
        "boxes of three numbers",
        USE_STORE,
        f"{STORE}its offsets, boxes and image ids do not fit",
        tensor("boxes", "F32", [24, 3], np.ones(72, "f4")),
    ),
    Case(
        "offsets as floats",
        USE_STORE,
        f"{STORE}offsets is F64 of shape [10]",
        tensor("offsets", "F64", [N + 1], np.arange(N + 1.0)),
    ),
    Case(
        "offsets of two dimensions",
        USE_STORE,
        f"{STORE}offsets is I64 of shape [5, 2]",
        tensor("offsets", "I64", [5, 2], np.arange(10)),
    ),
    Case(
        "offsets as uint64",
        USE_STORE,
        f"{STORE}offsets is U64 of shape [10]",
        tensor("offsets", "U64", [N + 1], np.arange(N + 1, dtype="u8")),
    ),
    Case(
        "offsets that descend",
        USE_STORE,
        f"{STORE}its offsets, boxes and image ids do not fit",
        tensor("offsets", "I64", [N + 1], np.array([0, 4, 2, *[18] * 7])),
    ),
    Case(
        "offsets below zero",
        USE_STORE,
        f"{STORE}its offsets, boxes and image ids do not fit",
        tensor("offsets", "I64", [N + 1], np.array([-2, *[18] * 9])),
    ),
    Case(
        "offsets beyond the boxes",
        USE_STORE,
        f"{STORE}its offsets, boxes and image ids do not fit",
        tensor("offsets", "I64", [N + 1], np.array([*[0] * 9, 99])),
    ),
    Case(
        "no offsets",
        USE_STORE,
        f"{STORE}File does not contain tensor offsets",
        store(lambda tensors, _: tensors.pop("offsets")),
    ),
    Case(
        "empty offsets",
        USE_STORE,
        f"{STORE}its offsets, boxes and image ids do not fit",
        tensor("offsets", "I64", [0], np.zeros(0, int)),
    ),
    Case(
        "sizes of one column",
        USE_STORE,
        f"{STORE}its offsets, boxes and image ids do not fit",
        tensor("image_hws", "I32", [N, 1], np.ones(N, "i4")),
    ),
    Case(
        "sizes of three columns",
        USE_STORE,
        f"{STORE}its offsets, boxes and image ids do not fit",
        tensor("image_hws", "I32", [N, 3], np.ones(27, "i4")),
    ),
    Case(
        "scores of bool",
        USE_STORE,
        f"{STORE}scores is BOOL of shape [18]",
        tensor("scores", "BOOL", [18], np.ones(18, bool)),
    ),
    Case(
        "too few scores",
        USE_STORE,
        f"{STORE}its offsets, boxes and image ids do not fit",
        tensor("scores", "F32", [17], np.ones(17, "f4")),
    ),
    Case(
        "a tensor of no store",
        USE_STORE,
        f"{STORE}more is F32 of shape [1]",
        tensor("more", "F32", [1], np.ones(1, "f4")),
    ),
    Case(
        "ids that are no text",
        USE_STORE,
        f"{STORE}'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        tensor("image_ids", "U8", [2], np.array([255, 0], "u1")),
    ),
    Case(
        "an id twice",
        USE_STORE,
        f"{STORE}its offsets, boxes and image ids do not fit",
        tensor("image_ids", "U8", [18], np.array([97, 0] * 9, "u1")),
    ),
    Case(
        "metadata nested deep",
        USE_STORE,
        f"{STORE}maximum recursion depth exceeded while decoding a JSON",
        metadata("[" * 100_000),
    ),
    Case("metadata that are a list", USE_STORE, f"{STORE}its metadata do not say how it was made", metadata("[]")),
    Case(
        "metadata that are no JSON",
        USE_STORE,
        f"{STORE}Expecting property name enclosed in double quotes: line",
        metadata("{"),
    ),
    Case(
        "reasons that are numbers",
        USE_STORE,
        f"{STORE}its list of unreadable images does not map ids to reasons",
        metadata('{"unreadable": {"a": 1}}'),
    ),
    Case(
        "a store without metadata",
        USE_STORE,
        "p.safetensors: not a proposal store: no 'fast-rcnn proposals 2' in its metadata",
        store(lambda _, about: about.clear()),
    ),
    Case(
        "an empty store",
        USE_STORE,
        f"{STORE}Error while deserializing header: header too small",
        write("p.safetensors", b""),
    ),
    Case(
        "a header bomb",
        USE_STORE,
        f"{STORE}Error while deserializing header: header too large",
        write("p.safetensors", b"\xff" * 7 + b"\x7f{}"),
    ),
    Case("a pipe as proposals", USE_STORE, "p.safetensors: not a regular file", pipe("p.safetensors")),
    Case(
        "a folder as proposals",
        "scripts.proposals info T.safetensors",
        "T.safetensors: a folder",
        lambda: os.mkdir("T.safetensors"),
    ),
    Case("a device as proposals", USE_STORE, "p.safetensors: not a regular file", endless("p.safetensors")),
    Case("a pipe as a .mat", "scripts.proposals info p.mat", "p.mat: not a regular file", pipe("p.mat")),
    Case(
        "a pipe to convert from",
        "scripts.proposals convert --from csv --to store p.csv q.safetensors",
        "p.csv: not a regular file",
        pipe("p.csv"),
    ),
    Case(
        "a pipe of COCO proposals",
        "scripts.proposals convert --from coco-json --to store p.json q.safetensors",
        "p.json: not a regular file",
        pipe("p.json"),
    ),
    Case(
        "an .npz that unpacks to any size",
        f"{FROM_NPZ} q.safetensors",
        "p.npz: not a readable .npz file: a.npy unpacks to 1073741824 bytes; the limit is 268435456: store",
        zeros,
    ),
    Case("an .npz that claims any size", f"{FROM_NPZ} q.safetensors", "p.npz: needs more memory than is free", claims),
    Case(
        "proposals of one image, to train on",
        f"{TRAIN} data.train_proposals=p.safetensors",
        "p.safetensors: no proposals for 6 of 6 images: train_0, train_1, train_2, train_3, train_4 and",
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
        "pics/a.tif: damaged image: 'float' object cannot be interpreted as an integer",
        all_of(picture("pics/a.tif", (72, 11)), picture("pics/b.tif")),
        1,
    ),
    Case(
        "a TIFF with a tag of another type, to check",
        CHECK,
        "T-train: 6 images found, ...1 corrupt, ...corrupt: T/JPEGImages/train_0.tif: damaged image: 'float' object",
        all_of(lambda: os.remove("T/JPEGImages/train_0.jpg"), picture("T/JPEGImages/train_0.tif", (72, 11))),
        1,
    ),
    Case(
        "a pipe as an image",
        CHECK,
        "T-train: 5 images found, 1 missing, ...missing: T/JPEGImages/train_0.jpg: not a regular file",
        pipe("T/JPEGImages/train_0.jpg"),
        1,
    ),
    Case(
        "a device as an image",
        CHECK,
        "T-train: 5 images found, 1 missing, ...missing: T/JPEGImages/train_0.jpg: not a regular file",
        endless("T/JPEGImages/train_0.jpg"),
        1,
    ),
    Case(
        "a pipe as an image, to train on",
        TRAIN,
        "1 of 6 images of T-train cannot be used, more than ...missing: T/JPEGImages/train_0.jpg: not a regular file",
        pipe("T/JPEGImages/train_0.jpg"),
    ),
    Case(
        "a pipe as an image, to score",
        f"{SCORE} checkpoint=best.pt",
        "T-test: 2 images found, 1 missing, ...missing: T/JPEGImages/test_0.jpg: not a regular file",
        pipe("T/JPEGImages/test_0.jpg"),
    ),
    Case(
        "a device as an image, to generate for",
        "scripts.proposals generate --data T --split train --mode single --out q.safetensors",
        "T-train: more than the fraction 0.01 of its 6 images cannot be read: train_0: not a regular file",
        endless("T/JPEGImages/train_0.jpg"),
    ),
    Case(
        "a pipe among the images to detect in",
        f"{DETECT} --input pics --out found",
        "0 detections in 1 of 1 images",
        all_of(picture("pics/a.png"), pipe("pics/b.png")),
        0,
    ),
    Case(
        "a pipe to detect in",
        f"{DETECT} --input b.png --out found",
        "b.png: there is no file (current directory:",
        pipe("b.png"),
    ),
    Case("a pipe as a video", f"{DETECT} --input b.mp4 --out found", "b.mp4: no such video file", pipe("b.mp4")),
    Case("a device as a video", f"{DETECT} --input b.mp4 --out found", "b.mp4: no such video file", endless("b.mp4")),
    Case(
        "text as a video",
        f"{DETECT} --input b.mp4 --out found",
        "b.mp4: not a video that OpenCV can read",
        write("b.mp4", "x" * 999),
    ),
    Case(
        "a pipe as an annotation",
        CHECK,
        "T/Annotations: 1 of the 6 images of split 'train' have no XML file: train_0. An image without",
        pipe("T/Annotations/train_0.xml"),
    ),
    Case(
        "a device as an annotation",
        CHECK,
        "T/Annotations: 1 of the 6 images of split 'train' have no XML file: train_0. An image without",
        endless("T/Annotations/train_0.xml"),
    ),
    Case(
        "a pipe as a split", CHECK, "T/ImageSets/Main/train.txt: not a regular file", pipe("T/ImageSets/Main/train.txt")
    ),
    Case(
        "a pipe as COCO JSON",
        "scripts.check_data --data T --annotations a.json",
        "T/a.json: not a regular file",
        pipe("T/a.json"),
    ),
    Case(
        "a device as COCO JSON",
        "scripts.check_data --data T --annotations a.json",
        "T/a.json: not a regular file",
        endless("T/a.json"),
    ),
    Case("a pipe as a checkpoint", f"{SCORE} checkpoint=c.pt", "c.pt: not a regular file", pipe("c.pt")),
    Case("a device as a checkpoint", f"{SCORE} checkpoint=c.pt", "c.pt: not a regular file", endless("c.pt")),
    Case("a pipe as weights", f"{TRAIN} model.weights=c.pt", "c.pt: not a regular file", pipe("c.pt")),
    Case(
        "a pipe as an exported network",
        "scripts.detect --checkpoint c.onnx --input T/JPEGImages --out found",
        "c.onnx: not a regular file",
        pipe("c.onnx"),
    ),
    Case(
        "text as an exported network",
        "scripts.detect --checkpoint c.onnx --input T/JPEGImages --out found",
        "c.onnx: not a readable ONNX file: [ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model from",
        write("c.onnx", "x" * 99),
    ),
    Case("a pipe as detections", SAVED, "D.json: not a regular file", pipe("D.json")),
    Case("a device as detections", SAVED, "D.json: not a regular file", endless("D.json")),
    Case(
        "a pipe as a devkit's results",
        f"{SCORE} data=voc detections=D",
        "D/comp4_det_test_ball.txt: not a regular file",
        pipe("D/comp4_det_test_ball.txt"),
    ),
    Case(
        "a config whose aliases expand without end",
        f"{TRAIN} --config-dir C +experiment=bomb",
        "C/experiment/bomb.yaml: more than 20 of *name and ${name} (63 and 0), ...: write the values out",
        write("C/experiment/bomb.yaml", BOMB),
    ),
    Case(
        "a config whose interpolations expand without end",
        f"{TRAIN} --config-dir C experiment=bomb",
        "C/experiment/bomb.yaml: more than 20 of *name and ${name} (0 and 60), ...: write the values out",
        write("C/experiment/bomb.yaml", "x0: aa\n" + "".join(f"x{n + 1}: ${{x{n}}}${{x{n}}}\n" for n in range(30))),
    ),
    Case(
        "a pipe as a config",
        f"{TRAIN} --config-dir C +experiment=a",
        "C/experiment/a.yaml: not a regular file",
        pipe("C/experiment/a.yaml"),
    ),
    Case(
        "a device as a config",
        f"{TRAIN} --config-dir C +experiment=a",
        "C/experiment/a.yaml: not a regular file",
        all_of(lambda: os.makedirs("C/experiment"), endless("C/experiment/a.yaml")),
    ),
    Case(
        "a folder as a config",
        f"{TRAIN} --config-dir C experiment=a",
        "experiment=a: must be one of paper, paper_cls_only, paper_coco, paper_conv2, paper_fc6",
        lambda: os.makedirs("C/experiment/a.yaml"),
    ),
]
CJK = "\u4e2d" * 25
LABEL_CASES = [
    Case(
        "a split of 25 CJK letters",
        f"scripts.check_data --data T --splits {CJK}",
        f"T-{quote(CJK)}: 6 images found, 0 missing, 0 empty, 0 corrupt, 0 misannotated",
        lambda: shutil.copy("T/ImageSets/Main/train.txt", f"T/ImageSets/Main/{CJK}.txt"),
        0,
    ),
    Case(
        "a split of 80 CJK letters to generate for",
        f"scripts.proposals generate --data T --split {CJK * 3} --mode single --out q.safetensors",
        "q.safetensors: 975 boxes of 6 images, 162 per image",
        lambda: shutil.copy("T/ImageSets/Main/train.txt", f"T/ImageSets/Main/{CJK * 3}.txt"),
        0,
    ),
    Case(
        "a split of 80 CJK letters to train on",
        f"{TRAIN} data.train_split={CJK * 3}",
        f"T/ImageSets/Main/{CJK * 3}.txt: no such split; there is test, train",
        lambda: None,
    ),
    Case(
        "names of control characters, emoji and no UTF-8",
        f"{DETECT} --input pics --out found --voc-xml",
        "0 detections in 3 of 3 images",
        all_of(picture("pics/a\x01b.png"), picture("pics/\U0001f600.png"), picture("pics/\udcff.png")),
        0,
    ),
    Case(
        "a.png beside a folder a.jpg",
        f"{DETECT} --input 'pics/**/*.*' --out found --voc-xml",
        "0 detections in 2 of 2 images",
        all_of(picture("pics/a.png"), picture("pics/a.jpg/b.png")),
        0,
    ),
    Case(
        "a picture whose name has 255 bytes",
        f"{DETECT} --input pics --out found --voc-xml",
        "0 detections in 1 of 1 images",
        picture(f"pics/{'n' * 251}.png"),
        0,
    ),
    Case(
        "<Object> in place of <object>",
        CHECK,
        "T-train: 6 images found, ...1 misannotated, ...T/Annotations/train_0.xml: <Object> is not VOC's <object>",
        lambda: rewrite("T/Annotations/train_0.xml", "object>", "Object>"),
        1,
    ),
    Case(
        "<objects> around the objects",
        CHECK,
        "T-train: 6 images found, ...1 misannotated, ...T/Annotations/train_0.xml: <objects> is not VOC's <object>",
        all_of(
            replace("T/Annotations/train_0.xml", "</size>", "</size><objects>"),
            replace("T/Annotations/train_0.xml", "</annotation>", "</objects></annotation>"),
        ),
        1,
    ),
    Case(
        "<objekt> in place of <object>",
        CHECK,
        "T-train: 6 images found, ...1 misannotated, ...T/Annotations/train_0.xml: <objekt> is not VOC's <object>",
        lambda: rewrite("T/Annotations/train_0.xml", "object>", "objekt>"),
        1,
    ),
    Case(
        "<difficult> of an unknown value",
        CHECK,
        "T-train: 6 images...T/Annotations/train_0.xml: object 1 has <difficult>maybe</difficult>: must be 0 or 1",
        lambda: rewrite("T/Annotations/train_0.xml", "<difficult>0<", "<difficult>maybe<"),
        1,
    ),
    Case(
        "a class that differs in its case",
        CHECK,
        "T-train: 6 images found, ...T: class names that differ only in case or spaces: 'Ball' and 'ball'",
        replace("T/Annotations/train_0.xml", "<name>ball<", "<name>Ball<"),
        1,
    ),
    Case(
        "an id twice in a split",
        CHECK,
        "T/ImageSets/Main/train.txt: image ids are listed more than once (1): train_0; remove the duplicates",
        write("T/ImageSets/Main/train.txt", "train_0\n" * 2),
    ),
    Case(
        "an id with a zero byte",
        CHECK,
        "T/ImageSets/Main/train.txt: 'a\\x00b' cannot be an image id: it must be valid in file names",
        write("T/ImageSets/Main/train.txt", "a\0b\n"),
    ),
    Case(
        "an id that leads out",
        CHECK,
        "T/Annotations: 1 of the 1 images of split 'train' have no XML file: ../../x. An image without",
        write("T/ImageSets/Main/train.txt", "../../x\n"),
    ),
    Case(
        "an id that is absolute",
        CHECK,
        "T/Annotations: 1 of the 1 images of split 'train' have no XML file: /etc/passwd. An image",
        write("T/ImageSets/Main/train.txt", "/etc/passwd\n"),
    ),
]
COCO_CASES = [
    Case(f"COCO with {name}", COCO, says, coco(change))
    for name, change, says in [
        (
            "an id of text",
            item("images", id="x"),
            "T/a.json: annotation 2 has the image_id 2, which is not among `images`",
        ),
        ("an id of a list", item("images", id=[1]), "T/a.json: images[1] has no valid 'id': [1]"),
        ("an id of true", item("images", id=True), "T/a.json: images[1] has no valid 'id': True"),
        (
            "an id twice",
            item("images", id=1),
            "T/a.json: image ids are listed more than once (1): 1; remove the duplicates",
        ),
        (
            "a huge id",
            item("images", id=10**4000),
            "T/a.json: annotation 2 has the image_id 2, which is not among `images`",
        ),
        (
            "a huge image_id",
            item("annotations", image_id=10**4000),
            "T/a.json: annotation 2 has the image_id 1000...",
        ),
        (
            "a huge category_id",
            item("annotations", category_id=10**400),
            "T/a.json: annotation 2 has the category_id 1000...",
        ),
        (
            "a huge id of a category",
            item("categories", id=10**400),
            "T/a.json: a category has the id 1000...: it must fit into 53 bits",
        ),
        ("a category of a list", item("categories", name=["x"]), "T/a.json: categories[1] has no valid 'name': ['x']"),
        ("a category twice", item("categories", name="cat"), "T/a.json: two categories have the name cat"),
        (
            "a category that is a path",
            item("categories", name="../x"),
            "T/a.json: '../x' cannot be a class: its name must be valid in a file name, with at most 100 bytes",
        ),
        (
            "a box of NaN",
            item("annotations", bbox=[float("nan"), 1, 2, 3]),
            "T/a.json: annotation 2 has the bbox [nan, 1, 2, 3]: it must be four numbers, [x, y, width, height]",
        ),
        (
            "a box without end",
            item("annotations", bbox=[0, 1, float("inf"), 3]),
            "T/a.json: annotation 2 has the bbox [0, 1, inf, 3]: it must be four numbers, [x, y, width, height]",
        ),
        (
            "a box of huge integers",
            item("annotations", bbox=[0, 1, 10**400, 3]),
            "T/a.json: annotation 2 has the bbox [0, 1, 1000000000000000000000000000000000000000000000000000",
        ),
        ("a box of text", item("annotations", bbox="1234"), "T/a.json: annotation 2 has no valid 'bbox': '1234'"),
        (
            "a box of three numbers",
            item("annotations", bbox=[1, 2, 3]),
            "T/a.json: annotation 2 has the bbox [1, 2, 3]: it must be four numbers, [x, y, width, height]",
        ),
        (
            "a box of lists",
            item("annotations", bbox=[[1], [2], [3], [4]]),
            "T/a.json: annotation 2 has the bbox [[1], [2], [3], [4]]: it must be four numbers, [x, y, width, height]",
        ),
        (
            "a box of negative size",
            item("annotations", bbox=[1, 2, -3, 4]),
            "T/a.json: annotation 2 has the bbox [1, 2, -3, 4] of negative size: it must be [x, y, width, height]",
        ),
        ("a file name of a number", item("images", file_name=5), "T/a.json: images[1] has no valid 'file_name': 5"),
        (
            "no file name",
            lambda content: content["images"][1].pop("file_name"),
            "T/a.json: images[1] has no valid 'file_name': it is missing",
        ),
        (
            "no categories",
            lambda content: content.pop("categories"),
            "T/a.json: not a COCO annotation file: it has no list of objects 'categories'",
        ),
        (
            "a map of images",
            lambda content: content.update(images={}),
            "T/a.json: not a COCO annotation file: it has no list of objects 'images'",
        ),
        (
            "images of numbers",
            lambda content: content.update(images=[1]),
            "T/a.json: not a COCO annotation file: it has no list of objects 'images'",
        ),
        ("no image", lambda content: content.update(images=[], annotations=[]), "T/a.json: it has no images"),
    ]
] + [
    Case(
        "COCO JSON nested deep",
        COCO,
        "T/a.json: broken JSON: maximum recursion depth exceeded while decoding a JSON array from a unicode string",
        write("T/a.json", NESTED),
    ),
    Case(
        "COCO JSON that is empty",
        COCO,
        "T/a.json: broken JSON: Expecting value: line 1 column 1 (char 0)",
        write("T/a.json", ""),
    ),
    Case(
        "COCO JSON that is a list",
        COCO,
        "T/a.json: not a COCO annotation file: it has no list of objects 'images'",
        write("T/a.json", "[]"),
    ),
    Case(
        "COCO JSON that is no UTF-8",
        COCO,
        "T/a.json: broken JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        write("T/a.json", b"\xff\xff"),
    ),
    Case(
        "COCO with an image outside",
        COCO,
        "T-a: 1 images found, 1 missing, 0 empty, 0 corrupt, 0 misannotated, 0 objects repaired",
        coco(item("images", file_name="../../../etc/passwd")),
        1,
    ),
    Case(
        "COCO with a class in NFD",
        COCO,
        "T/a.json: two categories have the name \u00e9",
        coco(
            lambda content: [
                content["categories"][0].update(name="\u00e9"),
                content["categories"][1].update(name="e\u0301"),
            ]
        ),
    ),
]
SAVED_CASES = [
    Case(
        f"detections with {name}",
        SAVED,
        f"D.json, entry 2: image '{change['image_id']}' is not in the split that is scored, which has test_0, test_1"
        if "image_id" in change
        else "D.json, entry 2: not image_id, category_id, bbox of four, score: {'image_id': 'test_0', 'category_id': ",
        write("D.json", [ENTRY, {**ENTRY, **change}]),
    )
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
    Case(
        "detections that are a map",
        SAVED,
        "detections: D.json has no COCO results, which are a list",
        write("D.json", "{}"),
    ),
    Case(
        "detections nested deep",
        SAVED,
        "D.json: broken JSON: maximum recursion depth exceeded while decoding a JSON array from a unicode string",
        write("D.json", NESTED),
    ),
    Case(
        "detections that are no UTF-8",
        SAVED,
        "D.json: broken JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        write("D.json", b"\xff"),
    ),
    Case(
        "detections of entries that are numbers",
        SAVED,
        "D.json, entry 1: not image_id, category_id, bbox of four, score: 1",
        write("D.json", "[1]"),
    ),
    Case("no file of detections", SAVED, "D.json: no such file", lambda: None),
    Case(
        "an empty folder of detections",
        f"{SCORE} data=voc detections=D",
        "detections: D has no file comp4_det_test_CLASS.txt",
        lambda: os.mkdir("D"),
    ),
    Case(
        "a devkit's results of no UTF-8",
        f"{SCORE} data=voc detections=D",
        "D/comp4_det_test_ball.txt: not UTF-8 text: 'utf-8' codec can't decode byte 0xff in position 0",
        write("D/comp4_det_test_ball.txt", b"\xff"),
    ),
    Case(
        "a devkit's results of words",
        f"{SCORE} data=voc detections=D",
        "D/comp4_det_test_ball.txt, line 1: not `image_id score x1 y1 x2 y2`: 'test_0 a b c d e'",
        write("D/comp4_det_test_ball.txt", "test_0 a b c d e\n"),
    ),
    Case(
        "a devkit's results of an unknown image",
        f"{SCORE} data=voc detections=D",
        "D/comp4_det_test_ball.txt, line 1: image 'x' is not in the split that is scored, which has",
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
