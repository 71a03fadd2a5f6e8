"""Cases 9 to 16 of FAULTS.md: what a resumed run begins with, and what may have changed before."""

import copy
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from detector.boxes import BoxCoder
from detector.builders.datasets import JoinedProposals
from detector.data.check import check_data
from detector.data.epoch_order import EpochOrder
from detector.data.fingerprint import fingerprint_data, fingerprint_proposals
from detector.data.formats.voc import read_voc
from detector.data.loader import TrainBatchSampler, TransformedDataset, batch_loader
from detector.data.transforms import Augment, Resize
from detector.errors import InputError
from detector.evaluation.report import write_report
from detector.proposals.formats.records import ImageProposals
from detector.proposals.store import open_proposals, stream_store
from detector.schema import parse
from detector.settings import RoISampling, TrainSettings
from detector.training import checkpoint as checkpoints
from detector.training.checkpoint import (
    Checkpoints,
    load_checkpoint,
    load_state,
    load_to_resume,
)
from detector.training.engine import TrainingConfig
from detector.training.resume import check_same_run, find_run, promote_checkpoint
from detector.training.run_folder import FolderLock
from tests.helpers.batches import Boxes
from tests.helpers.runs import same


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    [
        "train.ema=null",
        "optimizer=sgd",
        "optimizer.max_grad_norm=0.5",
        "model.delta_normalization=per_class",
        "precision=float16",
    ],
)
def test_resume_is_exact_with_other_optimizers(override, settings, tiny, tmp_path):
    folder = tmp_path / "run"
    train.main(settings("train", *tiny, override, f"run.dir={folder}"))
    whole = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    train.main(settings("train", *tiny, override, f"resume={folder}/checkpoints/previous.pt"))
    again = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    for part in ("model", "raw_model", "optimizer", "iteration", "scaler"):
        assert same(again.get(part), whole.get(part))
    assert bool(whole["scaler"]) == (override == "precision=float16")
    assert (folder / "checkpoints/last-of-6.pt").is_file()  # so the run did resume before its end


def test_case_09_resumed_batches_do_not_depend_on_the_workers(small_shapes):
    import albumentations as A

    dataset = read_voc(small_shapes, "train")
    samples = TransformedDataset(dataset, Boxes(), Resize([64], 96), Augment([A.HorizontalFlip(p=0.5)]), seed=3)
    training = TrainingConfig(RoISampling(rois_per_image=16), BoxCoder((0.1, 0.1, 0.2, 0.2)), seed=3)

    def batches(start: int, workers: int) -> list:
        """Images and sampled RoIs, bit by bit."""
        order = TrainBatchSampler(EpochOrder(6, 3), 2, 9, start)
        loader = batch_loader(samples, order, workers, training.collate_with_rois)
        return [
            (batch.image_ids, batch.images.numpy().tobytes(), batch.targets.packed.numpy().tobytes(), batch.roi_counts)
            for batch in loader
        ]

    whole = batches(0, 0)
    assert batches(4, 0) == batches(4, 1) == batches(4, 2) == batches(4, 4) == whole[4:]
    assert all(sum(counts) > 0 and len(packed) == sum(counts) * 40 for _, _, packed, counts in whole)
    assert whole[0][2] != whole[3][2]


def resumable(run_copy):
    saved = load_to_resume(run_copy / "checkpoints/last.pt")
    return saved, parse(TrainSettings, saved["config"]), tuple(saved["classes"]), saved["fingerprints"]


def changed(settings: TrainSettings, group: str, **values: object) -> TrainSettings:
    return settings.with_values(**{group: settings.plain()[group] | values})


def test_case_10_another_batch_size_or_number_of_processes(run_copy, settings, tiny, caplog):
    saved, config, classes, fingerprints = resumable(run_copy)
    with pytest.raises(InputError, match=r"train\.images_per_batch +2 +4"):
        check_same_run(saved, changed(config, "train", images_per_batch=4), classes, fingerprints)
    content = torch.load(run_copy / "checkpoints/last.pt", weights_only=True)
    torch.save(content | {"processes": 2}, run_copy / "checkpoints/last.pt")
    train.main(settings("train", *tiny, f"run.dir={run_copy}", "resume=auto", "train.iterations=7"))
    assert (
        "1 processes instead of 2: the same images at each step, but results are not bitwise identical" in caplog.text
    )


def test_case_11_other_classes_are_refused(run_copy):
    saved, config, classes, fingerprints = resumable(run_copy)
    check_same_run(saved, config, classes, fingerprints)
    for other in (classes[::-1], classes[:3], (*classes, "cat")):
        with pytest.raises(InputError, match=f"classes: ball, crate, kite, star -> {', '.join(other)}"):
            check_same_run(saved, config, other, fingerprints)


def test_case_12_fixed_settings_and_a_table_of_the_others(run_copy, caplog):
    saved, config, classes, fingerprints = resumable(run_copy)
    for group, key, value in (
        ("model", "backbone", "vgg16"),
        ("model", "pool_size", 5),
        ("roi", "delta_std", [1, 1, 1, 1]),
        ("optimizer", "_target_", "torch.optim.Adam"),
        ("metric", "main", "area@0.50"),
        ("metric", "iou_thresholds", [0.75]),
        ("metric", "devkit", True),
        ("detect", "nms_iou", 0.5),
    ):
        with pytest.raises(InputError, match=rf"that are fixed:\n.*\n +{group}\.{key} "):
            check_same_run(saved, changed(config, group, **{key: value}), classes, fingerprints)
    with pytest.raises(InputError, match="seed +0 +1"):
        check_same_run(saved, config.with_values(seed=1), classes, fingerprints)
    assert "changed" not in caplog.text
    more = changed(config, "train", eval_every=5, log_every=7).with_values(workers=3)
    check_same_run(saved, more, classes, fingerprints)
    table = [line.split() for line in caplog.messages[-1].splitlines()[1:]]
    assert table == [
        ["setting", "saved", "now"],
        ["train.eval_every", "4", "5"],
        ["train.log_every", "1", "7"],
        ["workers", "0", "3"],
    ]


def test_case_12_a_changed_rate_is_the_one_that_is_used(run_copy, settings, tiny):
    more = ["train.iterations=7", "schedule.warmup_iterations=0", "optimizer.lr=0.125"]
    train.main(settings("train", *tiny, f"run.dir={run_copy}", "resume=auto", *more))
    last = [json.loads(line) for line in (run_copy / "metrics.jsonl").read_text().splitlines() if "train/lr" in line][
        -1
    ]
    expected = 0.125 * (1 + np.cos(np.pi * 6 / 7)) / 2  # case 16: the cosine of the new length
    assert (last["iteration"], last["train/lr"]) == (7, pytest.approx(expected))


def test_case_13_other_data_or_proposals_are_refused(run_copy, make_voc):
    saved, config, classes, fingerprints = resumable(run_copy)
    for name in ("training data", "validation data", "training proposals", "validation proposals"):
        with pytest.raises(InputError, match=f"the {name}: fingerprint {fingerprints[name][:12]} -> 0123"):
            check_same_run(saved, config, classes, fingerprints | {name: "0123"})
    images = {"a": [("cat", 1, 1, 20, 20)], "b": []}

    def fingerprint_of(root: Path) -> str:
        dataset = read_voc(root, "train")
        return fingerprint_data(dataset, check_data(dataset).digests)

    one, moved = make_voc({"train": images}, "one"), make_voc({"train": images}, "moved")
    assert fingerprint_of(one) == fingerprint_of(moved)
    for number, other in enumerate(
        ({"a": [("cat", 1, 1, 20, 21)], "b": []}, {"a": [("cat", 1, 1, 20, 20, 1)], "b": []}, {"a": images["a"]})
    ):
        assert fingerprint_of(one) != fingerprint_of(make_voc({"train": other}, f"o{number}"))
    picture = one / "JPEGImages/b.jpg"
    Image.effect_noise((60, 40), 50).save(picture)
    shutil.copy(picture, moved / "JPEGImages")
    assert fingerprint_of(one) == fingerprint_of(moved)
    data = bytearray(picture.read_bytes())
    data[-10] ^= 1  # the size does not tell
    picture.write_bytes(data)
    assert fingerprint_of(one) != fingerprint_of(moved)


def test_only_the_folder_of_a_run_is_resumed(run_copy, tiny, settings, tmp_path):
    shutil.copy(run_copy / "config.yaml", tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"theirs": 1}\n')
    shutil.copytree(run_copy / "checkpoints", tmp_path / "checkpoints")
    for resume in ("auto", f"{tmp_path}/checkpoints/last.pt"):
        with pytest.raises(InputError, match=rf"{tmp_path} is not the folder of a run: it has no \.lock"):
            train.main(settings("train", *tiny, f"run.dir={tmp_path}", f"resume={resume}"))
    assert (tmp_path / "metrics.jsonl").read_text() == '{"theirs": 1}\n'


def test_checkpoints_with_invalid_parts_are_not_resumed(run_copy):
    path = run_copy / "checkpoints/last.pt"
    content = torch.load(path, weights_only=True)
    wrong = {"format": "1", "optimizer": 1, "evaluated": "x", "best": [], "fingerprints": 7, "processes": None}
    for name, value in wrong.items():
        torch.save(content | {name: value}, path)
        with pytest.raises(InputError, match=rf"last\.pt: not a checkpoint of this program: its {name} is"):
            load_to_resume(path)
    torch.save(content | {"fingerprints": {"training annotations": 7}}, path)
    with pytest.raises(InputError, match="its fingerprints are not all strings"):
        load_to_resume(path)


def test_weights_and_momentum_that_do_not_fit_are_refused(run_copy, settings, tiny):
    path = run_copy / "checkpoints/last.pt"
    content = torch.load(path, weights_only=True)
    key = next(iter(content["model"]))
    spoils = {
        "a weight less": {"model": {name: value for name, value in content["model"].items() if name != key}},
        "another shape": {"model": content["model"] | {key: torch.ones(2)}},
        "momentum of another shape": {"optimizer": content["optimizer"] | {0: {"exp_avg": torch.ones(2)}}},
        "momentum that is a string": {"optimizer": content["optimizer"] | {0: "x"}},
    }
    for spoil in spoils.values():
        torch.save(content | spoil, path)
        with pytest.raises(InputError, match="weights or momentum of the checkpoint do not fit this network"):
            train.main(settings("train", *tiny, f"run.dir={run_copy}", "resume=auto", "train.iterations=9"))


def test_other_versions_of_the_libraries_are_said(run_copy, settings, tiny, caplog):
    path = run_copy / "checkpoints/last.pt"
    content = torch.load(path, weights_only=True)
    assert content["versions"]["torch"] == torch.__version__
    torch.save(content | {"versions": {"torch": "1.0"}}, path)
    train.main(settings("train", *tiny, f"run.dir={run_copy}", "resume=auto", "train.iterations=7"))
    assert "started with {'torch': '1.0'}, resuming with" in caplog.text


def test_case_13_fingerprints_of_proposals(tmp_path):
    def store(boxes_of_a, boxes_of_b, score=None):
        path = tmp_path / f"{len(boxes_of_a)}{score}.safetensors"
        scores = [None if score is None else np.full(len(x), score, np.float32) for x in (boxes_of_a, boxes_of_b)]
        stream_store(path, map(ImageProposals, "ab", (boxes_of_a, boxes_of_b), scores), {})
        return open_proposals(path)

    box, none = np.array([[0, 0, 5, 5]], np.float32), np.zeros((0, 4), np.float32)
    stores = [store(box, none), store(none, box), store(box, none, 1), store(box, none, 2)]
    joined = JoinedProposals({"a": (stores[2], "a"), "b": (stores[2], "b")})
    found = [fingerprint_proposals(proposals, ["a", "b"]) for proposals in (*stores, joined)]
    assert len(set(found[:4])) == 4
    assert found[4] == found[2]


def test_case_14_checkpoints_of_other_versions_are_named(run_copy):
    path = run_copy / "checkpoints/last.pt"
    content = torch.load(path, weights_only=True)
    older = {key: content[key] for key in ("model", "config", "classes", "iteration")}
    torch.save(older, path)
    assert load_checkpoint(path)["iteration"] == 6  # good enough to evaluate
    with pytest.raises(InputError, match=r"has no best, evaluated, .*an older version.*model\.weights="):
        load_to_resume(path)
    torch.save(content | {"format": checkpoints.FORMAT + 1}, path)
    with pytest.raises(InputError, match="made by a newer version"):
        load_to_resume(path)


def test_case_16_a_finished_run_is_complete_and_left_alone(run_copy, settings, tiny, caplog):
    before = {path: path.stat().st_mtime_ns for path in run_copy.rglob("*") if path.name not in (".lock", "train.log")}
    caplog.set_level(logging.INFO)
    train.main(settings("train", *tiny, f"run.dir={run_copy}", "resume=auto"))
    assert "already complete: 6 of 6 iterations" in caplog.text
    after = {path: path.stat().st_mtime_ns for path in run_copy.rglob("*") if path.name not in (".lock", "train.log")}
    assert after == before
    assert "->" not in caplog.text  # nothing has changed, the rate that null came to neither
    with pytest.raises(InputError, match="seed +0 +1"):
        train.main(settings("train", *tiny, f"run.dir={run_copy}", "resume=auto", "seed=1"))


def test_going_back_to_an_earlier_checkpoint_loses_none(settings, tmp_path, caplog):
    folder, config = tmp_path / "checkpoints", settings("train").plain()

    def content(iteration):
        return {"model": {"x": torch.ones(1)}, "config": config, "classes": ["cat"], "iteration": iteration}

    def found():
        return {path.name: load_checkpoint(path)["iteration"] for path in folder.iterdir()}

    kept = Checkpoints(folder)
    for iteration in (3, 4, 5):
        kept.save_last(content(iteration))
    kept.save_best(content(3))
    promote_checkpoint(folder / "last.pt", 5)
    assert found() == {"last.pt": 5, "previous.pt": 4, "best.pt": 3}
    promote_checkpoint(folder / "best.pt", 3)
    assert found() == {"last-of-5.pt": 5, "previous-of-4.pt": 4, "best.pt": 3, "last.pt": 3}
    assert "last.pt is now last-of-5.pt: the run goes back to iteration 3" in caplog.text
    kept.save_last(content(4))
    promote_checkpoint(folder / "last-of-5.pt", 5)  # and forth again
    now = {"last.pt": 5, "last-of-4.pt": 4, "previous.pt": 3, "last-of-5.pt": 5, "previous-of-4.pt": 4, "best.pt": 3}
    assert found() == now
    (folder / "last.pt").write_bytes(b"no longer whole")
    kept.save_best(content(9))
    promote_checkpoint(folder / "last-of-4.pt", 4)
    assert (folder / "last-of-unknown.pt").read_bytes() == b"no longer whole"
    (folder / "last-of-unknown.pt").unlink()
    del now["best.pt"]
    assert found() == now | {"last.pt": 4, "best-of-9.pt": 9}


@pytest.mark.slow
def test_a_run_that_went_back_before_its_best_has_a_best_again(tiny, settings, tmp_path, monkeypatch):
    """Scores 0.5, 0.9, 0.2 at 2, 4, 6; from 2 on again, with 0.3 and 0.4, which are all that is left; then one more."""
    scores = iter((0.5, 0.9, 0.2, 0.3, 0.4, 0.6))

    def scored(*arguments, **more):
        metrics = write_report(*arguments, **more)
        metrics["main"]["value"] = next(scores)
        return metrics

    monkeypatch.setattr("detector.training.trainer.write_report", scored)
    overrides = [*tiny, "train.eval_every=2", "train.checkpoint_every=2"]
    run = tmp_path / "run"
    train.main(settings("train", *overrides, "train.iterations=2", f"run.dir={run}"))
    shutil.copy(run / "checkpoints/last.pt", tmp_path / "early.pt")
    train.main(settings("train", *overrides, f"run.dir={run}", "resume=auto"))
    shutil.copy(tmp_path / "early.pt", run / "checkpoints/early.pt")
    train.main(settings("train", *overrides, f"resume={run}/checkpoints/early.pt"))
    found = {path.name: load_checkpoint(path)["best"] for path in (run / "checkpoints").iterdir()}
    assert found == {"best-of-4.pt": 0.9, "last-of-6.pt": 0.9, "best.pt": 0.4, "last.pt": 0.4, "previous.pt": 0.3,
                     "previous-of-4.pt": 0.9, "early.pt": 0.5}  # fmt: skip
    train.main(settings("train", *overrides, "train.iterations=8", f"resume={run}/checkpoints/last-of-6.pt"))
    best = load_checkpoint(run / "checkpoints/best.pt")
    assert (best["iteration"], best["best"]) == (8, 0.6)  # more than the 0.4 of the file there, less than the 0.9 aside


def test_going_back_on_a_full_disk_changes_nothing(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path)
    for iteration in (3, 4):
        kept.save_last({"iteration": iteration})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("detector.training.resume.write_atomically", full)
    with pytest.raises(OSError, match="No space left on device"):
        promote_checkpoint(tmp_path / "previous.pt", 3)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adafactor])
def test_the_state_of_any_optimizer_is_resumed(kind):
    def step():
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 4, 5)
        optimizer = kind(model.parameters(), lr=0.1)
        model(torch.ones(1, 3, 8, 8)).sum().backward()
        return model, optimizer

    model, optimizer = step()
    optimizer.step()
    content = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()["state"]})
    other, its_optimizer = step()
    load_state(content, other, its_optimizer)
    for one in (optimizer, its_optimizer):
        one.step()
    assert torch.equal(other.weight, model.weight)


def test_auto_resumes_from_the_checkpoint_that_was_named_before(run_copy, settings, tiny):
    """The run's last checkpoint is of iteration 6, `previous.pt` of 4."""
    previous = run_copy / "checkpoints/previous.pt"
    train.main(settings("train", *tiny, f"resume={previous}", "train.iterations=5"))
    kept = {path.name: load_checkpoint(path)["iteration"] for path in previous.parent.iterdir()}
    assert (kept["last.pt"], kept["previous.pt"], kept["last-of-6.pt"]) == (5, 4, 6)


def test_which_run_is_meant(run_copy, tmp_path, whole, monkeypatch):
    def find(*arguments):
        with FolderLock() as lock:
            return find_run(*arguments, lock)

    last = run_copy / "checkpoints/last.pt"
    assert find("auto", str(run_copy)) == (run_copy, last)
    assert find(str(last), None) == (run_copy, last)
    assert find(str(last), str(run_copy)) == (run_copy, last)
    assert find("auto", str(tmp_path / "new")) == (None, None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("")
    for arguments, says in (
        (("auto", None), r"needs run\.dir"),
        (("auto", str(tmp_path / "mine")), "not the folder of a run"),
        ((str(last), str(whole)), "is not in"),
        ((str(run_copy), None), "is a folder: in a sweep, resume=auto run.dir="),
        ((str(run_copy / "config.yaml"), None), "cannot be read: damaged: File is not a zip file"),
        (("nowhere.pt", None), r"resume=nowhere\.pt: no such file; it is auto, null, the folder of a run, or"),
    ):
        with pytest.raises(InputError, match=says):
            find(*arguments)
    shutil.rmtree(run_copy / "checkpoints")
    assert find("auto", str(run_copy)) == (run_copy, None)  # killed before the first checkpoint


def test_a_run_whose_checkpoints_are_gone_is_not_restarted(run_copy, settings, tiny):
    for path in (run_copy / "checkpoints").iterdir():
        path.unlink()
    (run_copy / "checkpoints/last.pt").symlink_to("/nowhere/last.pt")
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(InputError, match=r"has results up to iteration 6, but no checkpoint"):
        train.main(settings("train", *tiny, f"run.dir={run_copy}", "resume=auto", "train.iterations=7"))
    (run_copy / "metrics.json").unlink()
    for more in ([], ["train.checkpoint_every=9"]):  # 6 steps are more than checkpoint_every=2, and were evaluated
        with pytest.raises(InputError, match="but no checkpoint"):
            train.main(settings("train", *tiny, f"run.dir={run_copy}", "resume=auto", "train.iterations=7", *more))
    del before[run_copy / "metrics.json"]
    assert {path: path.read_bytes() for path in before} == before
