import numpy as np
import pytest

from detector.data.classes import WithoutClasses
from detector.data.joined import JoinedDataset, JoinedProposals, parts_of
from detector.data.subset import Subset
from detector.data.voc import VocDataset
from detector.proposals.formats.records import ImageProposals
from detector.proposals.store import open_proposals, stream_store


@pytest.fixture
def parts(make_voc) -> list[VocDataset]:
    one = make_voc({"train": {"a": [("cat", 1, 1, 9, 9)], "b": [("dog", 1, 1, 5, 5)]}}, "one")
    two = make_voc({"train": {"c": [("bee", 1, 1, 7, 7), ("cat", 1, 1, 8, 8)]}, "same": {"a": []}}, "two")
    return [VocDataset(one, "train"), VocDataset(two, "train"), VocDataset(two, "same")]


def test_two_data_sets_are_one(parts):
    joined = JoinedDataset(parts[:2])
    assert (joined.image_ids, joined.classes, len(joined)) == (["a", "b", "c"], ("bee", "cat", "dog"), 3)
    assert joined.name == "one-train+two-train"
    assert [joined.ground_truth(index).labels.tolist() for index in range(3)] == [[2], [3], [1, 2]]
    assert [joined.ground_truth(index).image_id for index in range(3)] == ["a", "b", "c"]
    assert [joined.annotation_path(index).name for index in range(3)] == ["a.xml", "b.xml", "c.xml"]
    assert joined.image_path(2) == parts[1].image_path(0)
    assert joined.image(2).shape == (40, 60, 3)
    other = joined.with_classes(["dog", "cat", "bee"])
    assert [other.ground_truth(index).labels.tolist() for index in range(3)] == [[2], [1], [3, 2]]
    assert parts[0].classes == ("cat", "dog")


def test_shared_ids_are_told_apart_by_part(parts):
    joined = JoinedDataset([parts[0], parts[2]])
    assert joined.image_ids == ["1-one-train/a", "1-one-train/b", "2-two-same/a"]
    assert joined.ground_truth(2).image_id == "2-two-same/a"
    assert joined.with_classes(["cat", "dog"]).image_ids == joined.image_ids


def test_the_parts_are_found_again_in_a_subset(parts):
    joined = JoinedDataset(parts[:2])
    assert [(part.image_ids, places) for part, places in parts_of(joined)] == [(["a", "b"], [0, 1]), (["c"], [2])]
    some = Subset(WithoutClasses(joined, ["bee"]), [2, 1])
    assert some.image_ids == ["c", "b"]
    assert [(part.image_ids, places) for part, places in parts_of(some)] == [(["b"], [1]), (["c"], [0])]
    assert [places for _, places in parts_of(Subset(joined, [1]))] == [[0], []]
    assert parts_of(parts[0]) == [(parts[0], [0, 1])]


def test_proposals_are_looked_up_under_the_part_s_own_id(tmp_path):
    paths = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    stream_store(paths[0], [ImageProposals("a", np.ones((1, 4), np.float32), np.array([5], np.float32))], {})
    stream_store(paths[1], [ImageProposals("a", np.zeros((2, 4), np.float32))], {})
    first, second = map(open_proposals, paths)
    proposals = JoinedProposals({"1-x/a": (first, "a"), "2-y/a": (second, "a")})
    assert (len(proposals["1-x/a"]), len(proposals["2-y/a"])) == (1, 2)
    assert proposals.scores("1-x/a").tolist() == [5]
    assert proposals.scores("2-y/a") is None
