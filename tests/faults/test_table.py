"""Wrong input of every kind, one row each: what is wrong, the command, its exit status, and what it says."""

import contextlib
import hashlib
import importlib
import json
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
import train
from detector.app.start import run_program
from detector.proposals.store import FORMAT, write_store
from detector.settings import EvaluateSettings, TrainSettings
from tests.helpers.surroundings import allow, can_mount, disk, in_fork, no_rights, read_only

LONG = "x" * 300
HANGS_S = 60
TRAIN = (
    "train data=voc data.root=T data.train_split=train data.short_side_px=64 data.max_side_px=96 model.hidden=16 "
    "model.weights=null train.iterations=1 train.images_per_batch=2 roi.rois_per_image=16 workers=0 device=cpu "
    "precision=float32 proposals.mode=single run.dir=R"
)
DETECT = "scripts.detect --checkpoint best.pt --device cpu --mode single"
GENERATE = "scripts.proposals generate --data T --split train --mode single --out"
CHECK = "scripts.check_data --data T --splits train"
SCORE = "evaluate device=cpu data.root=T data.val_split=test out=E"
SAVED = f"{SCORE} data=voc detections=D.json"


@dataclass(frozen=True)
class Case:
    """A command in a folder with T (a dataset in VOC layout), p.safetensors (its proposals) and best.pt."""

    name: str
    command: str
    says: str  # found in stderr, or in stdout where that is empty
    make: Callable[[], object] = lambda: None  # called in the folder
    status: int = 2  # nothing may be written then
    environment: dict[str, str] = field(default_factory=dict)
    within: Callable[[], object] | None = None  # called in a fork of this process, in which the command then runs


def replace(name: str, old: str, new: str) -> Callable[[], None]:
    """Replace a part of a file's text."""

    def change() -> None:
        text = Path(name).read_text()
        assert old in text
        Path(name).write_text(text.replace(old, new, 1))

    return change


def rewrite(name: str, old: str, new: str) -> None:
    """Replace a text wherever it is in a file."""
    Path(name).write_text(Path(name).read_text().replace(old, new))


def write(name: str, content: str | bytes | object) -> Callable[[], None]:
    """Write a file, as JSON if it is neither text nor bytes."""

    def change() -> None:
        Path(name).unlink(missing_ok=True)
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return change


def all_of(*steps: Callable[[], object]) -> Callable[[], None]:
    def change() -> None:
        for step in steps:
            step()

    return change


def pipe(name: str) -> Callable[[], None]:
    """A named pipe in place of a file: reading it waits without end."""

    def change() -> None:
        Path(name).unlink(missing_ok=True)
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(name)

    return change


def endless(name: str) -> Callable[[], None]:
    def change() -> None:
        Path(name).unlink(missing_ok=True)
        Path(name).symlink_to("/dev/zero")

    return change


def picture(name: str, byte: tuple[int, int] | None = None) -> Callable[[], None]:
    """A gray image, one of whose bytes can be another."""

    def change() -> None:
        path = Path(os.fsdecode(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (90, 90, 90)).save(path)
        if byte:
            data = bytearray(path.read_bytes())
            data[byte[0]] = byte[1]
            path.write_bytes(data)

    return change


IDS = [*(f"train_{number}" for number in range(6)), *(f"test_{number}" for number in range(3))]


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


def finished(change: Callable[[], object]) -> Callable[[], None]:
    """What is left of a finished run in R, after this change."""
    return all_of(
        write("R/.lock", "process 1 on here\n"), write("R/metrics.jsonl", '{"iteration": 1, "loss/val": 1.5}\n'),
        write("R/metrics.json", "{}"), write("R/report.html", "<html>"), change,
    )  # fmt: skip


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
USE_STORE = "scripts.proposals info p.safetensors"
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

RUN_CASES = [
    Case(
        "a finished run without checkpoints",
        f"{TRAIN} resume=auto",
        "has results up to iteration 1, but no checkpoint",
        finished(lambda: None),
    ),
    Case(
        "an evaluated run without metrics.json and checkpoints",
        f"{TRAIN} resume=auto",
        "has results up to iteration 1, but no checkpoint",
        finished(lambda: Path("R/metrics.json").unlink()),
    ),
    Case(
        "a finished run whose checkpoints are a dangling link",
        f"{TRAIN} resume=auto",
        "has results .* but no checkpoint",
        finished(lambda: Path("R/checkpoints").symlink_to("nowhere")),
    ),
    Case(
        "a finished run whose last.pt is a dangling link",
        f"{TRAIN} resume=auto",
        "has results .* but no checkpoint",
        finished(
            all_of(lambda: os.mkdir("R/checkpoints"), lambda: Path("R/checkpoints/last.pt").symlink_to("nowhere"))
        ),
    ),
    Case(
        "a finished run with another seed",
        f"{TRAIN} resume=auto seed=5",
        "has results .* but no checkpoint",
        finished(lambda: None),
    ),
    Case(
        "a run with steps beyond a checkpoint",
        f"{TRAIN} resume=auto train.checkpoint_every=2",
        "has results up to iteration 3",
        all_of(write("R/.lock", "process 1 on here\n"), write("R/metrics.jsonl", '{"iteration": 3}\n')),
    ),
    Case(
        "a file as last.pt that is empty",
        f"{TRAIN} resume=auto",
        "every checkpoint in .* is damaged",
        finished(write("R/checkpoints/last.pt", b"")),
    ),
    Case("a pipe as last.pt", f"{TRAIN} resume=auto", "last.pt", finished(pipe("R/checkpoints/last.pt"))),
    Case(
        "a pipe to resume",
        f"{TRAIN.replace('run.dir=R', '')} resume=R/checkpoints/last.pt",
        "last.pt",
        finished(pipe("R/checkpoints/last.pt")),
    ),
    Case(
        "a pipe as metrics.jsonl",
        f"{TRAIN} resume=auto",
        "has results up to iteration 0",
        finished(pipe("R/metrics.jsonl")),
    ),
    Case("bytes as metrics.jsonl", f"{TRAIN} resume=auto", "R", finished(write("R/metrics.jsonl", b"\xff\xfe\n"))),
    Case(
        "metrics.jsonl nested deep",
        f"{TRAIN} resume=auto",
        "R",
        finished(write("R/metrics.jsonl", "[" * 100_000 + "\n")),
    ),
    Case(
        "metrics.jsonl with other iterations",
        f"{TRAIN} resume=auto",
        "R",
        finished(write("R/metrics.jsonl", '{"iteration": "x"}\n')),
    ),
    Case("a file as the run's folder", TRAIN, "R", write("R", "x")),
    Case("a dangling link as the run's folder", TRAIN, "R", lambda: Path("R").symlink_to("nowhere/at/all")),
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

LONG_CASES = [
    Case(f"a name of 300 characters as {name}", command, "a name that no file can have|File name too long")
    for name, command in {
        "data.root": f"{TRAIN} data.root=/{LONG}",
        "run.dir": f"{TRAIN} run.dir={LONG}",
        "train_split": f"{TRAIN} data.train_split={LONG}",
        "resume": f"train data=voc data.root=T resume={LONG}",
        "weights": f"{TRAIN} model.weights={LONG}",
        "proposals": f"{TRAIN} data.train_proposals={LONG}.safetensors",
        "the folder of proposals": f"{TRAIN} proposals.folder={LONG}",
        "checkpoint": f"{SCORE} checkpoint={LONG}.pt",
        "detections": f"{SCORE} data=voc detections={LONG}",
        "results": f"{SAVED} out={LONG}",
        "--input": f"scripts.detect --checkpoint best.pt --input {LONG} --out y",
        "--out": f"{DETECT} --input T/JPEGImages --out {LONG}",
        "--checkpoint": f"scripts.detect --checkpoint {LONG} --input T/JPEGImages --out y",
        "--data": f"scripts.check_data --data {LONG}",
        "--splits": f"scripts.check_data --data T --splits {LONG}",
        "--annotations": f"scripts.check_data --data T --annotations {LONG}",
        "the store": f"scripts.proposals generate --data T --split train --out {LONG}.safetensors",
        "--config-dir": f"{TRAIN} --config-dir {LONG}",
    }.items()
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

SETTING_CASES = [
    Case(f"a setting out of bounds: {setting}", f"{TRAIN} {setting}", re.escape(setting.split("=")[0]))
    for setting in [
        "train.images_per_batch=2000000000",
        "model.hidden=1000000000",
        "optimizer.momentum=nan",
        "optimizer.lr=inf",
        "optimizer.lr=-1",
        "train.iterations=0",
        "train.iterations=1e30",
        "workers=100000",
        "workers=-1",
        "seed=-1",
        "data.short_side_px=1000000",
        "data.short_side_px=0",
        "roi.rois_per_image=0",
        "roi.rois_per_image=10000000000",
        "data.max_image_pixels=0",
        "train.accumulate=0",
        "train.ema=2",
        "detect.nms_iou=nan",
        "detect.score_threshold=2",
        "distributed.timeout_s=0",
        "data.train_max_proposals=-1",
        "precision=float8",
        "device=cuda",
        "device=cuda:0",
        "device=tpu",
        "device=mps",
        "device=''",
        "data.classes=[a,a]",
        "model.dropout=1.5",
        "data.max_bad_fraction=2",
        "data.fold=0/0",
        "optimizer.weight_decay=-1",
        "schedule.warmup_iterations=-1",
    ]
] + [
    Case("a sweep with one invalid value", f"{TRAIN} -m seed=1,x", "seed=x"),
    Case("a sweep with one invalid class", f"{TRAIN} -m model.backbone=resnet18,resnet19", "resnet19"),
    Case("a sweep with one unknown group", f"{TRAIN} -m optimizer=sgd,nothing", "nothing"),
    Case("a sweep without an end", f"{TRAIN} -m seed=1,", "seed"),
    Case(
        "a sweep over devices that are not there", f"{TRAIN} -m device=cuda,cuda:7", "device: 'cuda' is not available"
    ),
    Case("a sweep of an evaluation of no file", f"{SCORE} -m checkpoint=a.pt,b.pt", "a.pt: no such file"),
]


def coco(change: Callable[[dict], object]) -> Callable[[], None]:
    """T/a.json, a COCO file of two images and objects, after this change."""

    def make() -> None:
        content = {
            "images": [
                {"id": 1, "file_name": "JPEGImages/train_0.jpg"},
                {"id": 2, "file_name": "JPEGImages/train_1.jpg"},
            ],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40]},
                {"id": 2, "image_id": 2, "category_id": 2, "bbox": [5, 5, 30, 40]},
            ],
        }
        change(content)
        write("T/a.json", content)()

    return make


def item(part: str, **values: object) -> Callable[[dict], object]:
    return lambda content: content[part][1].update(values)


COCO = "scripts.check_data --data T --annotations a.json"
NESTED = "[" * 100_000
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

ENTRY = {"image_id": "test_0", "category_id": 1, "category_name": "ball", "bbox": [1, 2, 30, 40], "score": 0.5}
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

ENVIRONMENT_CASES = [
    Case(
        f"the environment {' '.join(f'{key}={value}' for key, value in changed.items())}",
        TRAIN,
        says,
        environment={"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", **changed},
    )
    for changed, says in [
        ({"RANK": "x"}, "RANK=x: must be an integer"),
        ({"RANK": "-1"}, "RANK=-1: must be"),
        ({"RANK": ""}, "RANK=: must be"),
        ({"RANK": "2"}, "process 2 .* of 2"),
        ({"WORLD_SIZE": "0"}, "process 0 .* of 0"),
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE=x: must be"),
        ({"WORLD_SIZE": "1e9"}, "WORLD_SIZE=1e9: must be"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x: must be"),
        ({"MASTER_PORT": "abc"}, "MASTER_PORT=abc"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999"),
        ({"MASTER_PORT": ""}, "MASTER_PORT="),
        ({"MASTER_ADDR": "no.such.host.invalid"}, "no.such.host.invalid"),
    ]
]


OPEN = f"{TRAIN.replace('run.dir=R', 'run.dir=W/R')} proposals.folder=W/p"
OUT = SCORE.replace("out=E", "out=W/E")
DENIED = "cannot be read: Permission denied"
ANNOTATED = write("C/experiment/a.yaml", "seed: 1")


def writable() -> None:
    os.mkdir("W")


RIGHTS_CASES = [
    Case(f"no rights {name}", command, says, make, status, within=no_rights(*names))
    for name, command, says, make, status, names in [
        ("to make a run", TRAIN, "run.dir: R cannot be written", writable, 2, []),
        ("to make any run", TRAIN.replace("run.dir=R", ""), "run.dir: runs cannot be written", writable, 2, []),
        ("to save proposals", f"{OPEN} proposals.folder=p", "proposals.folder: p cannot be written", writable, 2, []),
        ("to a home", OPEN, "decoded again", writable, 0, []),
        ("to a checkpoint", f"{OUT} checkpoint=best.pt", f"best.pt: {DENIED}", writable, 2, ["best.pt"]),
        ("to save results", f"{SCORE} checkpoint=best.pt", "out: E cannot be written", writable, 2, []),
        ("to the checkpoint of --checkpoint", f"{DETECT} --input T/JPEGImages --out W/f", f"best.pt: {DENIED}",
         writable, 2, ["best.pt"]),
        ("to save detections", f"{DETECT} --input T/JPEGImages --out f", "--out: f cannot be written", writable, 2, []),
        ("to pictures", f"{DETECT} --input T/JPEGImages --out W/f", "denied: 'T/JPEGImages'", writable, 1,
         ["T/JPEGImages"]),
        ("to an image", CHECK, f"train_0.jpg: {DENIED}", writable, 1, ["T/JPEGImages/train_0.jpg"]),
        ("to images", CHECK, "denied: 'T/JPEGImages'", writable, 1, ["T/JPEGImages"]),
        ("to an annotation", CHECK, f"train_0.xml: {DENIED}", writable, 1, ["T/Annotations/train_0.xml"]),
        ("to annotations", CHECK, "denied: 'T/Annotations", writable, 1, ["T/Annotations"]),
        ("to a split", CHECK, f"train.txt: {DENIED}", writable, 2, ["T/ImageSets/Main/train.txt"]),
        ("to splits", CHECK, "denied: 'T/ImageSets/Main", writable, 1, ["T/ImageSets/Main"]),
        ("to a dataset", CHECK, "denied: 'T", writable, 1, ["T"]),
        ("to a folder of data=folder", OPEN.replace("data=voc", "data=folder"), "T/JPEGImages: cannot be read",
         writable, 2, ["T/JPEGImages"]),
        ("to COCO JSON", COCO, f"a.json: {DENIED}", coco(lambda content: None), 2, ["T/a.json"]),
        ("to a store", USE_STORE, f"p.safetensors: {DENIED}", writable, 2, ["p.safetensors"]),
        ("to weights", f"{OPEN} model.weights=best.pt", f"best.pt: {DENIED}", writable, 2, ["best.pt"]),
        ("to a config", f"{TRAIN} --config-dir C experiment=a", "denied: .*a.yaml", ANNOTATED, 2,
         ["C/experiment/a.yaml"]),
        ("to configs", f"{TRAIN} --config-dir C experiment=a", "denied: 'C'|experiment=a", ANNOTATED, 2, ["C"]),
        ("to saved detections", SAVED.replace("out=E", "out=W/E"), f"D.json: {DENIED}",
         all_of(writable, write("D.json", "[]")), 2, ["D.json"]),
        ("to save a store", f"{GENERATE} q.safetensors", "--out: . cannot be written", writable, 2, []),
        ("to a run", f"{TRAIN} resume=auto", "denied: 'R'", finished(writable), 1, ["R"]),
    ]
]  # fmt: skip
DISK_CASES = [
    Case("a read-only disk for a run", TRAIN, "run.dir: R cannot be written", within=read_only),
    Case("a read-only disk for results", f"{SCORE} checkpoint=best.pt", "out: E cannot be written", within=read_only),
    Case("a read-only disk for scores", SAVED, "out: E cannot be written", write("D.json", [ENTRY]), within=read_only),
    Case("a read-only disk for detections", f"{DETECT} --input T/JPEGImages --out f", "f", within=read_only),
    Case("a read-only disk to check", CHECK, "6 images", status=0, within=read_only),
    *(
        Case(f"a disk of {kib} KiB for a run", f"{TRAIN.replace('run.dir=R', 'run.dir=S/R')}",
             "disk is full|No space left", status=1, within=disk("S", kib))
        for kib in (4, 512)
    ),
    Case("a full disk for proposals", f"{TRAIN} proposals.folder=S", "is full", status=1, within=disk("S", 4)),
    Case("a full disk for results", f"{OUT} checkpoint=best.pt", "is full", status=1, within=disk("W", 4)),
    Case("a full disk for scores", SAVED.replace("out=E", "out=S/E"), "is full", write("D.json", [ENTRY] * 99), 1,
         within=disk("S", 4)),
    Case("a full disk for detections", f"{DETECT} --input T/JPEGImages --out S/f", "is full", status=1,
         within=disk("S", 4)),
    Case("a full disk for a store", f"{GENERATE} S/q.safetensors", "is full", status=1, within=disk("S", 4)),
    Case("hardly any shared memory", f"{TRAIN} workers=1", "/dev/shm", status=1, within=disk("/dev/shm", 16)),
]  # fmt: skip


def joined(parts: str) -> str:
    return TRAIN.replace("data=voc data.root=T data.train_split=train", f"data=joined 'data.parts={parts}'")


JOINED_CASES = [
    Case(f"joined sets: {name}", joined(parts), says)
    for name, parts, says in [
        ("one of two missing", "[{root: T, train_split: train}, {root: nowhere}]", "nowhere"),
        ("none", "[]", "data.parts"),
        ("a text", "x", "data.parts"),
        ("a part of another kind", "[T]", "data.parts"),
        ("a mistyped setting", "[{root: T, split: train}]", "split"),
        ("without a root", "[{train_split: train}]", "root"),
        ("another class", "[{root: T}, {root: T, classes: [ball]}]", "classes"),
    ]
]


@pytest.fixture
def folder(small_shapes, untrained_checkpoint, tmp_path, monkeypatch) -> Path:
    """The working directory of a case."""
    shutil.copytree(small_shapes, tmp_path / "T")
    shutil.copy(untrained_checkpoint, tmp_path / "best.pt")
    boxes = np.array([[10, 10, 90, 90], [5, 40, 120, 130]], np.float32)
    hws = [Image.open(tmp_path / f"T/JPEGImages/{id}.jpg").size[::-1] for id in IDS]
    write_store(tmp_path / "p.safetensors", IDS, [boxes] * len(IDS), hws, {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    return tmp_path


def run(command: str) -> int:
    """A command in this process; returns its exit status."""
    program, *arguments = shlex.split(command)
    sys.argv[:] = [program, *arguments]
    try:
        if program in ("train", "evaluate"):
            main, schema = {"train": (train.main, TrainSettings), "evaluate": (evaluate.main, EvaluateSettings)}[
                program
            ]
            run_program(main, program, schema)
            return 0
        return importlib.import_module(program).main() or 0
    except SystemExit as end:
        return int(end.code or 0)


def run_within(change: Callable[[], object], command: str) -> int:
    """As `run`, after a change of what surrounds this process."""
    change()
    return run(command)


@contextlib.contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        pytest.fail(f"hangs for {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def contents(folder: Path) -> dict[str, str]:
    """The digest of each file below a folder."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
        for path in sorted(folder.rglob("*"))
        if not path.is_dir() and path.name != ".lock"
    }


CASES = [
    *RUN_CASES, *FILE_CASES, *PROPOSALS_CASES, *LONG_CASES, *LABEL_CASES, *SETTING_CASES, *COCO_CASES, *SAVED_CASES,
    *ENVIRONMENT_CASES, *RIGHTS_CASES, *JOINED_CASES, *DISK_CASES,
]  # fmt: skip

MORE_LINES = (  # a list of images, a command to copy, or what a library prints
    "a pipe as an image, to train on", "a pipe as an image, to score", "text as a video",
    "proposals of one image, to train on",
)  # fmt: skip
ONE_LINE = [
    case for case in [*RUN_CASES, *FILE_CASES, *PROPOSALS_CASES, *LONG_CASES, *ENVIRONMENT_CASES]
    if case.status == 2 and case.name not in MORE_LINES
]  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] * (case in DISK_CASES), id=case.name.replace(" ", "-"))
        for case in CASES
    ],
)
def test_wrong_input(case, folder, capfd, monkeypatch):
    case.make()
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", [])
    before = contents(folder)
    if case in DISK_CASES and not can_mount():
        pytest.skip("mounting a disk needs the rights of root")
    with no_longer_than(HANGS_S):
        status = run(case.command) if case.within is None else in_fork(lambda: run_within(case.within, case.command))
    allow(folder)
    out, err = capfd.readouterr()
    said = err or out
    assert (status, "Traceback" in out + err) == (case.status, False), out + err
    assert re.search(case.says, said), said
    if case in ONE_LINE:
        assert err.count("\n") == 1, err
    after = contents(folder)
    assert {path: digest for path, digest in after.items() if path in before} == before
    if status == 2:
        new = [path for path in after if path not in before]
        assert [path for path in new if ".unfinished/" not in path and not path.endswith("multirun.yaml")] == []
