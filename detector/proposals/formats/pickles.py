"""Pickles of other detectors. A pickle can run any program when it is loaded, so the user must first trust the file.

    detectron   {"boxes", "scores", "ids" or "indexes"}: lists over images; x1 y1 x2 y2, from 0, last pixel included
    detectron2  {"boxes", "objectness_logits", "ids", "bbox_mode"}: the same in continuous pixels, or x1 y1 w h
    mmdetection {"FOLDER/FILE.jpg": an array (P, 4 or 5), a dict or an InstanceData with bboxes and scores}; continuous

Even then only numpy and torch arrays and the classes named here are created; nothing else is called.
The formats follow detectron/datasets/json_dataset.py, detectron2/data/build.py and mmdet/datasets/{base_det_dataset.py,
transforms/loading.py}.
"""

import io
import pickle
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from detector.errors import InputError, require_distinct
from detector.proposals.formats.records import BoxFormat, ImageProposals, RawProposals, as_rows, ranked
from detector.runtime.files import open_atomically, reading

CONTINUOUS = BoxFormat("xyxy", "0")
BBOX_MODES = {0: CONTINUOUS, 1: BoxFormat("xywh", "0")}  # detectron2's BoxMode.XYXY_ABS and XYWH_ABS


class _Fields:
    """Replaces mmengine's InstanceData, whose fields are its attributes."""


def _load_tensor(data: bytes) -> Any:
    import torch  # here: other files are converted without it, and its import takes seconds

    return torch.load(io.BytesIO(data), weights_only=True)


_OWN: dict[tuple[str, str], Any] = {
    ("detectron2.structures.boxes", "BoxMode"): int,
    ("mmengine.structures.instance_data", "InstanceData"): _Fields,
    ("torch.storage", "_load_from_bytes"): _load_tensor,
}
_AS_THEY_ARE = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _OWN:
            return _OWN[module, name]
        if (module, name) in _AS_THEY_ARE or (module == "numpy.dtypes" and name.endswith("DType")):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it wants to call {module}.{name}, which no file of proposals needs")


def _load(path: Path) -> Any:
    with reading(path, "not a readable pickle of proposals", sys.maxsize), open(path, "rb") as file:
        return _Unpickler(file, encoding="latin1").load()


def read_detectron(path: Path, name: str) -> RawProposals:
    """Read a file in the format `name`, `detectron` or `detectron2`."""
    content = _load(path)
    content = content if isinstance(content, dict) else {}
    ids: Any = content.get("ids", content.get("indexes"))
    boxes: Any = content.get("boxes")
    scores: Any = content.get("objectness_logits", content.get("scores"))
    lists = [ids, boxes] if scores is None else [ids, boxes, scores]
    if not all(map(_is_list, lists)) or len({len(each) for each in lists}) > 1:
        raise InputError(f"{path}: has no lists `boxes` and `ids` (or `indexes`) of one length, as {name} has")
    box_format = BoxFormat("xyxy", "0-inclusive")
    if name == "detectron2":
        mode = content.get("bbox_mode", 0)
        if not isinstance(mode, int | np.integer) or mode not in BBOX_MODES:
            raise InputError(f"{path}: bbox_mode {mode} is neither 0 (x1 y1 x2 y2) nor 1 (x1 y1 w h)")
        box_format = BBOX_MODES[int(mode)]
    ids = [str(id) for id in ids]
    require_distinct(path, ids)
    rows = {
        id: as_rows(path, f"`boxes` of {id}", boxes[number], None if scores is None else scores[number])
        for number, id in enumerate(ids)
    }
    return RawProposals(path, box_format, rows)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def read_mmdetection(path: Path) -> RawProposals:
    """Read a file in mmdetection's format. The image id is the name of the image file, without folder and suffix."""
    content = _load(path)
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: is a {type(content).__name__} without image ids, as before mmdetection 3, and proposals are "
            "never matched by position: make a dict from FOLDER/FILE.jpg to array of it, in the order of its dataset"
        )
    ids = [Path(str(key)).stem for key in content]
    require_distinct(path, ids)
    rows = {id: _fields(path, str(key), item) for id, (key, item) in zip(ids, content.items(), strict=True)}
    return RawProposals(path, CONTINUOUS, rows)


def _fields(path: Path, key: str, item: Any) -> np.ndarray:
    if isinstance(item, np.ndarray):
        return as_rows(path, f"'{key}'", item)
    # InstanceData stores each field as an attribute of the same name
    fields = item if isinstance(item, dict) else vars(item) if isinstance(item, _Fields) else {}
    if "bboxes" not in fields:
        raise InputError(f"{path}: '{key}' is a {type(item).__name__} without bboxes")
    return as_rows(path, f"'{key}'", fields["bboxes"], fields.get("scores"))


def write_detectron(path: Path, images: Iterable[ImageProposals], name: str) -> None:
    """Write the file; all boxes are held in memory. Without scores, they decrease from 1 by rank."""
    found = list(images)
    detectron2 = name == "detectron2"
    box_format = CONTINUOUS if detectron2 else BoxFormat("xyxy", "0-inclusive")
    content: dict[str, Any] = {
        "ids": [image.image_id for image in found],
        "boxes": [box_format.from_boxes(image.boxes).astype(np.float32) for image in found],
        "objectness_logits" if detectron2 else "scores": [ranked(image) for image in found],
    }
    with open_atomically(path) as file:
        pickle.dump(content | ({"bbox_mode": 0} if detectron2 else {}), file, protocol=4)


def write_mmdetection(path: Path, images: Iterable[ImageProposals]) -> None:
    """Write the file, as above. The key of an image is FOLDER/FILE.jpg, so `image_path` is required."""
    content = {}
    for image in images:
        if image.image_path is None:
            raise InputError(f"{path}: mmdetection's key is the image's file, so it needs the images: give --data")
        key = f"{image.image_path.parent.name}/{image.image_path.name}"
        content[key] = {"bboxes": image.boxes, "scores": ranked(image)}
    with open_atomically(path) as file:
        pickle.dump(content, file, protocol=4)


READERS: dict[str, Callable[[Path], RawProposals]] = {
    "detectron": partial(read_detectron, name="detectron"),
    "detectron2": partial(read_detectron, name="detectron2"),
    "mmdetection": read_mmdetection,
}
WRITERS: dict[str, Callable[[Path, Iterable[ImageProposals]], None]] = {
    "detectron": partial(write_detectron, name="detectron"),
    "detectron2": partial(write_detectron, name="detectron2"),
    "mmdetection": write_mmdetection,
}
