import multiprocessing
import pickle
import time
import tracemalloc

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from detector.data.check import proposal_recall
from detector.data.formats.voc import read_voc
from detector.data.proposal_selection import Selection, select_proposals
from detector.errors import InputError
from detector.proposals.formats.records import ImageProposals
from detector.proposals.store import ProposalStore, open_proposals, require_images, stream_store

BOXES = [np.array([[0, 0, 5, 6], [1, 2, 3, 4.5]], np.float32), np.zeros((0, 4)), np.array([[9, 9, 20, 30]])]
IDS = ["a", "b", "ü c"]
IMAGES = [ImageProposals(id, boxes, image_hw=(40, 60)) for id, boxes in zip(IDS, BOXES, strict=True)]


@pytest.fixture
def store(tmp_path) -> ProposalStore:
    stream_store(tmp_path / "p.safetensors", IMAGES, {"name": "by hand"})
    return ProposalStore(tmp_path / "p.safetensors")


def test_what_is_written_is_read(store):
    assert (store.image_ids, len(store), store.num_boxes) == (IDS, 3, 3)
    assert store.generator == {"name": "by hand"}
    for image_id, boxes in zip(IDS, BOXES, strict=True):
        assert store[image_id].tolist() == boxes.tolist()
        assert store[image_id].dtype == np.float32
        assert store.scores(image_id) is None
        assert store.image_hw(image_id) == (40, 60)
    assert "a" in store
    assert "z" not in store
    everything = load_file(store.path)  # any program that knows safetensors reads it
    assert everything["boxes"].shape == (3, 4)
    assert everything["offsets"].tolist() == [0, 2, 2, 3]


def test_scores_and_sizes_may_be_known_or_not(tmp_path):
    path = tmp_path / "p.safetensors"
    scored = [ImageProposals("a", BOXES[0], np.array([0.5, 2])), ImageProposals("b", BOXES[1], np.zeros(0))]
    stream_store(path, scored, {})
    store = ProposalStore(path)
    assert (store.scores("a").tolist(), store.scores("b").tolist()) == ([0.5, 2], [])
    assert store.image_hw("a") is None
    with pytest.raises(ValueError, match="some images have scores and others none"):
        stream_store(tmp_path / "q", [scored[0], IMAGES[2]], {})
    assert [file.name for file in tmp_path.iterdir()] == ["p.safetensors"]


def test_equal_input_gives_equal_bytes(tmp_path):
    for name, generator in (("one", {"b": 1, "a": 2}), ("two", {"a": 2, "b": 1})):
        stream_store(tmp_path / name, IMAGES, generator)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_store_goes_to_a_worker_as_its_path(store):
    assert len(pickle.dumps(store)) < 500
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(store.__getitem__, ("a",)).tolist() == BOXES[0].tolist()


def test_a_store_is_written_image_by_image_and_opened_at_once(tmp_path):
    path, boxes = tmp_path / "p.safetensors", np.ones((5000, 4), np.float32)  # 80 kB an image
    tracemalloc.start()
    stream_store(path, (ImageProposals(f"{n}", boxes, np.ones(5000)) for n in range(400)), {})
    ProposalStore(path)["399"]
    assert tracemalloc.get_traced_memory()[1] < 2 * 2**20 < path.stat().st_size // 10
    tracemalloc.stop()
    stream_store(path, (ImageProposals(f"image_{n:08}", boxes[:1]) for n in range(100_000)), {})
    began = time.process_time()
    assert len(ProposalStore(path)["image_00099999"]) == 1
    assert time.process_time() - began < 1


def test_damaged_stores_are_named(tmp_path, store):
    data = store.path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-8])
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    save_file({"boxes": np.zeros((1, 4), np.float32)}, tmp_path / "other.safetensors")
    save_file({"boxes": np.zeros((1, 4), np.float32)}, tmp_path / "old.safetensors", {"fast-rcnn proposals 1": "{}"})
    parts = load_file(store.path)
    for name, part in (("offsets", parts["offsets"] - 1), ("image_hws", parts["image_hws"][:2])):
        save_file(parts | {name: part}, tmp_path / f"{name}.safetensors", {"fast-rcnn proposals 2": "{}"})
    cases = {
        "cut": "damaged", "junk": "damaged", "other": "not a proposal store", "none": "no such",
        "old": "generate it again",
        "offsets": "damaged .* do not fit", "image_hws": "damaged .* do not fit",
    }  # fmt: skip
    for name, says in cases.items():
        with pytest.raises(InputError, match=rf"{name}\.safetensors: .*{says}"):
            open_proposals(tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match=r"read from \.safetensors or \.mat, not '\.pkl'(.|\n)*proposals\.py convert"):
        open_proposals(tmp_path / "p.pkl")
    with pytest.raises(InputError, match=r"image ids are listed more than once \(1\): a; remove"):
        stream_store(tmp_path / "twice", [IMAGES[0], IMAGES[0]], {})


def test_missing_images_and_other_sizes_are_errors(store):
    require_images(store, ["b", "a"], [(40, 60)] * 2)
    with pytest.raises(InputError, match=r"no proposals for 2 of 3 images: x, y\.(.|\n)*scripts/proposals.py generate"):
        require_images(store, ["x", "a", "y"], [(40, 60)] * 3)
    with pytest.raises(InputError, match=r"proposals of b were made on .* \(40, 60\), but it has \(41, 60\)"):
        require_images(store, ["a", "b"], [(40, 60), (41, 60)])


def test_the_released_format_on_real_data(shared):
    """Boxes in another order or of other images would not find the objects."""
    root = shared / "data/bccd"
    dataset = read_voc(root, "test")
    proposals = open_proposals(root / "selective_search/bccd_test.mat")
    assert proposal_recall(dataset, proposals, range(len(dataset))) == pytest.approx(0.868, abs=0.005)


MANY = np.array([[0, 0, 9, 3], [-5, 5, 20, 70], [0, 0, 9, 3], [9, 9, 9, 12], [70, 1, 80, 9], [1, 1, 7, 7]], np.float32)
SCORES = np.array([0.1, 0.2, 0.9, 1, 1, 0.3])


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        (Selection(unique=False), [[0, 0, 9, 3], [0, 5, 20, 40], [0, 0, 9, 3], [1, 1, 7, 7]]),
        (Selection(), [[0, 0, 9, 3], [0, 5, 20, 40], [1, 1, 7, 7]]),
        (Selection(by_score=True), [[0, 0, 9, 3], [1, 1, 7, 7], [0, 5, 20, 40]]),
        (Selection(min_side_px=6), [[0, 5, 20, 40], [1, 1, 7, 7]]),
        (Selection(min_side_px=6.5), [[0, 5, 20, 40]]),
        (Selection(max_proposals=2), [[0, 0, 9, 3], [0, 5, 20, 40]]),
        (Selection(min_side_px=4, max_proposals=1), [[0, 5, 20, 40]]),
    ],
)
def test_which_proposals_are_used(selection, left):
    """In an image of 60x40: one box stands over the border, one has no area, one lies outside."""
    assert select_proposals(MANY, SCORES, (40, 60), selection).tolist() == left


def test_an_image_without_proposals_and_a_file_without_scores():
    none = select_proposals(np.zeros((0, 4), np.float32), np.zeros(0), (40, 60), Selection(by_score=True))
    assert none.shape == (0, 4)
    by_score, as_they_are = (select_proposals(MANY, None, (40, 60), Selection(by_score=flag)) for flag in (True, False))
    assert by_score.tolist() == as_they_are.tolist()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("boxes", lambda x: x > 1),
        ("boxes", lambda x: x.astype(np.float64)),
        ("offsets", lambda x: x.astype(np.float32)),
        ("offsets", lambda x: x.astype(np.uint64)),
        ("offsets", lambda x: x[None]),
        ("offsets", lambda x: x[::-1].copy()),
        ("image_hws", lambda x: x[:, :1].copy()),
        ("image_hws", lambda x: np.concatenate([x, x[:, :1]], axis=1)),
        ("scores", lambda x: x > 0),
        ("scores", lambda x: x[:-1].copy()),
        ("image_ids", lambda x: x.astype(np.int32)),
    ],
)
def test_tensors_of_other_types_and_shapes_are_refused(tmp_path, name, change):
    boxes = np.array([[0, 0, 9, 9], [1, 1, 5, 5]], np.float32)
    images = [ImageProposals(id, boxes, np.array([2, 1], np.float32), (40, 60)) for id in "ab"]
    stream_store(tmp_path / "a.safetensors", images, {})
    tensors = load_file(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        metadata = file.metadata()
    save_file(tensors | {name: change(tensors[name])}, tmp_path / "b.safetensors", metadata)
    with pytest.raises(InputError, match=r"b\.safetensors: damaged proposal store"):
        ProposalStore(tmp_path / "b.safetensors")
    save_file(tensors, tmp_path / "b.safetensors", dict.fromkeys(metadata, "[" * 100000))
    with pytest.raises(InputError, match=r"b\.safetensors: damaged proposal store"):
        ProposalStore(tmp_path / "b.safetensors")
    save_file(tensors, tmp_path / "b.safetensors", metadata)
    assert len(ProposalStore(tmp_path / "b.safetensors")["b"]) == 2
