"""Saved output of EdgeBoxes: x y width height score, best first.

A folder with one file for each image, or one such file: ID.mat with `bbs` (P, 5), as the authors' MATLAB code returns
it, or ID.txt with such a line for each box. That code counts pixels from 1; OpenCV's counts from 0 (`--base 0`). For a
list of images it saves `bbs` as cells without the images' names; with `images`, cells of names, they are read too.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from detector.errors import InputError, require_distinct
from detector.proposals.formats.mat import load_mat
from detector.proposals.formats.records import BoxFormat, RawProposals, as_rows
from detector.runtime.files import reading

BOX_FORMAT = BoxFormat("xywh", "1")


def read_edge_boxes(path: Path) -> RawProposals:
    """Rows x y width height score (P, 5) by image id. Raises InputError for other contents."""
    files = sorted(file for file in path.rglob("*") if file.suffix in (".mat", ".txt")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: a folder without .mat or .txt files")
    images = [item for file in files for item in (_of_text(file) if file.suffix == ".txt" else _of_mat(file))]
    require_distinct(path, [image_id for image_id, _ in images])
    return RawProposals(path, BOX_FORMAT, dict(images))


def _of_mat(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    content = load_mat(path, ("bbs", "images"))
    if "bbs" not in content:
        raise InputError(f"{path}: has no variable `bbs`, as EdgeBoxes saves its boxes")
    found = content["bbs"]
    if found.dtype != object:
        yield path.stem, as_rows(path, "`bbs`", found)
        return
    names = [str(np.ravel(cell)[0]) for cell in content.get("images", np.empty(0, object)).ravel() if np.size(cell)]
    if len(names) != found.size:
        raise InputError(
            f"{path}: `bbs` has cells for {found.size} images and `images` names {len(names)}: save the list of images "
            "with the boxes, save(file, 'bbs', 'images'), or a file for each image"
        )
    for name, cell in zip(names, found.ravel(), strict=True):
        yield Path(name).stem, as_rows(path, f"`bbs` of {name}", cell)


def _of_text(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    with reading(path, "its lines are not `x y width height score`"):
        lines = [line.replace(",", " ").split() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        rows = np.array([[float(value) for value in line] for line in lines if line]).reshape(-1, 5)
    yield path.stem, rows
