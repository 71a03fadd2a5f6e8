"""Reads the cells, texts and numbers of MATLAB files of version 7.3, which are HDF5.

HDF5 can say of a few bytes that they are any number of zeros, and take data from other files, or wait for them: a
file may be a stranger's, so what is read is counted, and nothing but the file itself is read.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from detector.proposals.formats.mat5 import MAX_DEPTH, max_bytes

BYTES_OF_ITEM = 20_000  # what one counts as beside its content: an empty one takes time too


def read_mat73(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The variables of these names that the file has: as `read_mat5` gives them.

    Raises ValueError for more than a file of its size would hold and for data in another file, and whatever h5py does
    for damage.
    """
    limit = max_bytes(path.stat().st_size)
    with h5py.File(path) as file:
        links = {name: file.get(name, getlink=True) for name in names if name in file.keys()}  # noqa: SIM118  not opened
        if not all(isinstance(link, h5py.HardLink) for link in links.values()):
            raise ValueError("its variables lie elsewhere")
        return {name: _Reader(file, limit).read(file[name], MAX_DEPTH) for name in links}


class _Reader:
    """Reads one variable, which may be cells of others."""

    def __init__(self, file: h5py.File, limit: int) -> None:
        self.file, self.limit, self.left = file, limit, limit

    def read(self, item: h5py.Dataset, depth: int) -> np.ndarray:
        if item.dtype.kind not in "biuf" and h5py.check_ref_dtype(item.dtype) is not h5py.Reference:
            raise ValueError(f"holds {item.dtype}, which MATLAB does not write")  # texts have any length, unseen
        unpacked_at_once = math.prod(item.chunks or ()) * item.dtype.itemsize
        self.left -= max(item.nbytes, unpacked_at_once) + BYTES_OF_ITEM
        if self.left < 0:
            raise ValueError(f"a variable of more than {self.limit} bytes")
        if item.external or item.is_virtual:
            raise ValueError("its data lie in another file")
        if item.attrs.get("MATLAB_empty"):
            return np.zeros((0, 0))
        content = item[()]
        kind = item.attrs.get("MATLAB_class", b"")
        if kind == b"char":
            return np.array([content.astype("<u2").tobytes().decode("utf-16-le")])
        if kind == b"cell":
            if not depth:
                raise ValueError(f"cells in cells, more than {MAX_DEPTH} deep")
            cells = np.empty(item.shape, dtype=object)
            for position, reference in np.ndenumerate(content):
                cells[position] = self.read(self.file[reference], depth - 1)
            return cells.T
        return content.T  # MATLAB counts columns first
