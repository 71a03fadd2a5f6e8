import io
import logging
import multiprocessing
import re
import resource
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image

from detector import selective_search
from detector.data.check import check_data, proposal_recall
from detector.data.dataset import DetectionDataset
from detector.data.formats.voc import read_voc
from detector.errors import InputError
from detector.proposals import generate
from detector.proposals.formats.records import ImageProposals
from detector.proposals.generate import generate_proposals, merge_shards, proposals_for, store_path
from detector.proposals.search import grid_boxes
from detector.proposals.store import ProposalStore, require_present, stream_store
from tests.conftest import REPOSITORY


@pytest.fixture
def dataset(small_shapes) -> DetectionDataset:
    return read_voc(small_shapes, "train")


def test_generated_proposals_find_the_objects(dataset, tmp_path):
    generate_proposals(dataset, tmp_path / "p.safetensors", "fast", workers=2)
    store = ProposalStore(tmp_path / "p.safetensors")
    assert store.image_ids == dataset.image_ids
    assert store.image_hw("train_0") == dataset.image(0).shape[:2]
    assert store.generator["mode"] == "fast"
    assert proposal_recall(dataset, store, range(len(dataset))) > 0.85
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.safetensors"]


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(dataset, tmp_path, monkeypatch):
    generate_proposals(dataset, tmp_path / "whole.safetensors", "single", workers=2)
    search, calls = selective_search.selective_search, []

    def stops(image, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return search(image, **options)

    monkeypatch.setattr(selective_search, "selective_search", stops)
    with pytest.raises(KeyboardInterrupt):
        generate_proposals(dataset, tmp_path / "p.safetensors", "single", workers=1)
    assert not (tmp_path / "p.safetensors").exists()
    for other, mode in ((dataset, "fast"), (read_voc(dataset.image_path(0).parents[1], "test"), "single")):
        with pytest.raises(InputError, match="started for other images or another mode: delete it"):
            generate_proposals(other, tmp_path / "p.safetensors", mode, workers=1)
    generate_proposals(dataset, tmp_path / "p.safetensors", "single", workers=1)
    assert len(calls) in (4 + 3, 4 + 4)  # three of six images were done; a thread may have begun another in vain
    assert (tmp_path / "p.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.slow
def test_more_images_than_a_process_may_have_files_open(small_shapes, tmp_path):
    root = tmp_path / "many"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    ids = [f"{number:03d}" for number in range(100)]
    (root / "ImageSets/Main/train.txt").write_text("\n".join(ids))
    for image_id in ids:
        Image.new("RGB", (12, 10)).save(root / f"JPEGImages/{image_id}.jpg")
        (root / f"Annotations/{image_id}.xml").write_text("<annotation></annotation>")
    command = [sys.executable, "scripts/proposals.py", "generate", "--data", str(root), "--split", "train",
               "--out", str(tmp_path / "p.safetensors")]  # fmt: skip
    few_files = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (64, 64))
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, preexec_fn=few_files)
    assert result.returncode == 0, result.stderr
    assert len(ProposalStore(tmp_path / "p.safetensors")) == 100


def test_of_two_processes_one_works_and_the_other_waits(dataset, tmp_path, monkeypatch):
    processes, calls = multiprocessing.get_context("fork"), []
    search, counts = selective_search.selective_search, processes.Queue()
    monkeypatch.setattr(selective_search, "selective_search", lambda *a, **b: calls.append(1) or search(*a, **b))

    def work():
        generate_proposals(dataset, tmp_path / "p.safetensors", "single", 1)
        counts.put(len(calls))

    both = [processes.Process(target=work) for _ in range(2)]
    for process in both:
        process.start()
    assert sorted(counts.get(timeout=100) for _ in both) == [0, 6]
    for process in both:
        process.join()
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def test_generation_killed_three_times_ends_with_the_same_bytes(dataset, tmp_path):
    out, parts = tmp_path / "p.safetensors", tmp_path / "p.safetensors.unfinished"
    done: dict = {}
    for enough in (1, 2, 4):
        # a process of its own, without the seconds that a new interpreter would need
        process = multiprocessing.get_context("fork").Process(
            target=generate_proposals, args=(dataset, out, "quality", 1)
        )
        process.start()
        while process.is_alive() and len(list(parts.glob("*.npz"))) < enough:
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not out.exists()
        times = {path: path.stat().st_mtime_ns for path in parts.glob("*.npz")}
        assert enough <= len(times) < 6
        assert done.items() <= times.items()  # nothing was done twice
        done = times
    generate_proposals(dataset, out, "quality", workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]
    generate_proposals(dataset, tmp_path / "whole.safetensors", "quality", workers=2)
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_shards_merged_are_the_store_of_one_run(dataset, small_shapes, tmp_path):
    generate_proposals(dataset, tmp_path / "whole.safetensors", "single", workers=2)
    one, two, three = paths = [tmp_path / f"{number}.safetensors" for number in (1, 2, 3)]
    generate_proposals(dataset, one, "single", 2, shard=(1, 2))
    generate_proposals(dataset, two, "single", 2, shard=(2, 2))
    assert ProposalStore(one).image_ids == ["train_0", "train_2", "train_4"]
    merged = tmp_path / "merged.safetensors"
    merge_shards([two, one], merged)
    assert merged.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()

    generate_proposals(dataset, three, "single", 2, shard=(2, 3))
    other_data, other_mode = tmp_path / "data.safetensors", tmp_path / "mode.safetensors"
    generate_proposals(read_voc(small_shapes, "test"), other_data, "single", 2, shard=(2, 2))
    generate_proposals(dataset, other_mode, "fast", 2, shard=(2, 2))
    digest = ProposalStore(one).generator | {"shard": [1, 1]}
    stream_store(tmp_path / "half.safetensors", [ImageProposals("train_0", np.ones((1, 4)))], digest)
    for number, odd in enumerate((5, ["a", "b"], [1], None, [0, 0], [3, 2])):
        stream_store(tmp_path / f"odd{number}.safetensors", [], {"shard": odd})
        with pytest.raises(InputError, match="was not made with --shard"):
            merge_shards([tmp_path / f"odd{number}.safetensors"], tmp_path / "never.safetensors")
    for given, says in (
        ([tmp_path / "half.safetensors"], "the shards do not have the images of their dataset"),
        ([one], "1 of 2 shards are missing, numbered 2: generate them with --shard 2/2"),
        ([one, two, two], r"2\.safetensors: is shard 2 of 2, as .*2\.safetensors is"),
        ([one, paths[2]], r"3\.safetensors: is shard 2 of 3, but .*1\.safetensors has another number of shards"),
        ([one, other_data], r"data\.safetensors: is of another dataset, mode or version than .*1\.safetensors"),
        ([one, other_mode], r"mode\.safetensors: is of another dataset, mode"),
        ([tmp_path / "whole.safetensors"], r"whole\.safetensors: was not made with --shard"),
    ):
        with pytest.raises(InputError, match=says):
            merge_shards(given, tmp_path / "never.safetensors")
    assert not (tmp_path / "never.safetensors").exists()


def test_unreadable_images_are_named_up_to_a_fraction(make_voc, tmp_path, caplog):
    root = make_voc({"train": {name: [] for name in "abcd"}})
    cut = root / "JPEGImages/b.jpg"
    cut.write_bytes(cut.read_bytes()[:-50])
    dataset = read_voc(root, "train")
    with pytest.raises(InputError, match=r"fraction 0\.24 of its 4 images .*: b: damaged .*\(--max-bad-fraction\)"):
        generate_proposals(dataset, tmp_path / "p.safetensors", "single", 1, max_bad_fraction=0.24)
    generate_proposals(dataset, tmp_path / "p.safetensors", "single", 1, max_bad_fraction=0.25)
    store = ProposalStore(tmp_path / "p.safetensors")
    assert [image_id in store for image_id in "abcd"] == [True, False, True, True]
    assert list(store.unreadable) == ["b"]
    assert store.unreadable["b"].startswith("damaged image")
    assert f"no proposals for b: {store.unreadable['b']}" in caplog.text
    with pytest.raises(InputError, match=r"1 of 4 images, which could not be read when .*: damaged image"):
        require_present(store, dataset.image_ids)
    assert list(store.raw.rows) == ["a", "c", "d"]  # as other formats are given

    shards = [tmp_path / f"{number}.safetensors" for number in (1, 2)]
    for number, path in enumerate(shards, start=1):
        generate_proposals(dataset, path, "single", 1, (number, 2), max_bad_fraction=0.5)
    merge_shards(shards, tmp_path / "merged.safetensors")
    assert (tmp_path / "merged.safetensors").read_bytes() == (tmp_path / "p.safetensors").read_bytes()


def test_the_limit_of_unreadable_images_holds_for_a_resumed_call(make_voc, tmp_path, monkeypatch):
    root = make_voc({"train": {name: [] for name in "ab"}})
    (root / "JPEGImages/a.jpg").write_bytes(b"")
    dataset = read_voc(root, "train")

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(selective_search, "selective_search", stop)
    with pytest.raises(KeyboardInterrupt):
        generate_proposals(dataset, tmp_path / "p.safetensors", "single", 1, max_bad_fraction=0.5)
    with pytest.raises(InputError, match="more than the fraction 0 of its 2 images"):
        generate_proposals(dataset, tmp_path / "p.safetensors", "single", 1, max_bad_fraction=0)


def test_a_missing_image_counts_as_unreadable(make_voc, tmp_path):
    root = make_voc({"train": {name: [] for name in "ab"}})
    (root / "JPEGImages/a.jpg").unlink()
    dataset = read_voc(root, "train")
    generate_proposals(dataset, tmp_path / "p.safetensors", "single", 1, max_bad_fraction=0.5)
    assert list(ProposalStore(tmp_path / "p.safetensors").unreadable) == ["a"]


def test_an_image_with_next_to_nothing_to_see_gets_a_grid(make_voc, small_shapes, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    dataset = read_voc(make_voc({"train": {"gray": [], "grey": []}}), "train")
    reader_of_scenes = read_voc(small_shapes, "train")
    generate_proposals(reader_of_scenes, tmp_path / "scenes.safetensors", "single", workers=1)
    assert "grid" not in caplog.text
    generate_proposals(dataset, tmp_path / "p.safetensors", "single", workers=1)
    assert "2 images gave fewer than 50 boxes and have the boxes of a grid appended: gray, grey" in caplog.text
    boxes = ProposalStore(tmp_path / "p.safetensors")["gray"]
    assert 50 <= len(boxes) == len(np.unique(boxes, axis=0))
    assert {tuple(box) for box in grid_boxes((40, 60))} <= {tuple(box) for box in boxes}


def test_the_grid_of_literal_numbers():
    grid = grid_boxes((40, 60)).tolist()
    assert len(grid) == 1 + 9 + 49
    assert grid[:4] == [[0, 0, 60, 40], [0, 0, 30, 20], [15, 0, 45, 20], [30, 0, 60, 20]]
    assert grid[-1] == [45, 30, 60, 40]


def test_without_a_terminal_the_log_says_how_it_goes(dataset, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(generate, "LOG_EVERY_S", 0)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    generate_proposals(dataset, tmp_path / "p.safetensors", "single", workers=1)
    assert re.findall(r"(\d) images left, [\d.]+ per second", caplog.text) == ["5", "4", "3", "2", "1", "0"]


def test_the_kept_file_is_named_after_all_it_depends_on(dataset, small_shapes, tmp_path, make_voc, caplog):
    caplog.set_level(logging.INFO)
    hws = check_data(dataset).image_hws
    proposals_for(dataset, hws, None, "single", tmp_path)
    path = store_path(tmp_path, dataset, "single")
    made = path.stat().st_mtime_ns
    assert f"-> {path}" in caplog.text
    assert len(proposals_for(dataset, hws, None, "single", tmp_path)) == 6
    assert path.stat().st_mtime_ns == made
    names = {path.name, store_path(tmp_path, dataset, "fast").name}
    names.add(store_path(tmp_path, read_voc(small_shapes, "test"), "single").name)
    one = read_voc(make_voc({"train": {"a": [("cat", 1, 1, 9, 9)]}}, "one"), "train")
    names.add(store_path(tmp_path, one, "single").name)
    path = one.image_path(0)
    data = bytearray(path.read_bytes())
    data[-10] ^= 1  # another picture, in a file of the same size
    path.write_bytes(data)
    names.add(store_path(tmp_path, one, "single").name)
    assert len(names) == 5


def test_boxes_in_another_order_are_noticed(dataset, tmp_path, caplog):
    hws = check_data(dataset).image_hws
    store = proposals_for(dataset, hws, None, "fast", tmp_path)
    assert "hardly any object" not in caplog.text
    swapped = [
        ImageProposals(id, store[id][:, [1, 0, 3, 2]] * 0.4, image_hw=hw)
        for id, hw in zip(dataset.image_ids, hws, strict=True)
    ]
    stream_store(tmp_path / "swapped.safetensors", swapped, {})
    proposals_for(dataset, hws, str(tmp_path / "swapped.safetensors"), "fast", tmp_path)
    assert "hardly any object has a proposal" in caplog.text


DIFFICULT = ("cat", 5, 5, 30, 30, 1)  # not asked for


def test_recall_of_literal_boxes(make_voc):
    root = make_voc({"train": {"a": [("cat", 1, 1, 10, 10), ("cat", 21, 21, 30, 30)], "b": [DIFFICULT]}})
    dataset = read_voc(root, "train")
    proposals = {"a": np.array([[0, 0, 10, 5], [20, 20, 30, 24.9]], np.float32), "b": np.zeros((0, 4), np.float32)}
    assert proposal_recall(dataset, proposals, [0, 1]) == 0.5
    assert proposal_recall(dataset, proposals, [0], iou=0.4) == 1.0
    assert proposal_recall(dataset, proposals, [1]) == 1.0
