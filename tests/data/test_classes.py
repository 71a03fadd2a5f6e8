import pytest

from detector.data.classes import require_known
from detector.data.dataset import DetectionDataset
from detector.data.formats.voc import read_voc
from detector.errors import InputError


@pytest.fixture
def dataset(make_voc) -> DetectionDataset:
    return read_voc(
        make_voc({"train": {"a": [("ant", 1, 1, 9, 9), ("cat", 1, 1, 20, 20, 1)], "b": [("bee", 1, 1, 5, 5)]}}), "train"
    )


def test_objects_are_left_out_and_images_stay(dataset):
    rest = dataset.without_classes(["ant", "bee"])
    assert (rest.classes, rest.excluded, len(rest), rest.image_ids) == (("cat",), ("ant", "bee"), 2, ["a", "b"])
    truth = rest.ground_truth(0)
    assert (truth.labels.tolist(), truth.boxes.tolist(), truth.areas.tolist()) == ([1], [[0, 0, 20, 20]], [400])
    assert (truth.difficult.tolist(), truth.crowd.tolist(), truth.image_id) == ([True], [False], "a")
    assert len(rest.ground_truth(1).boxes) == 0
    assert (rest.name, rest.image(1).shape) == (dataset.name, (40, 60, 3))
    assert (rest.image_path(1).name, rest.records[1].annotation.name) == ("b.jpg", "b.xml")


def test_other_labels(dataset):
    rest = dataset.without_classes(["bee"]).with_classes(["cat", "dog", "ant"])
    assert [rest.ground_truth(index).labels.tolist() for index in range(2)] == [[3, 1], []]
    known = rest.with_classes(["bee", "cat", "ant"])  # as of a network that has learned bees
    assert known.classes == ("bee", "cat", "ant")
    assert [known.ground_truth(index).labels.tolist() for index in range(2)] == [[3, 2], []]


def test_an_unknown_class_says_how_to_leave_it_out(dataset):
    with pytest.raises(InputError, match=r"exclude_classes=\[bee\]:\n.*b\.xml: unknown class 'bee', 1 objects"):
        dataset.with_classes(["ant", "cat"])
    with pytest.raises(InputError, match="unknown class 'cat'"):
        dataset.without_classes(["bee"]).with_classes(["ant"])


def test_a_mistyped_exclusion():
    require_known(["cat"], ["ant", "cat"])
    with pytest.raises(InputError, match=r"data has no class 'cta' \(did you mean 'cat'\?\); it has ant, cat"):
        require_known(["cta"], {"cat", "ant"})
