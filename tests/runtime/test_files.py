import hashlib
import os
import shutil

import pytest
import torch

from detector.errors import InputError
from detector.runtime.files import digest_of, reading, write_atomically
from detector.runtime.locks import locked
from detector.training.checkpoint import Checkpoints, load_checkpoint
from detector.training.run_folder import check_run_folder, make_new_folder, make_run_folder


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_atomically(tmp_path / "f", b"old")

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_checkpoint_holds_weights_settings_and_classes(settings, tmp_path):
    model, config = torch.nn.Linear(2, 3), settings("train").plain()
    Checkpoints(tmp_path / "c").save_last(
        {"model": model.state_dict(), "config": config, "classes": ["cat", "dog"], "iteration": 12}
    )
    content = load_checkpoint(tmp_path / "c/last.pt")
    assert content["config"] == config
    assert (content["classes"], content["iteration"]) == (["cat", "dog"], 12)
    assert torch.equal(content["model"]["weight"], model.weight)
    data = bytearray((tmp_path / "c/last.pt").read_bytes())
    at = data.index(model.weight.detach().numpy().tobytes())
    data[at] ^= 1
    (tmp_path / "flipped.pt").write_bytes(data)
    with pytest.raises(InputError, match=r"flipped\.pt: damaged: its bytes are not those"):
        load_checkpoint(tmp_path / "flipped.pt")


def test_the_digest_of_a_file_is_that_of_what_it_holds_now(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = digest_of(path)
    assert digest_of(path) == first == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"three")
    assert digest_of(path) == hashlib.sha256(b"three").hexdigest()


def test_any_exception_names_the_file_and_keeps_its_cause(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(InputError, match=r"a\.json: needs more memory than is free"), reading(tmp_path / "a.json", "x"):
        raise MemoryError
    bug = KeyError("x")
    with pytest.raises(InputError, match="broken JSON: 'x'") as found, reading(tmp_path / "a.json", "broken JSON"):
        raise bug
    assert found.value.__cause__ is bug


def test_a_lock_whose_folder_is_cleared_is_no_error(tmp_path):
    path = tmp_path / "cache/lock"
    with locked(path):
        shutil.rmtree(path.parent)
    with locked(path):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


def test_run_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = make_run_folder(None), make_run_folder(None)
    assert first != second
    assert first.parent.name == second.parent.name == "runs"
    names = [make_new_folder(tmp_path, "evaluate-v2.5-test").name for _ in range(2)]
    assert names == ["evaluate-v2.5-test", "evaluate-v2.5-test-2"]
    assert make_run_folder("a/b").is_dir()
    assert make_run_folder("a/b").is_dir()  # empty still
    (tmp_path / "a/b/mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"run\.dir: a/b is not an empty folder"):
        check_run_folder("a/b")
    with pytest.raises(InputError, match=r"run\.dir: a/b/mine\.txt"):
        check_run_folder("a/b/mine.txt")
    with pytest.raises(NotADirectoryError, match=r"Not a directory: 'a/b/mine\.txt/run'"):
        make_run_folder("a/b/mine.txt/run")
