import numpy as np

from detector.data.formats.voc import read_voc
from detector.proposals.check import FAULTS, fault_table, find_faults
from detector.proposals.formats.records import ImageProposals
from detector.proposals.store import ProposalStore, stream_store


def test_each_fault_is_found_where_it_is(make_voc, tmp_path):
    dataset = read_voc(make_voc({"train": {id: [] for id in ("gone", "good", "bad", "small", "none")}}), "train")
    nan, inf = np.nan, np.inf
    bad = [
        [0, 0, 60, 40],
        [nan, 0, 1, 1], [0, 0, inf, 1],  # nan
        [5, 5, 5, 9], [9, 9, 8, 9],  # degenerate
        [-0.5, 0, 9, 9], [0, 0, 60.5, 9], [0, 0, 9, 41],  # out of bounds
        [0, 0, 60, 40], [-0.0, 0, 60, 40],  # duplicate
    ]  # fmt: skip
    images = [
        ImageProposals("good", np.array([[0, 0, 60, 40], [1, 1, 60.005, 40]]), None, (40, 60)),
        ImageProposals("bad", np.array(bad, np.float32)),
        ImageProposals("small", np.ones((1, 4)) * [0, 0, 1, 1], None, (20, 30)),
        ImageProposals("none", np.zeros((0, 4)), None, (40, 60)),
        ImageProposals("other", np.ones((1, 4)), None, (40, 60)),
    ]  # fmt: skip
    stream_store(tmp_path / "p.safetensors", images, {})
    faults = find_faults(ProposalStore(tmp_path / "p.safetensors"), dataset)
    assert faults == {
        "missing": {"gone": 1},
        "extra": {"other": 1},
        "other size": {"small": 1},
        "empty": {"none": 1},
        "nan": {"bad": 2},
        "degenerate": {"bad": 2},
        "out of bounds": {"bad": 3},
        "duplicate": {"bad": 2},
    }
    assert [line.split("  ")[0] for line in fault_table(faults).splitlines()[1:]] == list(FAULTS)
