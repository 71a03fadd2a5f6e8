import logging
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from detector.data import generate
from detector.data.check import check_data, proposal_recall
from detector.data.generate import generate_proposals, proposals_for, store_path
from detector.data.proposals import ProposalStore
from detector.data.voc import VocDataset
from detector.errors import InputError
from tests.conftest import REPOSITORY


@pytest.fixture
def reader(small_shapes) -> VocDataset:
    return VocDataset(small_shapes, "train")


def test_generated_proposals_find_the_objects(reader, tmp_path):
    generate_proposals(reader, tmp_path / "p.safetensors", "fast", workers=2)
    store = ProposalStore(tmp_path / "p.safetensors")
    assert store.image_ids == reader.image_ids
    assert store.image_hw("train_0") == reader.image(0).shape[:2]
    assert store.generator["mode"] == "fast"
    assert proposal_recall(reader, store, range(len(reader))) > 0.85
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.safetensors", "p.safetensors.lock"]


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(reader, tmp_path, monkeypatch):
    generate_proposals(reader, tmp_path / "whole.safetensors", "single", workers=2)
    search, calls = generate.selective_search, []

    def stops(image, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return search(image, **options)

    monkeypatch.setattr(generate, "selective_search", stops)
    with pytest.raises(KeyboardInterrupt):
        generate_proposals(reader, tmp_path / "p.safetensors", "single", workers=1)
    assert not (tmp_path / "p.safetensors").exists()
    for other, mode in ((reader, "fast"), (VocDataset(reader.root, "test"), "single")):
        with pytest.raises(InputError, match="begun for other images or another mode; delete it"):
            generate_proposals(other, tmp_path / "p.safetensors", mode, workers=1)
    generate_proposals(reader, tmp_path / "p.safetensors", "single", workers=1)
    assert len(calls) == 4 + 3  # three of six images were done
    assert (tmp_path / "p.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_more_images_than_a_process_may_have_files_open(small_shapes, tmp_path):
    root = tmp_path / "many"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    ids = [f"{number:03d}" for number in range(100)]
    (root / "ImageSets/Main/train.txt").write_text("\n".join(ids))
    for image_id in ids:
        Image.new("RGB", (12, 10)).save(root / f"JPEGImages/{image_id}.jpg")
        (root / f"Annotations/{image_id}.xml").write_text("<annotation></annotation>")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64));"
        "sys.argv[1:] = ['generate', '--data', sys.argv[1], '--split', 'train', '--out', sys.argv[2]];"
        "from scripts.proposals import main; main()"
    )
    command = [sys.executable, "-c", code, str(root), str(tmp_path / "p.safetensors")]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(ProposalStore(tmp_path / "p.safetensors")) == 100


def test_of_two_processes_one_works_and_the_other_waits(small_shapes, tmp_path):
    code = (
        "import sys; from pathlib import Path;"
        "from detector.data import generate; from detector.data.voc import VocDataset;"
        "search = generate.selective_search; calls = [];"
        "generate.selective_search = lambda *a, **b: calls.append(1) or search(*a, **b);"
        "generate.generate_proposals(VocDataset(sys.argv[1], 'train'), Path(sys.argv[2]), 'single', 1);"
        "print(len(calls))"
    )
    command = [sys.executable, "-c", code, str(small_shapes), str(tmp_path / "p.safetensors")]
    both = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate()[0].strip() for process in both) == ["0", "6"]


def test_the_command_survives_being_killed(small_shapes, reader, tmp_path):
    out = tmp_path / "p.safetensors"
    command = [sys.executable, "scripts/proposals.py", "generate", "--data", str(small_shapes), "--split", "train",
               "--out", str(out), "--mode", "quality", "--workers", "1"]  # fmt: skip
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    parts = tmp_path / "p.safetensors.unfinished"
    while process.poll() is None and len(list(parts.glob("*.npz"))) < 2:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not out.exists()
    done = {path: path.stat().st_mtime_ns for path in parts.glob("*.npz")}
    assert 2 <= len(done) < 6
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"{6 - len(done)} of 6 images left" in result.stdout
    generate_proposals(reader, tmp_path / "whole.safetensors", "quality", workers=2)
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 2
    assert "is there already" in result.stderr


def test_the_kept_file_is_made_once_and_named_after_all_it_depends_on(reader, small_shapes, tmp_path, make_voc, caplog):
    caplog.set_level(logging.INFO)
    hws = check_data(reader).image_hws
    proposals_for(reader, hws, None, "single", tmp_path)
    path = store_path(tmp_path, reader, "single")
    made = path.stat().st_mtime_ns
    assert f"-> {path}" in caplog.text
    assert len(proposals_for(reader, hws, None, "single", tmp_path)) == 6
    assert path.stat().st_mtime_ns == made
    names = {path.name, store_path(tmp_path, reader, "fast").name}
    names.add(store_path(tmp_path, VocDataset(small_shapes, "test"), "single").name)
    one = VocDataset(make_voc({"train": {"a": [("cat", 1, 1, 9, 9)]}}, "one"), "train")
    names.add(store_path(tmp_path, one, "single").name)
    path = one.root / "JPEGImages/a.jpg"
    data = bytearray(path.read_bytes())
    data[-10] ^= 1  # another picture, in a file of the same size
    path.write_bytes(data)
    names.add(store_path(tmp_path, one, "single").name)
    assert len(names) == 5


def test_boxes_in_another_order_are_noticed(reader, tmp_path, caplog):
    hws = check_data(reader).image_hws
    store = proposals_for(reader, hws, None, "fast", tmp_path)
    assert "hardly any object" not in caplog.text
    swapped = [np.asarray(store[id])[:, [1, 0, 3, 2]] * 0.4 for id in reader.image_ids]
    generate.write_store(tmp_path / "swapped.safetensors", reader.image_ids, swapped, hws, {})
    proposals_for(reader, hws, str(tmp_path / "swapped.safetensors"), "fast", tmp_path)
    assert "hardly any object has a proposal" in caplog.text


def test_recall_of_literal_boxes(make_voc):
    root = make_voc({"train": {"a": [("cat", 1, 1, 10, 10), ("cat", 21, 21, 30, 30)], "b": []}})
    reader = VocDataset(root, "train")
    proposals = {"a": np.array([[0, 0, 10, 5], [20, 20, 30, 24.9]], np.float32), "b": np.zeros((0, 4), np.float32)}
    assert proposal_recall(reader, proposals, [0, 1]) == 0.5
    assert proposal_recall(reader, proposals, [0], iou=0.4) == 1.0
    assert proposal_recall(reader, proposals, [1]) == 1.0
