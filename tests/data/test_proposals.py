import multiprocessing
import pickle

import numpy as np
import pytest
import scipy.io
from safetensors.numpy import save_file

from detector.data.check import proposal_recall
from detector.data.proposals import MatProposals, ProposalStore, open_proposals, require_images, write_store
from detector.data.voc import VocDataset
from detector.errors import InputError

BOXES = [np.array([[0, 0, 5, 6], [1, 2, 3, 4.5]]), np.zeros((0, 4)), np.array([[9, 9, 20, 30]])]
IDS = ["a", "b", "c"]
HWS = [(40, 60)] * 3


@pytest.fixture
def store(tmp_path) -> ProposalStore:
    write_store(tmp_path / "p.safetensors", IDS, BOXES, HWS, {"name": "by hand"})
    return ProposalStore(tmp_path / "p.safetensors")


def test_what_is_written_is_read(store):
    assert (store.image_ids, len(store), store.generator) == (IDS, 3, {"name": "by hand"})
    for image_id, boxes in zip(IDS, BOXES, strict=True):
        assert store[image_id].tolist() == boxes.tolist()
        assert store[image_id].dtype == np.float32
        assert store.image_hw(image_id) == (40, 60)
    assert "a" in store
    assert "z" not in store


def test_equal_input_gives_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_store(tmp_path / name, IDS, BOXES, HWS, {"b": 1, "a": 2})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_store_goes_to_a_worker_as_its_path(store):
    assert len(pickle.dumps(store)) < 500
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(store.__getitem__, ("c",)).tolist() == BOXES[2].tolist()


def test_damaged_stores_are_named(tmp_path, store):
    data = store.path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-8])
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    save_file({"boxes": np.zeros((1, 4), np.float32)}, tmp_path / "other.safetensors")
    cases = {"cut": "damaged", "junk": "damaged", "other": "not a proposal store", "none": "no such"}
    for name, says in cases.items():
        with pytest.raises(InputError, match=rf"{name}\.safetensors: {says}"):
            open_proposals(tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match=r"read from \.safetensors or \.mat, not '\.pkl'"):
        open_proposals(tmp_path / "p.pkl")


def write_mat(path, ids=IDS, boxes=BOXES, names=("boxes", "images"), order=(1, 0, 3, 2)):
    cells, images = np.empty((1, len(boxes)), dtype=object), np.empty((len(ids), 1), dtype=object)
    for number, item in enumerate(boxes):  # continuous x1 y1 x2 y2 -> 1-based inclusive y1 x1 y2 x2
        base = [1, 1, 0, 0, 0][: len(order)]
        cells[0, number] = (item + base)[:, list(order)].astype(np.uint16)
    for number, item in enumerate(ids):
        images[number, 0] = item
    scipy.io.savemat(path, dict(zip(names, (cells, images), strict=True)))


def test_the_release_s_mat_files(tmp_path):
    whole = [boxes.round() for boxes in BOXES]
    write_mat(tmp_path / "p.mat", boxes=whole)
    proposals = open_proposals(tmp_path / "p.mat")
    assert isinstance(proposals, MatProposals)
    for image_id, boxes in zip(IDS, whole, strict=True):
        assert proposals[image_id].tolist() == boxes.tolist()
        assert proposals[image_id].dtype == np.float32


def test_a_coordinate_of_0_in_a_mat_does_not_wrap_around(tmp_path):
    write_mat(tmp_path / "p.mat", boxes=[np.array([[-1, -1, 5, 5]])], ids=["a"])
    assert open_proposals(tmp_path / "p.mat")["a"].tolist() == [[-1, -1, 5, 5]]


def test_bad_mat_files_are_named(tmp_path):
    write_mat(tmp_path / "names.mat", names=("b", "i"))
    write_mat(tmp_path / "short.mat", ids=["a"])
    write_mat(tmp_path / "wide.mat", boxes=[np.ones((4, 5))] * 3, order=[0, 1, 2, 3, 4])
    (tmp_path / "junk.mat").write_bytes(b"junk" * 100)
    (tmp_path / "new.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n")
    cases = {
        "names": "has no cell arrays",
        "short": "do not fit",
        "junk": "not a readable",
        "wide": r"shape \(4, 5\)",
        "new": "v7.3",
        "no": "no such",
    }
    for name, says in cases.items():
        with pytest.raises(InputError, match=rf"{name}\.mat: .*{says}"):
            open_proposals(tmp_path / f"{name}.mat")


def test_missing_images_and_other_sizes_are_errors(store):
    require_images(store, ["c", "a"], [(40, 60)] * 2)
    with pytest.raises(InputError, match=r"no proposals for 2 of 3 images: x, y\.(.|\n)*scripts/proposals.py generate"):
        require_images(store, ["x", "a", "y"], HWS)
    with pytest.raises(InputError, match=r"proposals of b were made on .* \(40, 60\), but it has \(41, 60\)"):
        require_images(store, ["a", "b"], [(40, 60), (41, 60)])


def test_the_released_format_on_real_data(shared):
    """Boxes in another order or of other images would not find the objects."""
    root = shared / "data/bccd"
    reader = VocDataset(root, "test")
    proposals = open_proposals(root / "selective_search/bccd_test.mat")
    assert proposal_recall(reader, proposals, range(len(reader))) == pytest.approx(0.868, abs=0.005)
