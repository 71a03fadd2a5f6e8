"""Reader for MATLAB files of version 5 to 7, limited to what proposals need: numbers, strings, and cells of these.

The file can be untrusted, so the reader is in Python and checks every length: in scipy's C reader a single changed
byte can cause an out-of-bounds access, which at best crashes the program. The format is defined in MathWorks'
"MAT-File Format", chapter 1.
"""

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX, COMPRESSED = 14, 15
TEXTS = {16: "utf-8", 17: "utf-16", 18: "utf-32"}
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
CELL, CHAR = 1, 4
MAX_DEPTH = 4  # of cells in cells
MAX_CELLS = 10**6  # of one array
# Maximum size of an uncompressed variable: a constant plus this many bytes per byte of the file.
BYTES, BYTES_PER_BYTE = 2**28, 20
HEAD_BYTES = 4096  # contains flags, dimensions and name of every variable that this program reads


def max_bytes(size: int) -> int:
    """Maximum size of an uncompressed variable in a file of this size. A repeated box compresses well, but the zeros of
    a decompression bomb compress better."""
    return BYTES + BYTES_PER_BYTE * size


def read_mat5(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The variables with these names that exist in the file: cells as object arrays, a string as an array of one str.

    Raises ValueError if the file is damaged or has other types under these names, or is of version 7.3.
    """
    data = memoryview(path.read_bytes())
    order = {b"IM": "<", b"MI": ">"}.get(bytes(data[126:128]))
    if order is None:
        raise ValueError("not a MATLAB file of version 5 to 7")
    (version,) = struct.unpack(f"{order}H", data[124:126])
    if version == 0x0200:
        raise ValueError("of version 7.3, which must be HDF5, but is not")
    found, limit = {}, max_bytes(len(data))
    for kind, body in _elements(data[128:], order):
        if kind == COMPRESSED:
            try:
                if _name(_unpack(body, HEAD_BYTES)[8:], order) not in names:
                    continue
                content = _unpack(body, limit + 1)
            except zlib.error as error:
                raise ValueError(str(error)) from None
            if len(content) > limit:
                raise ValueError(f"a variable of more than {limit} bytes")
            kind, body = next(_elements(content, order), (0, content))
        if kind == MATRIX and (name := _name(body, order)) in names:
            found[name] = _matrix(body, order, MAX_DEPTH)
    return found


def _unpack(data: memoryview, length: int) -> memoryview:
    return memoryview(zlib.decompressobj().decompress(data, length))


def _name(data: memoryview, order: str) -> str:
    parts = list(islice(_elements(data, order), 3))
    return bytes(parts[2][1]).decode("latin-1") if len(parts) > 2 else ""


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Kind and bytes of each data element. Elements start at a multiple of 8, except after compressed ones."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack(f"{order}II", data[at : at + 8])
        start = at + 8
        if kind >> 16:  # small data element format: up to 4 bytes in the tag itself
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
            if size > 4:
                raise ValueError(f"an element of {size} bytes in a tag for 4")
        if start + size > len(data):
            raise ValueError(f"cut off: an element of {size} bytes where {len(data) - start} are left")
        yield kind, data[start : start + size]
        at = start + size
        if kind != COMPRESSED:
            at = -(-at // 8) * 8


def _matrix(data: memoryview, order: str, depth: int) -> np.ndarray:
    """An array from its elements: flags, dimensions, name, then the content."""
    parts = list(islice(_elements(data, order), MAX_CELLS + 4))
    if not parts:
        return np.zeros((0, 0))
    if len(parts) > MAX_CELLS + 3:
        raise ValueError(f"an array of more than {MAX_CELLS} cells")
    if len(parts) < 3 or len(parts[0][1]) < 4 or depth == 0:
        raise ValueError("an array without flags, dimensions and name, or cells too deep")
    (flags,) = struct.unpack(f"{order}I", parts[0][1][:4])
    shape = tuple(int(side) for side in _numbers(parts[1], order))
    if min(shape, default=-1) < 0:
        raise ValueError(f"an array of shape {shape}")
    count, content = math.prod(shape), parts[3:]
    if flags & 0xFF == CELL:
        if count != len(content):
            raise ValueError(f"{len(content)} cells in an array of shape {shape}")
        cells = np.empty(count, dtype=object)
        for number, (kind, body) in enumerate(content):
            if kind != MATRIX:
                raise ValueError(f"a cell holds an element of kind {kind}, not an array")
            cells[number] = _matrix(body, order, depth - 1)
        return cells.reshape(shape, order="F")
    if flags & 0xFF == CHAR:
        return np.array([_text(content[0], order)] if content else [""])
    if flags & 0xFF not in CLASSES or flags & 0x0800 or len(content) != 1:
        raise ValueError(f"an array of class {flags & 0xFF}, not of real numbers, strings or cells")
    values = _numbers(content[0], order)
    if len(values) != count:
        raise ValueError(f"{len(values)} numbers in an array of shape {shape}")
    return values.astype(CLASSES[flags & 0xFF]).reshape(shape, order="F")


def _numbers(part: tuple[int, memoryview], order: str) -> np.ndarray:
    kind, body = part
    if kind not in NUMBERS:
        raise ValueError(f"an element of kind {kind} where numbers should be")
    dtype = np.dtype(order + NUMBERS[kind])
    if len(body) % dtype.itemsize:
        raise ValueError(f"{len(body)} bytes of numbers of {dtype.itemsize}")
    return np.frombuffer(body, dtype=dtype)


def _text(part: tuple[int, memoryview], order: str) -> str:
    kind, body = part
    if kind in TEXTS:
        suffix = "" if kind == 16 else "-le" if order == "<" else "-be"
        return bytes(body).decode(TEXTS[kind] + suffix)
    codes = _numbers(part, order)
    if codes.dtype.kind != "u":
        raise ValueError("a string of invalid characters")
    return "".join(chr(code) for code in codes.tolist() if code < 0x110000)
