import json

import numpy as np
import pytest
from PIL import Image

from detector.data.formats.voc import read_voc
from detector.errors import InputError
from detector.proposals.formats.records import ImageProposals
from detector.proposals.generate import grid_boxes
from detector.proposals.store import ProposalStore, open_proposals, stream_store
from detector.proposals.union import common_metadata, interleave, unite
from scripts.proposals import main


def boxes(*rows: tuple) -> np.ndarray:
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def store(path, images: dict, generator: dict | None = None, hw: tuple | None = (40, 60)) -> ProposalStore:
    stream_store(path, [ImageProposals(id, item, image_hw=hw) for id, item in images.items()], generator or {})
    return ProposalStore(path)


A = boxes((0, 0, 20, 20), (0, 0, 60, 40))
B = boxes((30, 10, 50, 30), (0, 0, 20, 20.5), (5, 5, 9, 9))


def test_boxes_alternate_by_rank_without_near_duplicates():
    assert interleave([A, B], 0.9).tolist() == [*A[:1].tolist(), *B[:1].tolist(), *A[1:].tolist(), *B[2:].tolist()]
    assert len(interleave([A, B], 0.98)) == 5  # the IoU of the two is 0.976
    assert len(interleave([A, A], 1.0)) == 4
    assert interleave([boxes(), boxes()], 0.9).shape == (0, 4)


def test_union_keeps_sizes_and_what_could_not_be_read(tmp_path):
    reasons = {"unreadable": {"y": "broken", "z": "broken"}, "exif": "apply"}
    one = store(tmp_path / "1.safetensors", {"x": A, "y": boxes(), "z": boxes()}, reasons)
    other = store(tmp_path / "2.safetensors", {"z": B, "y": boxes(), "x": B}, {"unreadable": {"y": "broken"}}, hw=None)
    assert common_metadata([one, other]) == {"exif": "apply", "unreadable": {"y": "broken"}}
    assert [(item.image_id, len(item.boxes), item.image_hw) for item in unite([one, other], 0.9)] == [
        ("x", 4, (40, 60)), ("y", 0, (40, 60)), ("z", 3, (40, 60))
    ]  # fmt: skip


def test_files_that_do_not_belong_together(tmp_path):
    one = store(tmp_path / "1.safetensors", {"x": A}, {"exif": "apply"})
    with pytest.raises(InputError, match=r"2\.safetensors: has other images than .*1\.safetensors: 2 are in one of"):
        [*unite([one, store(tmp_path / "2.safetensors", {"y": A})], 0.9)]
    with pytest.raises(InputError, match="image x: proposals of images of different sizes"):
        [*unite([one, store(tmp_path / "3.safetensors", {"x": A}, hw=(60, 40))], 0.9)]
    another = store(tmp_path / "4.safetensors", {"x": A}, {"exif": "ignore"})
    with pytest.raises(InputError, match=r"4\.safe.* read with --exif ignore, those of .*1\.safe.* with --exif apply"):
        common_metadata([another, one])


def test_grid_union_info_and_recall_of_several(make_voc, tmp_path, capsys):
    def call(*arguments) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            main([str(item) for item in arguments])
        return end.value.code or 0, capsys.readouterr().out

    root = make_voc({"train": {"a": [("cat", 31, 11, 50, 30)], "b": [("cat", 1, 1, 60, 40)]}})
    data = ("--data", root, "--split", "train")
    grid, mine, both = (tmp_path / f"{name}.safetensors" for name in ("grid", "mine", "both"))
    assert call("grid", *data, "--out", grid)[0] == 0
    assert [len(ProposalStore(grid)[id]) for id in "ab"] == [1245, 1245]
    assert ProposalStore(grid)["a"][:59].tolist() == grid_boxes((40, 60)).tolist()
    store(mine, {"a": B, "b": B})
    assert call("union", mine, grid, "--nms", "0.9", "--out", both)[0] == 0
    status, printed = call("info", both)
    lines = dict(line.split(maxsplit=1) for line in printed.replace("made by", "made_by").splitlines())
    assert lines["images"] == "2, 2 of them with their size; ids: a, b"
    assert lines["scores"] == "no: the order is best first"
    assert lines["made_by"] == "exif apply, files ['mine.safetensors', 'grid.safetensors'], name union, nms 0.9"
    status, printed = call(
        "recall", mine, grid, both, *data, "--json", tmp_path / "r.json", "--plot", tmp_path / "r.png"
    )
    assert (status, printed.count("all proposals, ")) == (0, 3)
    recall = {path: of["groups"]["all"]["recall"]["all"][-1] for path, of in
              json.loads((tmp_path / "r.json").read_text()).items()}  # fmt: skip
    assert recall == {str(mine): 0.5, str(grid): 0.5, str(both): 1.0}
    assert Image.open(tmp_path / "r.png").size[0] > 500
    assert call("union", mine, grid, "--nms", "2", "--out", tmp_path / "x.safetensors")[0] == 2
    assert open_proposals(both)["a"][0].tolist() == B[0].tolist()
    assert read_voc(root, "train").image_ids == ["a", "b"]
