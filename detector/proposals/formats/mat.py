"""MATLAB files; versions up to v7 are read by mat5.py, v7.3 by mat73.py.

    voc-mat     one file of the original Fast R-CNN release: cells `boxes` and `images`; y1 x1 y2 x2, from 1
    ijcv-mat    a folder of ID.mat with `boxes`; x1 y1 x2 y2, from 1 (selective_search_IJCV_data of the release)
    demo-mat    ID_boxes.mat with `boxes`, or a folder of such; x1 y1 x2 y2, from 0, last pixel included
    mcg-mat     a folder, or nested folders, of ID.mat with `boxes` and optional `scores`; y1 x1 y2 x2, from 1
    hosang-mat  the same; x1 y1 x2 y2, from 1

The formats follow lib/datasets/{pascal_voc,coco}.py and tools/demo.py of rbgirshick's fast-rcnn and py-faster-rcnn.
v7.3 is only read, as no program but MATLAB writes it; scores are written if the format has them.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from detector.errors import InputError, require_distinct
from detector.proposals.formats.mat5 import read_mat5
from detector.proposals.formats.mat73 import read_mat73
from detector.proposals.formats.records import BoxFormat, ImageProposals, LazyRows, RawProposals, as_rows
from detector.runtime.files import open_atomically, reading

FOLDER_BOX_FORMATS = {
    "ijcv-mat": BoxFormat("xyxy", "1"),
    "demo-mat": BoxFormat("xyxy", "0-inclusive"),
    "mcg-mat": BoxFormat("yxyx", "1"),
    "hosang-mat": BoxFormat("xyxy", "1"),
}
VOC_BOX_FORMAT = BoxFormat("yxyx", "1")
DEMO_SUFFIX = "_boxes"


def load_mat(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The variables with these names in a .mat file; cells are object arrays. Raises InputError if it is unreadable."""
    with reading(path, "not a readable .mat file", sys.maxsize):
        return (read_mat73 if h5py.is_hdf5(path) else read_mat5)(path, names)


def read_voc_mat(path: Path) -> RawProposals:
    """Boxes y1 x1 y2 x2 from 1, (P, 4) per image id. Raises InputError for other contents."""
    content = load_mat(path, ("boxes", "images"))
    if not {"boxes", "images"} <= content.keys():
        raise InputError(f"{path}: has no cell arrays `boxes` and `images`, as the original release has")
    try:
        ids = [str(np.ravel(cell)[0]) for cell in content["images"].ravel()]
    except IndexError:
        raise InputError(f"{path}: `images` has an empty cell where an image id should be") from None
    cells = content["boxes"].ravel()
    if len(ids) != len(cells):
        raise InputError(f"{path}: `boxes` of {len(cells)} and `images` of {len(ids)} images do not fit together")
    require_distinct(path, ids)
    return RawProposals(
        path, VOC_BOX_FORMAT, {id: as_rows(path, f"`boxes` of {id}", cell) for id, cell in zip(ids, cells, strict=True)}
    )


def read_mat_folder(path: Path, name: str) -> RawProposals:
    """A folder of files with one image each, or one such file; each file is read on access."""
    files = [path] if path.is_file() else sorted(path.rglob("*.mat"))
    if not files:
        raise InputError(f"{path}: not a .mat file, nor a folder with .mat files")
    ids = [file.stem.removesuffix(DEMO_SUFFIX) if name == "demo-mat" else file.stem for file in files]
    require_distinct(path, ids)
    file_of = dict(zip(ids, files, strict=True))
    return RawProposals(path, FOLDER_BOX_FORMATS[name], LazyRows(file_of, lambda id: _read_one(file_of[id])))


def _read_one(path: Path) -> np.ndarray:
    content = load_mat(path, ("boxes", "scores"))
    if "boxes" not in content:
        raise InputError(f"{path}: has no variable `boxes`")
    return as_rows(path, "`boxes`", content["boxes"], content.get("scores"))


def write_voc_mat(path: Path, images: Iterable[ImageProposals]) -> None:
    """Write the file; all boxes are held in memory. The format has no scores."""
    from scipy.io import savemat  # here, as the import is slow and few programs write .mat files

    found = list(images)
    cells, ids = np.empty((1, len(found)), dtype=object), np.empty((len(found), 1), dtype=object)
    for number, image in enumerate(found):
        cells[0, number], ids[number, 0] = _compact(VOC_BOX_FORMAT.from_boxes(image.boxes)), image.image_id
    with open_atomically(path) as file:
        savemat(file, {"boxes": cells, "images": ids}, do_compression=True)


def write_mat_folder(path: Path, images: Iterable[ImageProposals], name: str) -> None:
    """Write one file per image; mcg-mat and hosang-mat use folders like COCO's, named by the first characters."""
    from scipy.io import savemat  # as above

    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.mkdir(parents=True)
        for image in images:
            stem = image.image_id + (DEMO_SUFFIX if name == "demo-mat" else "")
            if not stem or "/" in stem or "\0" in stem or stem.startswith("."):
                raise InputError(f"{path}: the image id {image.image_id!r} cannot be the name of a file")
            in_folders = name in ("mcg-mat", "hosang-mat") and stem.startswith("COCO_")
            file = unfinished / (f"{stem[:14]}/{stem[:22]}/{stem}.mat" if in_folders else f"{stem}.mat")
            file.parent.mkdir(parents=True, exist_ok=True)
            content = {"boxes": _compact(FOLDER_BOX_FORMATS[name].from_boxes(image.boxes))}
            if image.scores is not None:
                content["scores"] = image.scores[:, None]
            savemat(file, content)
        os.rename(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _compact(coordinates: np.ndarray) -> np.ndarray:
    """uint16, as in the releases, if lossless; else double."""
    whole = ((coordinates % 1 == 0) & (coordinates >= 0) & (coordinates < 2**16)).all()
    return coordinates.astype(np.uint16) if whole else coordinates


READERS: dict[str, Callable[[Path], RawProposals]] = {
    "voc-mat": read_voc_mat,
    **{name: partial(read_mat_folder, name=name) for name in FOLDER_BOX_FORMATS},
}
WRITERS: dict[str, Callable[[Path, Iterable[ImageProposals]], None]] = {
    "voc-mat": write_voc_mat,
    **{name: partial(write_mat_folder, name=name) for name in FOLDER_BOX_FORMATS},
}
