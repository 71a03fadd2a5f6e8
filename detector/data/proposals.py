"""Object proposals from outside: the store that this program writes, and the release format of the original.

The store is one .safetensors file:

    boxes    (N, 4) float32, those of all images end to end: x1 y1 x2 y2, continuous pixels, original frame
    offsets  (M + 1,) int64: image m has the boxes offsets[m] to offsets[m + 1]
    scores   (N,) float32, may be absent; within an image the best proposal comes first either way
    metadata "fast-rcnn proposals 1": a JSON object with `image_ids`, `image_hws` ([H, W] of each) and `generator`
             (name and parameters of what made the boxes); one string, since the order of several would be random

It is read memory-mapped, image by image, so it may be larger than memory and is shared by all processes.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from detector.data.mat5 import read_mat5
from detector.errors import InputError, first_few
from detector.files import write_atomically

FORMAT = "fast-rcnn proposals 1"


class ProposalStore:
    """Read-only proposals of a store file, by image id. Raises InputError if the file is no such store."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._open()

    def _open(self) -> None:
        try:
            self._file = safe_open(self.path, framework="numpy")
            metadata = self._file.metadata() or {}
            if FORMAT not in metadata:
                raise InputError(f"{self.path}: not a proposal store: no '{FORMAT}' in its metadata")
            header = json.loads(metadata[FORMAT])
            self.image_ids: list[str] = header["image_ids"]
            self.image_hws: list[list[int]] = header["image_hws"]
            self.generator: dict = header["generator"]
            self._offsets = self._file.get_tensor("offsets")
            self._boxes = self._file.get_slice("boxes")
            shape = self._boxes.get_shape()
        except FileNotFoundError:
            raise InputError(f"{self.path}: no such proposal file") from None
        except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
            raise InputError(f"{self.path}: damaged proposal store: {error!r}") from None
        offsets, count = self._offsets, len(self.image_ids)
        sound = len(offsets) == count + 1 and offsets[0] == 0 and (np.diff(offsets) >= 0).all()
        if not sound or shape != [int(offsets[-1]), 4] or len(self.image_hws) != count:
            raise InputError(f"{self.path}: damaged proposal store: its offsets, boxes and image ids do not fit")
        self._index = {image_id: number for number, image_id in enumerate(self.image_ids)}

    def __getitem__(self, image_id: str) -> np.ndarray:
        """Boxes (P, 4) float32 of an image."""
        number = self._index[image_id]
        start, end = int(self._offsets[number]), int(self._offsets[number + 1])
        # A slice of nothing at the very end is an error to safetensors.
        return self._boxes[start:end] if start < end else np.zeros((0, 4), dtype=np.float32)

    def image_hw(self, image_id: str) -> tuple[int, int]:
        """Size of the image that the boxes were made on."""
        height, width = self.image_hws[self._index[image_id]]
        return height, width

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._index

    def __len__(self) -> int:
        return len(self.image_ids)

    def __reduce__(self) -> tuple:
        return ProposalStore, (self.path,)  # a worker process opens the file for itself


def write_store(
    path: Path,
    image_ids: Sequence[str],
    boxes: Sequence[np.ndarray],
    image_hws: Sequence[tuple[int, int]],
    generator: dict,
) -> None:
    """Write boxes (P, 4) of each image to a store, whole or not at all; equal input gives equal bytes."""
    offsets = np.cumsum([0, *(len(item) for item in boxes)], dtype=np.int64)
    joined = np.concatenate([np.zeros((0, 4)), *boxes]).astype(np.float32)
    metadata = {"image_ids": list(image_ids), "image_hws": [list(hw) for hw in image_hws], "generator": generator}
    write_atomically(path, save({"boxes": joined, "offsets": offsets}, {FORMAT: json.dumps(metadata, sort_keys=True)}))


class MatProposals:
    """Proposals of the original Fast R-CNN release: a .mat file with the cell arrays `boxes` and `images`.

    Each image's boxes are (y1, x1, y2, x2), 1-based inclusive; they become continuous x1 y1 x2 y2 here. Matched by
    the ids in `images`. Raises InputError if the file is not of that form.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such proposal file")
        try:
            content = read_mat5(self.path, ("boxes", "images"))
        except NotImplementedError:
            raise InputError(f"{self.path}: a MATLAB v7.3 file; save it with '-v7' in MATLAB") from None
        except (ValueError, OSError) as error:
            raise InputError(f"{self.path}: not a readable .mat file: {error}") from None
        if not {"boxes", "images"} <= content.keys():
            raise InputError(f"{self.path}: has no cell arrays `boxes` and `images`, as the original release has")
        try:
            ids = [str(np.ravel(cell)[0]) for cell in content["images"].ravel()]
            boxes = [_from_release(np.asarray(cell)) for cell in content["boxes"].ravel()]
            self._boxes = dict(zip(ids, boxes, strict=True))
        except (ValueError, IndexError, TypeError) as error:
            raise InputError(f"{self.path}: `boxes` and `images` do not fit together: {error}") from None

    def __getitem__(self, image_id: str) -> np.ndarray:
        """Boxes (P, 4) float32 of an image."""
        return self._boxes[image_id]

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._boxes

    def __len__(self) -> int:
        return len(self._boxes)


def _from_release(cell: np.ndarray) -> np.ndarray:
    """(P, 4) y1 x1 y2 x2, 1-based inclusive -> x1 y1 x2 y2, continuous float32."""
    if cell.size == 0:
        return np.zeros((0, 4), dtype=np.float32)
    if cell.ndim != 2 or cell.shape[1] != 4:
        raise ValueError(f"a cell of `boxes` has shape {cell.shape}, not (P, 4)")
    return cell.astype(np.float32)[:, [1, 0, 3, 2]] - np.array([1, 1, 0, 0], dtype=np.float32)


def open_proposals(path: str | Path) -> ProposalStore | MatProposals:
    """Open a proposal file by its suffix: a .safetensors store or a release's .mat."""
    readers: dict[str, type[ProposalStore] | type[MatProposals]] = {
        ".safetensors": ProposalStore,
        ".mat": MatProposals,
    }
    suffix = Path(path).suffix.lower()
    if suffix not in readers:
        raise InputError(f"{path}: proposals are read from {' or '.join(readers)}, not '{suffix}'")
    return readers[suffix](path)


def require_images(
    proposals: ProposalStore | MatProposals, image_ids: Sequence[str], image_hws: Sequence[tuple[int, int]]
) -> None:
    """Raise InputError unless there are proposals for each of these images, made on images of these sizes.

    A release's .mat does not say what size its images had.
    """
    missing = [id for id in image_ids if id not in proposals]
    if missing:
        raise InputError(
            f"{proposals.path}: no proposals for {len(missing)} of {len(image_ids)} images: {first_few(missing)}. Is "
            "it the file of another split? Leave the setting out to have them made, or make a file with\n"
            "  python scripts/proposals.py generate --data ROOT --split SPLIT --out FILE.safetensors"
        )
    if isinstance(proposals, ProposalStore):
        for id, image_hw in zip(image_ids, image_hws, strict=True):
            if proposals.image_hw(id) != image_hw:
                raise InputError(
                    f"{proposals.path}: the proposals of {id} were made on an image of height and width "
                    f"{proposals.image_hw(id)}, but it has {image_hw}: make them again on these images"
                )
