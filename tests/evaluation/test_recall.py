import numpy as np
import pytest

from detector.data.formats.voc import read_voc
from detector.evaluation.recall import recall_table, score_recall, write_recall_plot
from detector.proposals.store import open_proposals
from tests.conftest import ground_truth

# A cat of 10x10 whose best proposal comes 11th with IoU 0.72, and a dog of 100x100 whose only one has 0.5.
TRUTHS = [ground_truth("a", (1, 0, 0, 10, 10)), ground_truth("b", (2, 0, 0, 100, 100), (1, 0, 0, 9, 9, True))]
FAR = [[50, 50, 60, 60]] * 10
PROPOSALS = [np.array([*FAR, [0, 0, 10, 7.2]], np.float32), np.array([[0, 0, 100, 50]], np.float32)]


@pytest.fixture
def result() -> dict:
    return score_recall(TRUTHS, PROPOSALS, ["cat", "dog", "emu"])


def test_recall_by_number_size_and_class(result):
    groups = result["groups"]
    assert {name: group["objects"] for name, group in groups.items()} == {
        "all": 2, "small": 1, "medium": 0, "large": 1, "cat": 1, "dog": 1, "emu": 0,
    }  # fmt: skip
    assert result["boxes_per_image"] == 6
    assert groups["cat"]["recall"]["10"] == [0] * 10
    assert groups["cat"]["recall"]["30"] == groups["small"]["recall"]["all"] == [1] * 5 + [0] * 5  # 0.5 ... 0.7
    assert groups["dog"]["recall"]["10"] == groups["large"]["recall"]["10"] == [1] + [0] * 9
    assert groups["all"]["recall"]["all"] == [1, *[0.5] * 4, *[0] * 5]
    assert groups["all"]["AR"]["10"] == pytest.approx(0.05)
    assert groups["all"]["AR"]["all"] == pytest.approx(0.3)
    assert groups["emu"]["AR"]["all"] is None


def test_difficult_objects_and_crowds_are_not_asked_for():
    truths = [ground_truth("a", (1, 0, 0, 9, 9, False), (1, 20, 20, 29, 29, True), (1, 40, 40, 49, 49, False, True))]
    everything = score_recall(truths, [np.array([[0, 0, 9, 9]], np.float32)], ["cat"])["groups"]["all"]
    assert (everything["objects"], everything["AR"]["10"]) == (1, 1)


def test_against_a_slow_and_obvious_way():
    random = np.random.default_rng(0)

    def boxes(count):
        low = random.random((count, 2)) * 40
        return np.concatenate([low, low + 20 + random.random((count, 2)) * 40], axis=1).astype(np.float32)

    truths = [ground_truth(str(n), *((1, *box) for box in boxes(5))) for n in range(20)]
    proposals = [boxes(int(random.integers(0, 120))) for _ in truths]
    got = score_recall(truths, proposals, ["cat"])["groups"]["cat"]["recall"]

    def overlap(one, other):
        width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
        shared = max(width, 0) * max(height, 0)
        return shared / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - shared)

    for number in (10, 30, 100):
        for index, iou in enumerate(np.arange(50, 100, 5) / 100):
            found = [
                any(overlap(box.tolist(), other.tolist()) >= iou for other in given[:number])
                for truth, given in zip(truths, proposals, strict=True)
                for box in truth.boxes
            ]
            assert got[str(number)][index] == pytest.approx(sum(found) / 100)


def test_no_image_and_no_proposal():
    assert score_recall([], [], ["cat"])["groups"]["all"] == {"objects": 0} | {
        key: dict.fromkeys(("10", "30", "100", "300", "1000", "2000", "all")) for key in ("AR", "recall")
    }
    nothing = score_recall(TRUTHS[:1], [np.zeros((0, 4), np.float32)], ["cat"])
    assert nothing["groups"]["cat"]["AR"]["all"] == 0


def test_the_table_and_the_plot(result, tmp_path):
    lines = recall_table(result).splitlines()
    assert lines[0] == "all proposals, 6 per image"
    assert "cat           1   1.000   1.000   1.000   0.000   0.000   0.500" in lines
    assert lines[-1].split() == ["emu", "0", *["-"] * 7]
    write_recall_plot(tmp_path / "p.png", result)
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_published_recall_of_the_boxes_of_bccd(shared):
    root = shared / "data/bccd"
    dataset, proposals = read_voc(root, "test"), open_proposals(root / "selective_search/bccd_test.mat")
    truths = [dataset.ground_truth(index) for index in range(len(dataset))]
    groups = score_recall(truths, [proposals[id] for id in dataset.image_ids], dataset.classes)["groups"]
    at = {name: (round(r[0], 3), round(r[4], 3)) for name in dataset.classes for r in [groups[name]["recall"]["all"]]}
    assert at == {"WBC": (1.000, 0.845), "RBC": (0.857, 0.522), "Platelets": (0.913, 0.348)}
