"""scripts/proposals.py as it is called, without starting a process for each call."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from detector.data.formats.voc import read_voc
from detector.errors import InputError
from detector.proposals.formats.records import ImageProposals
from detector.proposals.generate import proposals_for
from detector.proposals.store import ProposalStore, stream_store
from scripts.proposals import main


@pytest.fixture
def call(capsys):
    """Call the script: its exit status, what it printed, and its errors."""

    def call(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return end.value.code or 0, *capsys.readouterr()

    return call


def test_from_shards_to_a_table(call, small_shapes, tmp_path):
    data = ("--data", small_shapes, "--split", "test")
    shards = [tmp_path / f"part-{number}.safetensors" for number in (1, 2)]
    for number, path in enumerate(shards, start=1):
        status, printed, _ = call("generate", *data, "--out", path, "--mode", "single", "--shard", f"{number}/2")
        assert status == 0
        assert f"{path}: " in printed
    merged = tmp_path / "whole.safetensors"
    assert call("merge", *shards, "--out", merged)[0] == 0
    status, printed, _ = call("check", merged, *data, "--json", tmp_path / "faults.json")
    assert (status, set(json.loads((tmp_path / "faults.json").read_text())["missing"])) == (0, set())
    status, printed, _ = call("recall", merged, *data, "--json", tmp_path / "r.json", "--plot", tmp_path / "r.png")
    assert status == 0
    everything = json.loads((tmp_path / "r.json").read_text())["groups"]["all"]
    assert f"{everything['AR']['all']:.3f}" in printed
    assert everything["recall"]["all"][0] > 0.5
    assert (tmp_path / "r.png").is_file()
    status, printed, _ = call("convert", "--from", "store", "--to", "voc-mat", merged, tmp_path / "p.mat")
    assert status == 0
    assert "boxes of 3 images" in printed
    back = tmp_path / "back.safetensors"
    assert call("convert", "--from", "voc-mat", "--to", "store", *data, tmp_path / "p.mat", back)[0] == 0
    for image_id in ProposalStore(merged).image_ids:
        assert ProposalStore(back)[image_id] == pytest.approx(ProposalStore(merged)[image_id], abs=1e-4)


def test_check_says_by_its_status_that_it_found_something(call, small_shapes, tmp_path):
    dataset = read_voc(small_shapes, "test")
    stream_store(tmp_path / "p.safetensors", [ImageProposals(id, np.zeros((1, 4))) for id in dataset.image_ids], {})
    status, printed, _ = call("check", tmp_path / "p.safetensors", "--data", small_shapes, "--split", "test")
    assert status == 1
    assert "degenerate             3        3" in printed


def test_a_data_set_in_coco_layout(call, make_coco, tmp_path):
    root, out = make_coco({"val": {"a": [("cat", 1, 1, 30, 20)]}}), tmp_path / "p.safetensors"
    data = ("--data", root, "--annotations", "val.json", "--images", "images")
    assert call("generate", *data, "--out", out, "--mode", "single")[0] == 0
    assert (ProposalStore(out).image_ids, ProposalStore(out).image_hw("1")) == (["1"], (40, 60))
    assert call("check", out, *data)[0] == 0
    status, _, errors = call("check", out, *data[:4])
    assert (status, "there is no such file" in errors) == (2, True)


def test_images_are_read_as_training_is_to_read_them(call, small_shapes, tmp_path):
    root = shutil.copytree(small_shapes, tmp_path / "turned")
    for path in (root / "JPEGImages").glob("test_*.jpg"):
        exif = Image.Exif()
        exif[0x0112] = 3  # upside down: the size stays
        Image.open(path).save(path, exif=exif)
    stores, data = {}, ("--data", root, "--split", "test")
    first = read_voc(root, "test").image_ids[0]
    for exif in ("apply", "ignore"):
        path = tmp_path / f"{exif}.safetensors"
        assert call("generate", *data, "--out", path, "--mode", "single", "--exif", exif)[0] == 0
        stores[exif] = ProposalStore(path)
    assert not np.array_equal(stores["apply"][first], stores["ignore"][first])
    dataset = read_voc(root, "test")
    with pytest.raises(InputError, match=r"ignore\.safetensors: was made with --exif ignore, but data\.exif is apply"):
        proposals_for(dataset, [stores["apply"].image_hw(id) for id in dataset.image_ids],
                      str(tmp_path / "ignore.safetensors"), "single", tmp_path)  # fmt: skip
    status, _, errors = call("generate", *data, "--out", tmp_path / "q.safetensors", "--max-image-pixels", "1000")
    assert (status, "1000" in errors) == (2, True), errors


def test_wrong_input_is_named_and_ends_with_status_2(call, small_shapes, tmp_path):
    data = ("--data", small_shapes, "--split", "test")
    there, store = tmp_path / "there.safetensors", tmp_path / "p.safetensors"
    there.write_text("mine")
    stream_store(store, [ImageProposals("x", np.ones((1, 4)))], {})
    (tmp_path / "p.pkl").write_bytes(b"")
    from_store = ("convert", "--from", "store", "--to")
    for arguments, says in (
        (("generate", *data, "--out", there), "already exists and is not overwritten"),
        (("generate", *data, "--out", tmp_path / "p.npz"), "must end in .safetensors"),
        (("generate", *data, "--out", tmp_path / "q.safetensors", "--workers", "0"), "--workers: 0 must be"),
        (("generate", *data, "--out", tmp_path / "q.safetensors", "--shard", "3/2"), "'3/2' is not a shard"),
        (("generate", "--data", small_shapes, "--split", "x", "--out", tmp_path / "q.safetensors"), "no such split"),
        (("merge", store, "--out", tmp_path / "q.safetensors"), "was not made with --shard"),
        ((*from_store, "npz", store, there), "already exists"),
        ((*from_store, "store", store, tmp_path / "q.npz"), "must end in .safetensors"),
        (
            (*from_store, "npz", "--data", small_shapes, store, tmp_path / "q"),
            "name a split, of which it has test, train",
        ),
        ((*from_store, "npz", "--split", "test", store, tmp_path / "q"), "--split belongs to --data"),
        ((*from_store, "npz", "--format", "csv", store, tmp_path / "q"), "--format belongs to --data"),
        ((*from_store, "npz", *data, store, tmp_path / "q"), "no proposals for 3 of the 3 images"),
        (("convert", "--from", "detectron", "--to", "npz", tmp_path / "p.pkl", tmp_path / "q"), "--i-trust-this-file"),
        (("recall", store, *data), "no proposals for 3 of 3 images"),
        (("recall", store, *data, "--plot", tmp_path / "q.jpg"), "must end in .png"),
        (("check", store, *data, "--json", there), "already exists"),
        (("check", store, *data, "--images", "x"), "--images belongs to --annotations"),
    ):
        status, _, errors = call(*arguments)
        assert (status, says in errors) == (2, True), errors
    assert {path.name for path in tmp_path.iterdir()} == {"there.safetensors", "p.safetensors", "p.pkl"}
    assert there.read_text() == "mine"


def test_a_trusted_pickle_and_a_declared_layout_are_passed_on(call, tmp_path):
    boxes = np.array([[1, 2, 30, 40]], np.float32)
    stream_store(tmp_path / "p.safetensors", [ImageProposals("x", boxes)], {})
    assert (
        call("convert", "--from", "store", "--to", "detectron", tmp_path / "p.safetensors", tmp_path / "p.pkl")[0] == 0
    )
    options = ("--i-trust-this-file", "--order", "yxyx", "--base", "1")
    out = tmp_path / "q.safetensors"
    assert call("convert", "--from", "detectron", "--to", "store", *options, tmp_path / "p.pkl", out)[0] == 0
    assert ProposalStore(out)["x"].tolist() == [[1, 0, 39, 29]]  # 1 2 29 39 in the pickle


def test_generate_skips_one_truncated_image_in_a_hundred(call, make_voc, tmp_path, caplog):
    root = make_voc({"train": {f"{number:03d}": [] for number in range(100)}})
    cut = root / "JPEGImages/007.jpg"
    cut.write_bytes(cut.read_bytes()[:-50])
    command = ("generate", "--data", root, "--split", "train", "--mode", "single", "--out")
    assert call(*command, tmp_path / "p.safetensors")[0] == 0
    assert "no proposals for 007: damaged image" in caplog.text
    status, _, errors = call(*command, tmp_path / "q.safetensors", "--max-bad-fraction", 0)
    assert status == 2
    assert "007: damaged image" in errors
    status, _, errors = call(*command, tmp_path / "q.safetensors", "--max-bad-fraction", 2)
    assert (status, errors) == (2, "error: --max-bad-fraction: 2.0 must be from 0 to 1\n")
