"""Wrong settings, folders and machines, one row each, as in test_wrong_files.py."""

import multiprocessing
import os
import tempfile
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
        "resume: R has results up to iteration 1, but no checkpoint: they were deleted or moved. Put",
        finished(lambda: None),
    ),
    Case(
        "an evaluated run without metrics.json and checkpoints",
        f"{TRAIN} resume=auto",
        "resume: R has results up to iteration 1, but no checkpoint: they were deleted or moved. Put",
        finished(lambda: Path("R/metrics.json").unlink()),
    ),
    Case(
        "a finished run whose checkpoints are a dangling link",
        f"{TRAIN} resume=auto",
        "resume: R has results up to iteration 1, but no checkpoint: they were deleted or moved. Put",
        finished(lambda: Path("R/checkpoints").symlink_to("nowhere")),
    ),
    Case(
        "a finished run whose last.pt is a dangling link",
        f"{TRAIN} resume=auto",
        "resume: R has results up to iteration 1, but no checkpoint: they were deleted or moved. Put",
        finished(
            all_of(lambda: os.mkdir("R/checkpoints"), lambda: Path("R/checkpoints/last.pt").symlink_to("nowhere"))
        ),
    ),
    Case(
        "a finished run with another seed",
        f"{TRAIN} resume=auto seed=5",
        "resume: R has results up to iteration 1, but no checkpoint: they were deleted or moved. Put",
        finished(lambda: None),
    ),
    Case(
        "a run with steps beyond a checkpoint",
        f"{TRAIN} resume=auto train.checkpoint_every=2",
        "resume: R has results up to iteration 3, but no checkpoint: they were deleted or moved. Put",
        all_of(write("R/.lock", "process 1 on here\n"), write("R/metrics.jsonl", '{"iteration": 3}\n')),
    ),
    Case(
        "a file as last.pt that is empty",
        f"{TRAIN} resume=auto",
        "resume: every checkpoint in R/checkpoints is damaged: last.pt: damaged: File is not a zip",
        finished(write("R/checkpoints/last.pt", b"")),
    ),
    Case(
        "a pipe as last.pt",
        f"{TRAIN} resume=auto",
        "resume: every checkpoint in R/checkpoints is damaged: last.pt: not a regular file. A new run",
        finished(pipe("R/checkpoints/last.pt")),
    ),
    Case(
        "a pipe to resume",
        f"{TRAIN.replace('run.dir=R', '')} resume=R/checkpoints/last.pt",
        "resume: R/checkpoints/last.pt cannot be read: not a regular file\n",
        finished(pipe("R/checkpoints/last.pt")),
    ),
    Case(
        "a pipe as metrics.jsonl",
        f"{TRAIN} resume=auto",
        "resume: R has results up to iteration 0, but no checkpoint: they were deleted or moved. Put",
        finished(pipe("R/metrics.jsonl")),
    ),
    Case(
        "bytes as metrics.jsonl",
        f"{TRAIN} resume=auto",
        "resume: R has results up to iteration 0, but no checkpoint: they were deleted or moved. Put",
        finished(write("R/metrics.jsonl", b"\xff\xfe\n")),
    ),
    Case(
        "metrics.jsonl nested deep",
        f"{TRAIN} resume=auto",
        "resume: R has results up to iteration 0, but no checkpoint: they were deleted or moved. Put",
        finished(write("R/metrics.jsonl", "[" * 100_000 + "\n")),
    ),
    Case(
        "metrics.jsonl with other iterations",
        f"{TRAIN} resume=auto",
        "resume: R has results up to iteration 0, but no checkpoint: they were deleted or moved. Put",
        finished(write("R/metrics.jsonl", '{"iteration": "x"}\n')),
    ),
    Case(
        "a file as the run's folder",
        TRAIN,
        "run.dir: R is not an empty folder, and nothing is overwritten: name another, or, to resume the",
        write("R", "x"),
    ),
    Case(
        "a dangling link as the run's folder",
        TRAIN,
        "run.dir: R cannot be written: R is not a folder, or you may not write to it",
        lambda: Path("R").symlink_to("nowhere/at/all"),
    ),
]
TOO_LONG = "[Errno 36] File name too long: '"
LONG_CASES = [
    Case(
        f"a name of 300 characters as {name}",
        command,
        {
            "proposals": f"{LONG}.safetensors: cannot be read: File name too long",
            "--config-dir": f"{TOO_LONG}{LONG}",
        }.get(name, f"a name that no file can have: {TOO_LONG}"),
    )
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
VALID = {
    "train.images_per_batch=2000000000": "an integer from 1 to 10000",
    "model.hidden=1000000000": "an integer from 1 to 65536",
    "optimizer.lr=inf": "null or a number above 0",
    "optimizer.lr=-1": "null or a number above 0",
    "train.iterations=0": "an integer above 0",
    "workers=100000": "auto or an integer from 0 to 1000",
    "workers=-1": "auto or an integer from 0 to 1000",
    "seed=-1": "an integer from 0 to 2^63 - 1",
    "data.short_side_px=1000000": "an integer from 1 to 20000, or a list of them",
    "data.short_side_px=0": "an integer from 1 to 20000, or a list of them",
    "roi.rois_per_image=0": "an integer from 1 to 100000",
    "roi.rois_per_image=10000000000": "an integer from 1 to 100000",
    "data.max_image_pixels=0": "an integer above 0",
    "train.accumulate=0": "an integer above 0",
    "train.ema=2": "null or a number between 0 and 1",
    "detect.nms_iou=nan": "a number from 0 to 1",
    "detect.score_threshold=2": "a number from 0 to 1",
    "distributed.timeout_s=0": "an integer above 0",
    "data.train_max_proposals=-1": "an integer above 0",
    "precision=float8": "auto, bfloat16, float16 or float32",
    "model.dropout=1.5": "a number from 0 to 1",
    "data.max_bad_fraction=2": "a number from 0 to 1",
    "optimizer.weight_decay=-1": "a number, 0 or more",
    "schedule.warmup_iterations=-1": "an integer, 0 or more",
}
SETTINGS = {setting: f"{setting}: must be {valid}\n" for setting, valid in VALID.items()} | {
    "optimizer=sgd optimizer.momentum=nan": "optimizer.momentum=nan: must be a number from 0 to below 1\n",
    "train.iterations=1e30": "train.iterations=1e+30: must be an integer above 0\n",
    "device=cuda": "device: 'cuda' is not available: torch sees 0 GPUs; use device=cpu\n",
    "device=cuda:0": "device: 'cuda:0' is not available: torch sees 0 GPUs; use device=cpu\n",
    "device=tpu": "device: 'tpu' is not a device; use auto, cpu, cuda, cuda:N or mps\n",
    "device=mps": "device: 'mps' is not available: mps is the GPU of a Mac with Apple silicon; use device=cpu\n",
    "device=''": "device: '' is not a device; use auto, cpu, cuda, cuda:N or mps\n",
    "data.classes=[a,a]": "data.classes: ['a', 'a'] names a class twice\n",
    "data.fold=0/0": "data.fold=0/0: not a setting of data.reader=voc, which has train_split, val_split\n",
}
SETTING_CASES = [
    Case(f"a setting out of bounds: {setting}", f"{TRAIN} {setting}", says) for setting, says in SETTINGS.items()
] + [
    Case(
        "a sweep of runs in one folder",
        f"{TRAIN} -m seed=1,2",
        "run.dir=R: each run of a sweep needs its own folder: leave this out\n",
    ),
    Case("a sweep with one invalid value", f"{TRAIN} -m seed=1,x", "seed=x: must be an integer from 0 to 2^63 - 1"),
    Case(
        "a sweep with one invalid class",
        f"{TRAIN} -m model.backbone=resnet18,resnet19",
        "model.backbone=resnet19: must be alexnet, zf, vgg_cnn_m, vgg11, vgg13, vgg16, vgg19, vgg11_bn",
    ),
    Case(
        "a sweep with one unknown group",
        f"{TRAIN} -m optimizer=sgd,nothing",
        "optimizer=nothing: must be one of adamw, sgd",
    ),
    Case(
        "a sweep without an end",
        f"{TRAIN} -m seed=1,",
        "seed=1,: mismatched input '<EOF>' expecting {':', BRACKET_OPEN, BRACE_OPEN, FLOAT, INT, BOOL",
    ),
    Case(
        "a sweep over devices that are not there",
        f"{TRAIN.replace('run.dir=R', '')} -m device=cuda,cuda:7",
        "device: 'cuda' is not available: torch sees 0 GPUs; use device=cpu",
    ),
    Case(
        "a sweep of an evaluation of no file",
        f"{SCORE.replace('out=E', '')} -m checkpoint=a.pt,b.pt",
        "a.pt: no such file",
    ),
]
COUNTED, ADDRESS = "the environment variables say that this is process", "the environment variables MASTER_ADDR"
ENVIRONMENT_CASES = [
    Case(
        f"the environment {' '.join(f'{key}={value}' for key, value in changed.items())}",
        TRAIN,
        says,
        environment={"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", **changed},
    )
    for changed, says in [
        ({"RANK": "x"}, "the environment variable RANK=x: must be an integer, as"),
        ({"RANK": "-1"}, "the environment variable RANK=-1: must be an integer, as"),
        ({"RANK": ""}, "the environment variable RANK=: must be an integer, as"),
        ({"RANK": "2"}, f"{COUNTED} 2 (RANK, or SLURM_PROCID) of 2 (WORLD_SIZE,"),
        ({"WORLD_SIZE": "0"}, f"{COUNTED} 0 (RANK, or SLURM_PROCID) of 0 (WORLD_SIZE,"),
        ({"WORLD_SIZE": "x"}, "the environment variable WORLD_SIZE=x: must be an integer, as"),
        ({"WORLD_SIZE": "1e9"}, "the environment variable WORLD_SIZE=1e9: must be an integer, as"),
        ({"LOCAL_RANK": "x"}, "the environment variable LOCAL_RANK=x: must be an integer, as"),
        ({"MASTER_PORT": "abc"}, f"{ADDRESS}=127.0.0.1 MASTER_PORT=abc: must be a host and a port, as"),
        ({"MASTER_PORT": "99999"}, f"{ADDRESS}=127.0.0.1 MASTER_PORT=99999: must be a host and a port, as"),
        ({"MASTER_PORT": ""}, f"{ADDRESS}=127.0.0.1 MASTER_PORT=: must be a host and a port, as"),
        ({"MASTER_ADDR": "no.such.host.invalid"}, f"{ADDRESS}=no.such.host.invalid MASTER_PORT=29517: must be a"),
    ]
]
OPEN = f"{TRAIN.replace('run.dir=R', 'run.dir=W/R')} proposals.folder=W/p"
OUT = SCORE.replace("out=E", "out=W/E")
DENIED, HERE = "cannot be read: Permission denied", "cannot be written: . is not a folder"
NO_RIGHT = "a file cannot be read or written: [Errno 13] Permission denied"
FULL = "the disk is full: [Errno 28] No space left on device: '"
ANNOTATED = write("C/experiment/a.yaml", "seed: 1")


def writable() -> None:
    os.mkdir("W")


def no_sockets() -> None:
    disk("S", 4, "nr_inodes=1")()
    tempfile.tempdir = os.path.abspath("S")
    multiprocessing.process.current_process()._config.pop("tempdir", None)


RIGHTS_CASES = [
    Case(f"no rights {name}", command, says, make, status, within=no_rights(*names))
    for name, command, says, make, status, names in [
        ("to make a run", TRAIN, f"run.dir: R {HERE}", writable, 2, []),
        ("to make any run", TRAIN.replace("run.dir=R", ""), f"run.dir: runs {HERE}", writable, 2, []),
        ("to save proposals", f"{OPEN} proposals.folder=p", f"proposals.folder: p {HERE}", writable, 2, []),
        ("to a home", OPEN, "a step of 2 images ...decoded again at the next start", writable, 0, []),
        ("to a checkpoint", f"{OUT} checkpoint=best.pt", f"best.pt: {DENIED}", writable, 2, ["best.pt"]),
        ("to save results", f"{SCORE} checkpoint=best.pt", f"out: E {HERE}", writable, 2, []),
        ("to the checkpoint of --checkpoint", f"{DETECT} --input T/JPEGImages --out W/f", f"best.pt: {DENIED}",
         writable, 2, ["best.pt"]),
        ("to save detections", f"{DETECT} --input T/JPEGImages --out f", f"--out: f {HERE}", writable, 2, []),
        ("to pictures", f"{DETECT} --input T/JPEGImages --out W/f", f"{NO_RIGHT}: 'T/JPEGImages'", writable, 1,
         ["T/JPEGImages"]),
        ("to an image", CHECK, f"T-train: 5 ...train_0.jpg: {DENIED}", writable, 1, ["T/JPEGImages/train_0.jpg"]),
        ("to images", CHECK, f"{NO_RIGHT}: 'T/JPEGImages'", writable, 1, ["T/JPEGImages"]),
        ("to an annotation", CHECK, f"T-train: 6 ...train_0.xml: {DENIED}", writable, 1, ["T/Annotations/train_0.xml"]),
        ("to annotations", CHECK, f"{NO_RIGHT}: 'T/Annotations/train_0.xml'", writable, 1, ["T/Annotations"]),
        ("to a split", CHECK, f"T/ImageSets/Main/train.txt: {DENIED}", writable, 2, ["T/ImageSets/Main/train.txt"]),
        ("to splits", CHECK, f"{NO_RIGHT}: 'T/ImageSets/Main/train.txt'", writable, 1, ["T/ImageSets/Main"]),
        ("to a dataset", CHECK, f"{NO_RIGHT}: 'T/ImageSets/Main'", writable, 1, ["T"]),
        ("to a folder of data=folder", OPEN.replace("data=voc", "data=folder"), f"T/JPEGImages: {DENIED}",
         writable, 2, ["T/JPEGImages"]),
        ("to COCO JSON", COCO, f"T/a.json: {DENIED}", coco(lambda content: None), 2, ["T/a.json"]),
        ("to a store", USE_STORE, f"p.safetensors: {DENIED}", writable, 2, ["p.safetensors"]),
        ("to weights", f"{OPEN} model.weights=best.pt", f"best.pt: {DENIED}", writable, 2, ["best.pt"]),
        ("to a config", f"{TRAIN} --config-dir C experiment=a", "[Errno 13] Permission denied:", ANNOTATED, 2,
         ["C/experiment/a.yaml"]),
        ("to configs", f"{TRAIN} --config-dir C experiment=a", "experiment=a: must be one of paper, ", ANNOTATED, 2,
         ["C"]),
        ("to saved detections", SAVED.replace("out=E", "out=W/E"), f"D.json: {DENIED}",
         all_of(writable, write("D.json", "[]")), 2, ["D.json"]),
        ("to save a store", f"{GENERATE} q.safetensors", f"--out: . {HERE}", writable, 2, []),
        ("to a run", f"{TRAIN} resume=auto", f"{NO_RIGHT}: 'R'", finished(writable), 1, ["R"]),
    ]
]  # fmt: skip
DISK_CASES = [
    Case("a read-only disk for a run", TRAIN, f"run.dir: R {HERE}", within=read_only),
    Case("a read-only disk for results", f"{SCORE} checkpoint=best.pt", f"out: E {HERE}", within=read_only),
    Case("a read-only disk for scores", SAVED, f"out: E {HERE}", write("D.json", [ENTRY]), within=read_only),
    Case("a read-only disk for detections", f"{DETECT} --input T/JPEGImages --out f", f"--out: f {HERE}",
         within=read_only),
    Case("a read-only disk to check", CHECK, "T-train: 6 images found, 0 missing", status=0, within=read_only),
    *(
        Case(f"a disk of {kib} KiB for a run", f"{TRAIN.replace('run.dir=R', 'run.dir=S/R')}", says, status=1,
             within=disk("S", kib))
        for kib, says in {
            4: "the disk, or /dev/shm of the data workers, is full: free space, or use workers=0: [Errno 28] No space",
            512: "the checkpoint of iteration 1 could NOT be written: [Errno 28] No space left on device: '",
        }.items()
    ),
    Case("a full disk for proposals", f"{TRAIN} proposals.folder=S", FULL, status=1, within=disk("S", 4)),
    Case("a full disk for results", f"{OUT} checkpoint=best.pt", FULL, status=1, within=disk("W", 4)),
    Case("a full disk for scores", SAVED.replace("out=E", "out=S/E"), FULL, write("D.json", [ENTRY] * 99), 1,
         within=disk("S", 4)),
    Case("a full disk for detections", f"{DETECT} --input T/JPEGImages --out S/f", FULL, status=1,
         within=disk("S", 4)),
    Case("a full disk for a store", f"{GENERATE} S/q.safetensors", FULL, status=1, within=disk("S", 4)),
    Case("hardly any shared memory", f"{TRAIN} workers=1", "the disk, or /dev/shm of the data workers, is full",
         status=1,
         within=disk("/dev/shm", 16)),
    Case("a full disk for the sockets of data workers", f"{TRAIN} workers=1",
         "a data worker cannot send its batch: [Errno 28] No space left on device", status=1,
         within=no_sockets),
]  # fmt: skip


def joined(parts: str) -> str:
    return TRAIN.replace("data=voc data.root=T data.train_split=train", f"data=joined 'data.parts={parts}'")


JOINED_CASES = [
    Case(f"joined sets: {name}", joined(parts), says)
    for name, parts, says in [
        (
            "one of two missing",
            "[{root: T, train_split: train}, {root: nowhere}]",
            "data.root: there is no folder nowhere (current directory:",
        ),
        ("none", "[]", "data: no images to train on are selected: give data.parts"),
        ("a text", "x", "data.parts=x: must be null or a list of datasets, such as [{root: /data/a}, {root: /data/b}]"),
        (
            "a part of another kind",
            "[T]",
            "data.parts=['T']: must be null or a list of datasets, such as [{root: /data/a}, {root: /data/b}]",
        ),
        (
            "a mistyped setting",
            "[{root: T, split: train}]",
            "data.parts: {'root': 'T', 'split': 'train'} has split; voc accepts reader, root, train_split, val_split",
        ),
        (
            "without a root",
            "[{train_split: train}]",
            "data.root: . is not in VOC layout: it has no folder ImageSets/Main. data=folder reads any",
        ),
        (
            "another class",
            "[{root: T}, {root: T, classes: [ball]}]",
            "data.parts=[{'root': 'T'}, {'root': 'T', 'classes': ['ball']}]: must be null or a list of",
        ),
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
