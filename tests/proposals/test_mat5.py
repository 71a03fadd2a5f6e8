import numpy as np
import pytest
import scipy.io

from detector.proposals.formats import mat5
from detector.proposals.formats.mat5 import read_mat5

CELLS = np.empty((2, 3), dtype=object)
for place, item in zip(
    np.ndindex(2, 3),
    [
        np.arange(8.0).reshape(2, 4),
        np.zeros((0, 4)),
        "größe_1",
        np.uint16([[1, 2]]),
        np.int32([[-1]]),
        np.float32([[2.5]]),
    ],
    strict=True,
):
    CELLS[place] = item


@pytest.mark.parametrize("compressed", [False, True])
def test_it_reads_what_scipy_reads(tmp_path, compressed):
    content = {"boxes": CELLS, "images": np.array([["a"]], dtype=object), "other": np.arange(6).reshape(2, 3)}
    scipy.io.savemat(tmp_path / "a.mat", content, do_compression=compressed)
    expected = scipy.io.loadmat(tmp_path / "a.mat")
    found = read_mat5(tmp_path / "a.mat", ("boxes", "other"))
    assert set(found) == {"boxes", "other"}
    np.testing.assert_array_equal(found["other"], expected["other"])
    assert found["boxes"].shape == (2, 3)
    for place in np.ndindex(2, 3):
        one, other = found["boxes"][place], expected["boxes"][place]
        assert (one.shape, one.dtype, one.tolist()) == (other.shape, other.dtype, other.tolist())


def test_it_reads_the_released_proposals(shared):
    path = shared / "data/bccd/selective_search/bccd_test.mat"
    expected, found = scipy.io.loadmat(path), read_mat5(path, ("boxes", "images"))
    assert found["boxes"].shape == expected["boxes"].shape
    for name in ("boxes", "images"):
        for one, other in zip(found[name].ravel(), expected[name].ravel(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_what_it_cannot_read_is_named(tmp_path):
    path = tmp_path / "a.mat"
    for value in (1 + 2j, {"a": 1}):
        scipy.io.savemat(path, {"boxes": value})
        with pytest.raises(ValueError, match="not of real numbers, strings or cells"):
            read_mat5(path, ("boxes",))
    scipy.io.savemat(path, {"boxes": np.zeros(3)})
    data = path.read_bytes()
    path.write_bytes(data[:-8])
    with pytest.raises(ValueError, match="cut off: an element of 80 bytes where 72 are left"):
        read_mat5(path, ("boxes",))
    path.write_bytes(data[:124] + b"\x00\x02" + data[126:])
    with pytest.raises(ValueError, match=r"7\.3"):
        read_mat5(path, ("boxes",))
    path.write_bytes(b"junk")
    with pytest.raises(ValueError, match="not a MATLAB file"):
        read_mat5(path, ("boxes",))


def test_zeros_without_end_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(mat5, "BYTES", 2**24)
    scipy.io.savemat(tmp_path / "a.mat", {"boxes": np.zeros((2**20, 4))}, do_compression=True)
    with pytest.raises(ValueError, match="a variable of more than 1[67]"):
        read_mat5(tmp_path / "a.mat", ("boxes",))
    content = {"boxes": np.zeros((2, 4)), "masks": np.zeros((2**20, 4))}
    scipy.io.savemat(tmp_path / "a.mat", content, do_compression=True)
    assert read_mat5(tmp_path / "a.mat", ("boxes",))["boxes"].shape == (2, 4)  # what nobody asks for is left alone


def test_cells_without_end_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(mat5, "MAX_CELLS", 5)
    scipy.io.savemat(tmp_path / "a.mat", {"boxes": CELLS})
    with pytest.raises(ValueError, match="an array of more than 5 cells"):
        read_mat5(tmp_path / "a.mat", ("boxes",))
    monkeypatch.setattr(mat5, "MAX_CELLS", 6)
    assert read_mat5(tmp_path / "a.mat", ("boxes",))["boxes"].shape == (2, 3)
