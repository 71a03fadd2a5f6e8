"""Wrong settings, folders and machines, one row each, as in test_wrong_files.py."""

import os
import re
from pathlib import Path

import pytest

from tests.helpers.surroundings import can_mount, disk, no_rights, read_only
from tests.helpers.wrong_input import (
    CHECK,
    COCO,
    DETECT,
    ENTRY,
    GENERATE,
    LONG,
    SAVED,
    SCORE,
    TRAIN,
    USE_STORE,
    Case,
    all_of,
    check,
    coco,
    finished,
    pipe,
    write,
)

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


@pytest.mark.parametrize(
    "case",
    [*RUN_CASES, *LONG_CASES, *SETTING_CASES, *ENVIRONMENT_CASES, *RIGHTS_CASES, *JOINED_CASES],
    ids=lambda case: case.id,
)
def test_wrong_input(case, folder, capfd, monkeypatch):
    one_line = case in (*RUN_CASES, *LONG_CASES, *ENVIRONMENT_CASES) and case.status == 2
    check(case, folder, capfd, monkeypatch, one_line)


@pytest.mark.slow
@pytest.mark.parametrize("case", DISK_CASES, ids=lambda case: case.id)
def test_read_only_and_full_disks(case, folder, capfd, monkeypatch):
    if not can_mount():
        pytest.skip("mounting a disk needs the rights of root")
    check(case, folder, capfd, monkeypatch, one_line=False)
