"""Proposals that are not there, are no numbers, or are of other images: the cases 46 to 50 of FAULTS.md."""

import pickle

import numpy as np
import pytest

from detector.data.check import check_proposals
from detector.data.dataset import DetectionDataset
from detector.data.formats.voc import read_voc
from detector.data.image import ImageOptions
from detector.data.loader import TransformedDataset
from detector.data.proposal_selection import Selection, select_proposals
from detector.data.transforms import Resize
from detector.errors import InputError
from detector.proposals.generate import proposals_for, store_path
from detector.proposals.store import ProposalStore, open_proposals, require_images, write_store

HW = (40, 60)


def store(path, **boxes) -> ProposalStore:
    """A store with these boxes of images of 60x40."""
    arrays = [np.array(item, dtype=np.float32).reshape(-1, 4) for item in boxes.values()]
    write_store(path, list(boxes), arrays, [HW] * len(boxes), {})
    return open_proposals(path)


@pytest.fixture
def dataset(make_voc) -> DetectionDataset:
    return read_voc(make_voc({"train": {"a": [("cat", 1, 1, 20, 20)], "b": []}}), "train")


def test_case_46_missing_images_are_named_with_the_command(tmp_path, dataset):
    proposals = store(tmp_path / "p.safetensors", a=[[0, 0, 9, 9]])
    with pytest.raises(InputError, match=r"no proposals for 1 of 2 images: b(.|\n)*scripts/proposals\.py generate"):
        require_images(proposals, dataset.image_ids, [HW] * 2)


def test_case_47_what_is_no_box_is_left_out_and_counted(tmp_path, dataset):
    nan, inf = float("nan"), float("inf")
    bad = [[0, 0, nan, 9], [0, 0, inf, 9], [9, 9, 4, 12], [5, 5, 5, 9], [70, 1, 99, 9], [-9, -9, -1, -1]]
    proposals = store(tmp_path / "p.safetensors", a=[*bad, [-5, 3, 999, 9], [1, 2, 3, 4]], b=[])
    assert check_proposals(proposals, ["a", "b"], [HW] * 2) == (
        "8 proposals of 2 images, 4 per image; skipped: 2 not numbers, 4 without area in their image; "
        "1 images have none"
    )
    samples = TransformedDataset(dataset, proposals, Resize([40], 60))
    assert samples.original(0).proposals.tolist() == [[0, 3, 60, 9], [1, 2, 3, 4]]
    assert samples.original(1).proposals.shape == (0, 4)  # the last image of the file


def test_case_47_scores_go_with_their_boxes():
    boxes = np.array([[0, 0, np.inf, 9], [-np.inf, 0, 9, 9], [1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
    best_first = Selection(by_score=True)
    used = select_proposals(boxes, np.array([9, 8, 1, 2], np.float32), HW, best_first)
    assert used.tolist() == [[5, 6, 7, 8], [1, 2, 3, 4]]


def test_case_48_boxes_made_on_another_size_are_an_error(tmp_path, dataset):
    proposals = store(tmp_path / "p.safetensors", a=[[0, 0, 9, 9]], b=[[0, 0, 9, 9]])
    with pytest.raises(InputError, match=r"the proposals of b were made on .*\(40, 60\), but it has \(80, 120\)"):
        require_images(proposals, ["a", "b"], [HW, (80, 120)])


def test_case_49_boxes_are_matched_by_image_id_never_by_position(tmp_path, dataset):
    proposals = store(tmp_path / "p.safetensors", b=[[1, 1, 5, 5]], a=[[0, 0, 20, 20]])
    samples = TransformedDataset(dataset, proposals, Resize([40], 60))
    assert [samples.original(index).proposals.tolist() for index in range(2)] == [[[0, 0, 20, 20]], [[1, 1, 5, 5]]]


def test_case_49_boxes_of_other_images_have_a_low_recall(tmp_path, dataset, caplog):
    store(tmp_path / "p.safetensors", a=[[30, 20, 60, 40]], b=[])
    proposals_for(dataset, [HW] * 2, str(tmp_path / "p.safetensors"), "fast", tmp_path)
    assert "hardly any object has a proposal: are these boxes of other images, or in another order?" in caplog.text


@pytest.mark.parametrize("name", ["p.pkl", "p.pickle", "p.npy", "p"])
def test_case_50_other_formats_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({"a": [[0, 0, 9, 9]]}))
    with pytest.raises(InputError, match=rf"{name}: proposals are read from \.safetensors"):
        open_proposals(tmp_path / name)


def test_case_50_a_store_that_is_replaced_while_it_is_read(tmp_path):
    """Writers replace files, never change them, so that an open one keeps its contents."""
    opened = store(tmp_path / "p.safetensors", a=[[0, 0, 9, 9]])
    store(tmp_path / "p.safetensors", a=[[5, 5, 6, 6]])
    assert opened["a"].tolist() == [[0, 0, 9, 9]]
    assert open_proposals(tmp_path / "p.safetensors")["a"].tolist() == [[5, 5, 6, 6]]


def test_exif_is_part_of_what_kept_proposals_are_named_after(make_voc, tmp_path):
    root = make_voc({"train": {"a": []}})
    names = {
        store_path(tmp_path, read_voc(root, "train", image_options=ImageOptions(exif=exif)), "fast").name
        for exif in ("apply", "ignore")
    }
    assert len(names) == 2
