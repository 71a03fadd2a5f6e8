import numpy as np
import pytest

from detector.builders.datasets import JoinedProposals
from detector.data.dataset import DetectionDataset, join, split_into_parts
from detector.data.formats.voc import read_voc
from detector.proposals.formats.records import ImageProposals
from detector.proposals.store import open_proposals, stream_store


@pytest.fixture
def parts(make_voc) -> list[DetectionDataset]:
    one = make_voc({"train": {"a": [("cat", 1, 1, 9, 9)], "b": [("dog", 1, 1, 5, 5)]}}, "one")
    two = make_voc({"train": {"c": [("bee", 1, 1, 7, 7), ("cat", 1, 1, 8, 8)]}, "same": {"a": []}}, "two")
    return [read_voc(one, "train"), read_voc(two, "train"), read_voc(two, "same")]


def test_two_data_sets_are_one(parts):
    joined = join(parts[:2])
    assert (joined.image_ids, joined.classes, len(joined)) == (["a", "b", "c"], ("bee", "cat", "dog"), 3)
    assert joined.name == "one-train+two-train"
    assert [joined.ground_truth(index).labels.tolist() for index in range(3)] == [[2], [3], [1, 2]]
    assert [joined.ground_truth(index).image_id for index in range(3)] == ["a", "b", "c"]
    assert [joined.records[index].annotation.name for index in range(3)] == ["a.xml", "b.xml", "c.xml"]
    assert joined.image_path(2) == parts[1].image_path(0)
    assert joined.image(2).shape == (40, 60, 3)
    other = joined.with_classes(["dog", "cat", "bee"])
    assert [other.ground_truth(index).labels.tolist() for index in range(3)] == [[2], [1], [3, 2]]
    assert parts[0].classes == ("cat", "dog")


def test_shared_ids_are_told_apart_by_part(parts):
    joined = join([parts[0], parts[2]])
    assert joined.image_ids == ["1-one-train/a", "1-one-train/b", "2-two-same/a"]
    assert joined.ground_truth(2).image_id == "2-two-same/a"
    assert joined.with_classes(["cat", "dog"]).image_ids == joined.image_ids


def test_the_parts_are_found_again_in_a_subset(parts):
    joined = join(parts[:2])
    assert [(part.image_ids, places) for part, places in split_into_parts(joined)] == [
        (["a", "b"], [0, 1]),
        (["c"], [2]),
    ]
    some = joined.without_classes(["bee"]).subset([2, 1])
    assert some.image_ids == ["c", "b"]
    assert [(part.image_ids, places) for part, places in split_into_parts(some)] == [(["b"], [1]), (["c"], [0])]
    assert [places for _, places in split_into_parts(joined.subset([1]))] == [[0], []]
    assert split_into_parts(parts[0]) == [(parts[0], [0, 1])]


def test_proposals_are_looked_up_under_the_part_s_own_id(tmp_path):
    paths = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    stream_store(paths[0], [ImageProposals("a", np.ones((1, 4), np.float32), np.array([5], np.float32))], {})
    stream_store(paths[1], [ImageProposals("a", np.zeros((2, 4), np.float32))], {})
    first, second = map(open_proposals, paths)
    proposals = JoinedProposals({"1-x/a": (first, "a"), "2-y/a": (second, "a")})
    assert (len(proposals["1-x/a"]), len(proposals["2-y/a"])) == (1, 2)
    assert proposals.scores("1-x/a").tolist() == [5]
    assert proposals.scores("2-y/a") is None


def test_a_subset_is_a_data_set_of_those_images_in_that_order(make_voc):
    root = make_voc({"train": {id: [(id, 1, 1, 20, 20)] for id in ("ant", "bee", "cow")}})
    whole = read_voc(root, "train")
    part = whole.subset([2, 0]).with_classes(["cow", "bee", "ant"])
    assert len(part) == 2
    assert part.image_ids == ["cow", "ant"]
    assert part.name == whole.name
    assert [part.ground_truth(index).image_id for index in range(2)] == ["cow", "ant"]
    assert [part.ground_truth(index).labels.tolist() for index in range(2)] == [[1], [3]]
    assert part.image_path(0).name == "cow.jpg"
    assert part.records[1].annotation.name == "ant.xml"
    assert part.image(0).shape == (40, 60, 3)
