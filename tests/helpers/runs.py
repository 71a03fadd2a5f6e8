"""The run that tests stop, kill and resume: its data and settings, and the comparison of two such runs."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from detector.data.formats.shapes import annotation_xml, draw_scene
from detector.data.formats.voc import read_voc
from detector.proposals.store import write_store

SETTINGS = [
    "data=voc", "data.train_split=train", "data.short_side_px=64", "data.max_side_px=96", "model.hidden=16",
    "model.dropout=0.5", "model.pool_size=3", "train.iterations=6", "train.images_per_batch=2", "train.eval_every=4",
    "train.checkpoint_every=2", "train.log_every=1", "train.ema=0.9", "roi.rois_per_image=16",
    "detect.score_threshold=0.01", "workers=0", "device=cpu", "precision=float32",
]  # fmt: skip


def write_shapes(root: Path) -> None:
    """Six training and three test scenes of the shapes dataset, in VOC layout."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, first, count in (("train", 0, 6), ("test", 100, 3)):
        ids = [f"{split}_{number}" for number in range(count)]
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{id}\n" for id in ids))
        for number, image_id in enumerate(ids, start=first):
            image, objects = draw_scene(np.random.default_rng(number))
            Image.fromarray(image).save(root / f"JPEGImages/{image_id}.jpg")
            (root / f"Annotations/{image_id}.xml").write_text(annotation_xml(f"{image_id}.jpg", image.shape, objects))


def random_proposals(shapes: Path, folder: Path) -> None:
    """Write FOLDER/train.safetensors and FOLDER/test.safetensors, with random boxes for `write_shapes`."""
    for split in ("train", "test"):
        dataset, generator = read_voc(shapes, split), np.random.default_rng(0)
        corners = [generator.uniform(0, 150, (40, 2)) for _ in dataset.image_ids]
        boxes = [np.concatenate([xy, xy + generator.uniform(20, 120, (40, 2))], axis=1) for xy in corners]
        hws = [dataset.image(index).shape[:2] for index in range(len(dataset))]
        write_store(folder / f"{split}.safetensors", dataset.image_ids, boxes, hws, {})


def run_settings(shapes: Path, proposals: Path) -> list[str]:
    """Overrides of train.py, for what `write_shapes` and `random_proposals` have written."""
    stores = [f"data.train_proposals={proposals}/train.safetensors", f"data.val_proposals={proposals}/test.safetensors"]
    return [*SETTINGS, f"data.root={shapes}", *stores, f"proposals.folder={proposals}"]


def differences(folder: Path, expected: Path) -> list[str]:
    """What two runs left that is not the same."""
    found = []
    for name in ("last.pt", "best.pt"):
        ours, theirs = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (folder, expected))
        for content in (ours, theirs):
            for of_the_call in ("run", "resume", "workers"):
                del content["config"][of_the_call]
        if not same(ours, theirs):
            found.append(name)
    if (folder / "metrics.json").read_bytes() != (expected / "metrics.json").read_bytes():
        found.append("metrics.json")
    if history(folder) != history(expected):
        found.append("metrics.jsonl")
    return found


def same(one: object, other: object) -> bool:
    """Whether two checkpoints are bitwise identical."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        one, other = one.contiguous().view(-1), other.contiguous().view(-1)  # bytes, since 0.0 equals -0.0
        return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def history(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl without what a clock measured."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{tag: line[tag] for tag in line if not tag.startswith(("time/", "memory/"))} for line in lines]
