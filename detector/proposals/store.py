"""The proposal store, this program's own file format for external object proposals.

The store is one .safetensors file:

    boxes      (N, 4) float32, concatenated over images: x1 y1 x2 y2, continuous pixels, original frame
    offsets    (M + 1,) int64: image m has the boxes offsets[m] to offsets[m + 1]
    image_hws  (M, 2) int32: height and width of the images that the boxes were made on; 0 0 where unknown
    scores     (N,) float32, optional: higher is better
    image_ids  uint8: the ids in UTF-8, each followed by a 0 byte
    metadata   "fast-rcnn proposals 2": a JSON object with name and parameters of the generator, and, as `unreadable`,
               the images that could not be read, with the reason; a single string, since the order of several would
               be random

The file is memory-mapped and read image by image, so it can be larger than memory, and all processes share one copy.
It is also written image by image.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import safe_open

from detector.errors import InputError, first_few, require_distinct
from detector.proposals.formats.records import BoxFormat, ImageProposals, LazyRows, RawProposals
from detector.runtime.files import open_atomically, reading

FORMAT = "fast-rcnn proposals 2"
OLD_FORMAT = "fast-rcnn proposals 1"
# The header of a store lists its five tensors; it is written last, into the space reserved for it.
HEAD_BYTES = 1024

# Type and number of dimensions of each tensor in a store.
TENSORS = {
    "boxes": ("F32", 2),
    "scores": ("F32", 1),
    "offsets": ("I64", 1),
    "image_hws": ("I32", 2),
    "image_ids": ("U8", 1),
}


class ProposalStore:
    """Read-only proposals of a store file, by image id. Raises InputError if the file is not a valid store."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with reading(self.path, "damaged proposal store", sys.maxsize):
            self._opened = open(self.path, "rb", buffering=0)  # noqa: SIM115
            self._version = self._current_version()
            self._file = safe_open(self.path, framework="numpy")
            metadata = self._file.metadata() or {}
            if OLD_FORMAT in metadata:
                raise InputError(
                    f"{self.path}: a store of an older version of this program: generate it again with\n"
                    "  python scripts/proposals.py generate --data ROOT --split SPLIT --out FILE.safetensors"
                )
            if FORMAT not in metadata:
                raise InputError(f"{self.path}: not a proposal store: no '{FORMAT}' in its metadata")
            self.generator: dict = json.loads(metadata[FORMAT])
            if not isinstance(self.generator, dict):
                raise ValueError("its metadata do not say how it was made")
            self.unreadable = _reasons(self.generator)
            for name in self._file.keys():  # noqa: SIM118
                found = self._file.get_slice(name)
                if (found.get_dtype(), len(found.get_shape())) != TENSORS.get(name):
                    raise ValueError(f"{name} is {found.get_dtype()} of shape {found.get_shape()}")
            self.image_ids = self._file.get_tensor("image_ids").tobytes().decode().split("\0")[:-1]
            self._image_hws = self._file.get_tensor("image_hws")
            self._offsets = self._file.get_tensor("offsets")
            self._boxes = self._file.get_slice("boxes")
            self._scores = self._file.get_slice("scores") if "scores" in self._file.keys() else None  # noqa: SIM118
            shapes = self._boxes.get_shape(), [] if self._scores is None else self._scores.get_shape()
        self._index = {image_id: number for number, image_id in enumerate(self.image_ids)}
        offsets, count = self._offsets, len(self.image_ids)
        sound = len(offsets) == count + 1 and offsets[0] == 0 and (np.diff(offsets) >= 0).all()
        total = int(offsets[-1]) if sound else 0
        fits = shapes in (([total, 4], []), ([total, 4], [total])) and self._image_hws.shape == (count, 2)
        if not (sound and fits and len(self._index) == count):
            raise InputError(f"{self.path}: damaged proposal store: its offsets, boxes and image ids do not fit")

    def __getitem__(self, image_id: str) -> np.ndarray:
        """Boxes (P, 4) float32 of one image; empty for one in `unreadable`, which counts as missing."""
        return self._rows(self._boxes, image_id)

    def scores(self, image_id: str) -> np.ndarray | None:
        """Scores (P,) float32 of its boxes, or None if the store has no scores."""
        return None if self._scores is None else self._rows(self._scores, image_id)

    def image_hw(self, image_id: str) -> tuple[int, int] | None:
        """(H, W) of the image that the boxes were made on, or None if unknown."""
        height, width = self._image_hws[self._index[image_id]].tolist()
        return (height, width) if height else None

    @property
    def num_boxes(self) -> int:
        """Number of boxes of all images."""
        return int(self._offsets[-1])

    @property
    def raw(self) -> RawProposals:
        """The same proposals as RawProposals, like those of other formats."""
        usable = {image_id: None for image_id in self.image_ids if image_id in self}
        return RawProposals(self.path, BoxFormat("xyxy", "0"), LazyRows(usable, self._boxes_and_scores))

    def _boxes_and_scores(self, image_id: str) -> np.ndarray:
        boxes, scores = self[image_id], self.scores(image_id)
        return boxes if scores is None else np.column_stack([boxes, scores])

    def _rows(self, tensor: Any, image_id: str) -> np.ndarray:
        if self._current_version() != self._version:  # reading beyond the end of a mapped file kills the process
            raise InputError(f"{self.path}: was overwritten while in use: restore it, and start again")
        number = self._index[image_id]
        start, stop = self._offsets[number : number + 2].tolist()
        # safetensors cannot return an empty slice at the end of a tensor
        return tensor[start:stop] if stop > start else np.zeros((0, *tensor.get_shape()[1:]), dtype=np.float32)

    def _current_version(self) -> tuple[int, int]:
        stat = os.fstat(self._opened.fileno())  # of the open file, also if another has replaced it under its name
        return stat.st_size, stat.st_mtime_ns

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._index and image_id not in self.unreadable

    def __len__(self) -> int:
        return len(self.image_ids)

    def __reduce__(self) -> tuple:
        return ProposalStore, (self.path,)  # each worker process opens the file itself


def _reasons(generator: dict) -> dict[str, str]:
    reasons = generator.get("unreadable", {})
    if not (isinstance(reasons, dict) and all(isinstance(reason, str) for reason in reasons.values())):
        raise ValueError("its list of unreadable images does not map ids to reasons")
    return reasons


def write_store(
    path: Path,
    image_ids: Sequence[str],
    boxes: Sequence[np.ndarray],
    image_hws: Sequence[tuple[int, int]],
    generator: dict,
) -> None:
    """Write the boxes (P, 4) of each image to a store: `stream_store` for boxes in memory."""
    images = (ImageProposals(*item) for item in zip(image_ids, boxes, [None] * len(boxes), image_hws, strict=True))
    stream_store(path, images, generator)


def stream_store(path: Path, images: Iterable[ImageProposals], generator: dict) -> None:
    """Write a store atomically, with the boxes of only one image in memory at a time.

    Equal inputs give bitwise identical files. Either all images have scores or none. Raises InputError for a duplicate
    image id.
    """
    metadata = {FORMAT: json.dumps(generator, sort_keys=True)}
    header_bytes = -(-(HEAD_BYTES + len(json.dumps(metadata))) // 8) * 8
    image_ids, offsets, image_hws = [], [0], []
    with open_atomically(path) as file, tempfile.TemporaryFile(dir=path.parent) as scores:
        file.write(bytes(8 + header_bytes))
        for image in images:
            file.write(np.ascontiguousarray(image.boxes, dtype="<f4").tobytes())
            if image.scores is not None:
                scores.write(image.scores.astype("<f4").tobytes())
            image_ids.append(image.image_id)
            offsets.append(offsets[-1] + len(image.boxes))
            image_hws.append(image.image_hw or (0, 0))
        require_distinct(path, image_ids)
        if scores.tell() not in (0, 4 * offsets[-1]):
            raise ValueError(f"{path}: some images have scores and others none")
        with_scores = scores.tell() > 0
        file.write(np.array(offsets, dtype="<i8").tobytes())
        file.write(np.array(image_hws, dtype="<i4").tobytes())
        scores.seek(0)
        shutil.copyfileobj(scores, file)
        ids = "".join(f"{id}\0" for id in image_ids).encode()
        file.write(ids)
        count, total = len(image_ids), offsets[-1]
        tensors = {
            "boxes": ("F32", [total, 4], 16 * total),
            "offsets": ("I64", [count + 1], 8 * (count + 1)),
            "image_hws": ("I32", [count, 2], 8 * count),
            **({"scores": ("F32", [total], 4 * total)} if with_scores else {}),
            "image_ids": ("U8", [len(ids)], len(ids)),
        }
        _write_head(file, header_bytes, metadata, tensors)


def _write_head(
    file: BinaryIO, header_bytes: int, metadata: dict, tensors: dict[str, tuple[str, list[int], int]]
) -> None:
    """Write the header of a .safetensors file: its length, then JSON, padded with spaces."""
    head: dict = {"__metadata__": metadata}
    start = 0
    for name, (dtype, shape, size) in tensors.items():
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    file.seek(0)
    file.write(header_bytes.to_bytes(8, "little") + json.dumps(head).encode().ljust(header_bytes))


class FileProposals:
    """Proposals from another format, converted to boxes, by image id."""

    def __init__(self, raw: RawProposals, box_format: BoxFormat) -> None:
        self.raw = raw
        self.box_format = box_format
        self.path = raw.path
        self.image_ids = list(raw.rows)

    def __getitem__(self, image_id: str) -> np.ndarray:
        """Boxes (P, 4) float32 of one image."""
        return self.raw.boxes(image_id, self.box_format)

    def scores(self, image_id: str) -> np.ndarray | None:
        """Scores (P,) float32 of its boxes, or None if the file has no scores."""
        return self.raw.scores(image_id)

    def image_hw(self, image_id: str) -> tuple[int, int] | None:
        """None: only the store format has image sizes."""
        return None

    def __contains__(self, image_id: str) -> bool:
        return image_id in self.raw.rows

    def __len__(self) -> int:
        return len(self.raw.rows)


OpenedProposals = ProposalStore | FileProposals


def open_proposals(path: str | Path) -> OpenedProposals:
    """Open a proposal file by its suffix: a .safetensors store or a .mat of the original release."""
    suffix = Path(path).suffix.lower()
    if suffix == ".safetensors":
        return ProposalStore(path)
    if suffix == ".mat":
        from detector.proposals.formats.mat import read_voc_mat  # imports h5py

        raw = read_voc_mat(Path(path))
        assert raw.box_format is not None
        return FileProposals(raw, raw.box_format)
    raise InputError(
        f"{path}: proposals are read from .safetensors or .mat, not '{suffix}'; convert another format with\n"
        "  python scripts/proposals.py convert --from FORMAT --to store --data ROOT --split SPLIT FILE OUT.safetensors"
    )


def require_present(proposals: OpenedProposals, image_ids: Sequence[str]) -> None:
    """Raise InputError unless there are proposals for each of these images."""
    missing = [id for id in image_ids if id not in proposals]
    unreadable = proposals.unreadable if isinstance(proposals, ProposalStore) else {}
    if missing and all(id in unreadable for id in missing):
        raise InputError(
            f"{proposals.path}: no proposals for {len(missing)} of {len(image_ids)} images, which could not be read "
            f"when it was made: {first_few([unreadable[id] for id in missing])}. Generate it again"
        )
    if missing:
        raise InputError(
            f"{proposals.path}: no proposals for {len(missing)} of {len(image_ids)} images: {first_few(missing)}. Is "
            "it the file of another split? Omit the setting to generate them, or generate a file with\n"
            "  python scripts/proposals.py generate --data ROOT --split SPLIT --out FILE.safetensors"
        )


def require_images(proposals: OpenedProposals, image_ids: Sequence[str], image_hws: Sequence[tuple[int, int]]) -> None:
    """Raise InputError unless there are proposals for each of these images, made on images of these sizes.

    If a file has no image sizes, `proposals_for` verifies them.
    """
    require_present(proposals, image_ids)
    for id, image_hw in zip(image_ids, image_hws, strict=True):
        made_on = proposals.image_hw(id)
        if made_on not in (None, image_hw):
            raise InputError(
                f"{proposals.path}: the proposals of {id} were made on an image of height and width "
                f"{made_on}, but it has {image_hw}: generate them again"
            )


def require_exif(proposals: OpenedProposals, exif: str) -> None:
    """Raise InputError if a store states that its proposals were made with another value of `data.exif`.

    A rotation by 180 degrees keeps the size of an image, so no other check detects it.
    """
    made_with = proposals.generator.get("exif") if isinstance(proposals, ProposalStore) else None
    if made_with not in (None, exif):
        raise InputError(
            f"{proposals.path}: was made with --exif {made_with}, but data.exif is {exif}: boxes of images that are "
            "rotated would not fit; generate them again with scripts/proposals.py generate"
        )
