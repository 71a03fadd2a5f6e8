"""The paper's released proposals, which the datasets of VOC use if they are there."""

import logging

import numpy as np
import pytest

from detector.builders import datasets
from detector.data.formats.voc import read_voc
from detector.proposals.formats.mat import write_voc_mat
from detector.proposals.formats.records import ImageProposals
from detector.proposals.store import FileProposals

BOXES = [[0.0, 0, 20, 20], [1, 1, 21, 22], [0, 0, 60, 40], [5, 5, 30, 30]]


@pytest.fixture
def released(make_voc, tmp_path):
    """Two years of VOC; of the second one there are no released proposals."""
    for year in (2007, 2012):
        images = {part: {f"{year}_{part}": [("cat", 1, 1, 20, 20)]} for part in ("train", "val", "test")}
        root = make_voc(images, f"VOC{year}")
        ids = [f"{year}_{part}" for part in ("train", "val")]
        (root / "ImageSets/Main/trainval.txt").write_text("\n".join(ids))
    for split, parts in (("trainval", ("train", "val")), ("test", ("test",))):
        images = [ImageProposals(f"2007_{part}", np.array(BOXES, np.float32), None, (40, 60)) for part in parts]
        write_voc_mat(tmp_path / f"released/voc_2007_{split}.mat", images)
    return tmp_path


def proposals_of(settings, folder, part, *overrides: str):
    config = settings(
        "train", "data=voc07", f"data.root={folder}", "data.classes=null",
        f"data.released_proposals={folder}/released", f"proposals.folder={folder}/own", "proposals.mode=single",
        *overrides,
    )  # fmt: skip
    dataset = datasets.build_dataset(config.data, part)
    return dataset, datasets.build_proposals(config, dataset, [(40, 60)] * len(dataset), part)


def test_those_that_are_there_are_used(settings, released, caplog):
    caplog.set_level(logging.INFO)
    where = f"data.released_proposals={released}/released"
    for part in ("train", "val"):
        dataset, found = proposals_of(settings, released / "VOC2007", part, where)
        assert isinstance(found, FileProposals)
        assert found[dataset.image_ids[0]].tolist() == BOXES
        _, found = proposals_of(settings, released / "VOC2007", part, "data.released_proposals=null")
        assert not isinstance(found, FileProposals)
    _, found = proposals_of(settings, released / "VOC2007", "val", where, "data.val_split=val")
    assert found.path.name == "voc_2007_trainval.mat"  # which has the images of val too
    assert "is used instead" not in caplog.text


def test_each_joined_dataset_has_its_own_proposals(settings, released, caplog):
    caplog.set_level(logging.INFO)
    parts = "data.parts=[{root: VOC2007}, {root: VOC2007, train_split: test}, {root: VOC2012, val_split: null}]"
    _, found = proposals_of(settings, released, "train", parts)
    for image_id in ("2007_train", "2007_val", "2007_test"):
        assert found[image_id].tolist() == BOXES
    assert len(found["2012_train"]) > len(BOXES)
    assert caplog.text.count("is used instead") == 1
    assert "VOC2012-trainval: there is no voc_2012_trainval.mat of the paper's proposals in" in caplog.text
    assert "scripts/download_voc.py puts it: selective search (single) is used instead" in caplog.text


def test_kept_proposals_do_not_take_their_place(settings, released):
    root = released / "VOC2007"
    dataset, _ = proposals_of(settings, root, "val", "data.released_proposals=null")
    config = settings("train", "data=voc07", f"data.root={root}", f"data.released_proposals={released}/released")
    assert datasets.kept_proposals(config.data, dataset, root / "own", "single") == [None]
    without = config.data.with_values(released_proposals=None)
    assert datasets.kept_proposals(without, dataset, root / "own", "single") != [None]


def test_other_data_take_none(settings, released):
    dataset = read_voc(released / "VOC2007", "test")
    data = settings("train", "data=voc", f"data.root={released}/VOC2007").data
    assert datasets.released_proposals(data, dataset) is None
    for overlay in ("paper", "paper_voc12", "paper_voc0712", "paper_voc0712plus", "paper_m", "paper_stage_wise"):
        assert settings("train", f"experiment={overlay}").data.released_proposals == "data/selective_search_data"
    assert settings("train", "experiment=paper_coco", "data.root=x").data.released_proposals is None
