"""Reader for cells, strings and numbers in MATLAB files of version 7.3, which are HDF5.

Files can be untrusted: in HDF5 a few bytes can expand to any number of zeros, and data can come from other files, even
from a pipe that blocks. So the amount of data is limited, and only the file itself is read.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from detector.proposals.formats.mat5 import MAX_DEPTH, max_bytes

BYTES_OF_ITEM = 20_000  # counted per item in addition to its content: an empty one takes time too


def read_mat73(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The variables with these names that exist in the file, as in `read_mat5`.

    Raises ValueError for more data than a file of this size can plausibly hold and for data in another file, and the
    errors of h5py for damaged files.
    """
    limit = max_bytes(path.stat().st_size)
    with h5py.File(path) as file:
        links = {name: file.get(name, getlink=True) for name in names if name in file.keys()}  # noqa: SIM118  not opened
        if not all(isinstance(link, h5py.HardLink) for link in links.values()):
            raise ValueError("its variables lie elsewhere")
        return {name: _Reader(file, limit).read(file[name], MAX_DEPTH) for name in links}


class _Reader:
    """Reads one variable, which can be a cell array of others."""

    def __init__(self, file: h5py.File, limit: int) -> None:
        self.file, self.limit, self.left = file, limit, limit

    def read(self, item: h5py.Dataset, depth: int) -> np.ndarray:
        if item.dtype.kind not in "biuf" and h5py.check_ref_dtype(item.dtype) is not h5py.Reference:
            raise ValueError(f"holds {item.dtype}, which MATLAB does not write")  # strings hide their length
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
        return content.T  # MATLAB is column-major
