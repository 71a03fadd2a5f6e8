"""evaluate.py from end to end, on a few small scenes."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import evaluate
from detector import evaluator
from detector.data.formats.coco import read_coco
from detector.data.formats.voc import read_voc
from detector.errors import InputError
from detector.schema import parse
from detector.settings import CommonSettings
from tests.conftest import REPOSITORY
from tests.helpers.processes import program

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.mark.slow
def test_the_last_checkpoint_scores_as_in_training(run, settings, tmp_path):
    in_training = json.loads((run / "metrics.json").read_text())
    result = program("evaluate.py", f"checkpoint={run}/checkpoints/last.pt", f"out={tmp_path}", "workers=0", code=0)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["voc"]["area@0.50"]["mAP"] > 0
    for metric, values in in_training["voc"].items():
        assert metrics["voc"][metric]["mAP"] == pytest.approx(values["mAP"], abs=1e-6)
        assert metrics["voc"][metric]["AP"] == pytest.approx(values["AP"], abs=1e-6)
    assert metrics["loss"] == pytest.approx(in_training["loss"], abs=1e-6)
    assert "mAP" in result.stdout
    assert metrics["source"]["iteration"] == 4
    # ... and so do the files of its detections, without a model
    scored, root = tmp_path / "scored", trained_settings(run)["data"]["root"]
    files = f"detections={tmp_path}/detections"
    evaluate.main(settings("evaluate", files, "data=voc", f"data.root={root}", f"out={scored}"))
    again = json.loads((scored / "metrics.json").read_text())
    assert again["voc"]["area@0.50"]["AP"] == pytest.approx(in_training["voc"]["area@0.50"]["AP"], abs=1e-6)
    assert again["coco"] == metrics["coco"]
    # ... also as COCO results
    with pytest.raises(InputError, match=r"out: .*scored is not an empty folder, and nothing is overwritten"):
        evaluate.main(settings("evaluate", files, "data=voc", f"data.root={root}", f"out={scored}"))
    scored = tmp_path / "scored again"
    coco = [f"detections={tmp_path}/detections.json", "data=voc", f"data.root={root}", f"out={scored}"]
    evaluate.main(settings("evaluate", *coco, "metric.coco=false", "metric.main=area@0.50"))
    again = json.loads((scored / "metrics.json").read_text())
    assert again["voc"]["area@0.50"]["AP"] == pytest.approx(in_training["voc"]["area@0.50"]["AP"], abs=1e-6)
    assert "coco" not in again
    assert again["main"] == {"metric": "area@0.50", "value": again["voc"]["area@0.50"]["mAP"]}


def test_a_folder_that_cannot_be_written_is_named_first(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(InputError, match="out: runs cannot be written: runs is not a folder"):
        evaluate.main(settings("evaluate", "detections=nowhere", "data=voc", "data.root=nowhere"))


def trained_settings(run: Path) -> dict:
    return torch.load(run / "checkpoints/last.pt", weights_only=True)["config"]


def test_settings_of_evaluation(run, settings, tmp_path, capsys):
    def score(name: str, *overrides: str) -> dict:
        config = settings(
            "evaluate", f"checkpoint={run}/checkpoints/last.pt", f"out={tmp_path / name}", "workers=0", *overrides
        )
        evaluate.main(config)
        return json.loads((tmp_path / name / "metrics.json").read_text())["voc"]

    usual = score("usual", "metric.iou_thresholds=[0.3,0.5]")
    columns = ("0.30", "0.50", "0.50:0.95")
    assert list(usual) == [f"{metric}@{column}" for column in columns for metric in ("11point", "area")]
    strict = score("strict", "detect.score_threshold=0.9")
    assert strict["area@0.50"]["mAP"] < usual["area@0.50"]["mAP"]
    assert score("near", "data.val_max_proposals=5")["area@0.50"] != usual["area@0.50"]
    assert score("svd", "svd_ranks=[2,1]")["area@0.50"] != usual["area@0.50"]
    assert score("few", "detect.max_detections=1")["area@0.50"] != usual["area@0.50"]
    assert score("small", "data.short_side_px=64")["area@0.50"] != usual["area@0.50"]
    devkit = score("devkit", "metric.devkit=true")
    line = (tmp_path / "devkit/detections/comp4_det_test_ball.txt").read_text().splitlines()[0].split()
    assert [len(value.partition(".")[2]) for value in line[1:]] == [3, 1, 1, 1, 1]
    assert set(devkit["area@0.50"]["AP"]) == {"ball", "crate", "kite", "star"}


def test_another_dataset_keeps_the_sizes_of_training_alone(run, settings, tmp_path, monkeypatch):
    trained = trained_settings(run)
    trained["data"]["val_proposals"] = "of_training.mat"
    trained["data"] |= {"exif": "ignore", "max_image_pixels": 10**7}
    trained["data"] |= {"min_proposal_px": 3.0, "unique_proposals": False, "proposals_by_score": True}

    def merge(*overrides: str) -> dict:
        of_training = parse(CommonSettings, trained, ignore_unknown=True)
        return evaluator.with_training_settings(settings("evaluate", *overrides), of_training).data.plain()

    assert merge() == trained["data"]
    other = merge("data=voc", "data.root=x")
    assert (other["root"], other["val_proposals"], other["val_split"]) == ("x", None, "test")
    assert (other["short_side_px"], other["max_side_px"], other["val_max_proposals"]) == (96, 160, 60)
    assert (other["min_proposal_px"], other["unique_proposals"], other["proposals_by_score"]) == (3, False, True)
    assert (other["exif"], other["max_image_pixels"]) == ("ignore", 10**7)
    assert merge("data=voc", "data.root=x", "data.exif=apply")["exif"] == "apply"
    assert "???" not in merge("data=coco", "data.root=x", "data.val_json=b.json").values()  # nothing to train on
    assert merge("data=voc", "data.root=x", "data.min_proposal_px=0")["min_proposal_px"] == 0
    assert merge("data=voc", "data.root=x", "data.short_side_px=77")["short_side_px"] == 77
    split = merge("data.val_split=train")
    assert (split["root"], split["val_split"], split["val_proposals"]) == (trained["data"]["root"], "train", None)
    assert merge("data.val_split=train", "data.val_proposals=p.mat")["val_proposals"] == "p.mat"
    assert merge("data.val_proposals=p.mat")["val_proposals"] == "p.mat"
    assert merge("data.max_images=5")["max_images"] == 5
    (tmp_path / "x/a").mkdir(parents=True)
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    trained["data"] |= {
        "root": str(tmp_path),
        "parts": [{"root": "a"}],
        "exclude_classes": ["ball"],
        "val_json": "a.json",
    }
    assert merge() == trained["data"]
    assert merge("data.root=x")["parts"] == [{"root": "a"}]
    assert merge("data.exclude_classes=[]")["exclude_classes"] == []
    with pytest.raises(InputError, match=r"data\.val_json=b\.json: not a setting of data\.reader=voc"):
        merge("data.val_json=b.json")
    assert merge("data=voc", "data.root=x")["parts"] is None
    assert merge("data.val_split=train")["val_split"] == "train"
    trained["data"]["parts"] = [{"root": "a", "val_split": "test"}]
    with pytest.raises(InputError, match="data.val_split: the dataset of training is joined from 1, each with its"):
        merge("data.val_split=train")


def test_an_evaluation_never_writes_over_another(run, settings, small_shapes, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    checkpoint = f"checkpoint={tmp_path}/run/checkpoints/last.pt"
    evaluate.main(settings("evaluate", checkpoint, "data.val_split=train", "workers=0"))
    evaluate.main(settings("evaluate", checkpoint, "workers=0"))
    evaluate.main(settings("evaluate", checkpoint, "workers=0", "detect.max_detections=1"))
    assert {path: path.read_bytes() for path in before} == before
    made = {
        path.name: json.loads((path / "metrics.json").read_text()) for path in (tmp_path / "run").glob("evaluate-*")
    }
    assert {name: item["source"]["images"] for name, item in made.items()} == {
        "evaluate-shapes-train": 6,
        "evaluate-shapes-test": 3,
        "evaluate-shapes-test-2": 3,
    }
    in_training = json.loads((run / "metrics.json").read_text())["voc"]
    assert made["evaluate-shapes-test"]["voc"] == in_training != made["evaluate-shapes-test-2"]["voc"]
    settings_of = yaml.safe_load((tmp_path / "run/evaluate-shapes-test-2/config.yaml").read_text())
    assert settings_of["detect"]["max_detections"] == 1
    assert settings_of["data"]["val_split"] == "test"


def test_a_mistyped_folder_of_detections_is_no_score_of_0(settings, small_shapes, tmp_path, caplog):
    where = ["data=voc", f"data.root={small_shapes}", f"out={tmp_path}/out"]
    with pytest.raises(InputError, match="there is no folder"):
        evaluate.main(settings("evaluate", "detections=/nowhere", "data.classes=[ball,crate,kite,star]", *where))
    (tmp_path / "comp4_det_test_unicorn.txt").write_text("")
    with pytest.raises(InputError, match="has files of unicorn, but the dataset has ball"):
        evaluate.main(settings("evaluate", f"detections={tmp_path}", *where))
    (tmp_path / "comp4_det_test_ball.txt").write_text("")
    evaluate.main(settings("evaluate", f"detections={tmp_path}", *where))
    assert "no result file, so no detection, of crate, kite, star" in caplog.text
    ap = json.loads((tmp_path / "out/metrics.json").read_text())["voc"]["area@0.50"]["AP"]
    assert (ap["unicorn"], ap["ball"]) == (None, 0.0)


def test_saved_detections_are_suppressed_once_more(settings, small_shapes, tmp_path):
    """Two boxes that overlap by 0.6, one of them scored 0.2: each setting leaves one of three out."""
    lines = "test_0 0.9 1 1 100 100\ntest_0 0.8 1 1 100 60\ntest_0 0.2 200 200 210 210\n"
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/comp4_det_test_ball.txt").write_text(lines)
    where = [f"detections={tmp_path}/saved", "data=voc", f"data.root={small_shapes}", "data.classes=null"]

    def kept(*overrides: str) -> list[float]:
        _, detections = evaluator.read_detections(settings("evaluate", *where, *overrides))
        return np.concatenate([item.scores for item in detections]).tolist()

    assert kept() == [0.9, 0.8, 0.2]
    assert kept("detect.nms_iou=0.5") == [0.9, 0.2]
    assert kept("detect.nms_iou=0.7") == [0.9, 0.8, 0.2]
    assert kept("detect.score_threshold=0.3") == [0.9, 0.8]
    assert kept("detect.max_detections=1") == [0.9]
    softened = kept("detect.nms=soft")
    assert softened == pytest.approx([0.9, 0.8 * math.exp(-(0.6**2) / 0.5), 0.2], rel=1e-2)
    with pytest.raises(InputError, match="detect.flip: applies to a network, and detections= has none"):
        kept("detect.flip=true")
    assert kept("detect.nms=hard", "detect.nms_iou=0.5") == [0.9, 0.2]
    with pytest.raises(InputError, match="detect.nms=hard: needs detect.nms_iou"):
        kept("detect.nms=hard")
    with pytest.raises(InputError, match="detect.nms_iou: has no effect with detect.nms=soft"):
        kept("detect.nms=soft", "detect.nms_iou=0.5")
    with pytest.raises(InputError, match="detect.average_per_class: applies to a network"):
        kept("detect.average_per_class=40")
    with pytest.raises(InputError, match="detect.soft_nms_sigma: needs detect.nms=soft"):
        kept("detect.soft_nms_sigma=0.3")
    assert min(kept("detect.nms=soft", "detect.soft_nms_sigma=0.1")) < 0.1
    with pytest.raises(InputError, match="detect.nms_iou=3: must be null or a number from 0 to 1"):
        kept("detect.nms_iou=3")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], "give either checkpoint=FILE or detections=FOLDER"),
        (["checkpoint=/nowhere.pt"], r"/nowhere\.pt: no such"),
        (["checkpoint=detector"], r"detector: is a folder, not a file$"),
        (["detections=/nowhere"], "needs a dataset"),
        (["checkpoint=LICENSE", "out=README.md/x"], r"out: README\.md/x cannot be written"),
        (["checkpoint=LICENSE"], "LICENSE: not a checkpoint and not a file"),
        (["checkpoint=a", "metric.iou_thresholds=[2]"], "metric.iou_thresholds"),
    ],
)
def test_wrong_input_of_evaluation(settings, monkeypatch, overrides, says):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(InputError, match=says):
        evaluate.main(settings("evaluate", *overrides))


def test_a_split_without_annotations_gives_the_files_to_submit(checkpoint, settings, small_shapes, tmp_path, capsys):
    root, plain = tmp_path / "VOC2012", [f"checkpoint={checkpoint}", "workers=0", f"proposals.folder={tmp_path}/p"]
    shutil.copytree(small_shapes, root)
    evaluate.main(settings("evaluate", *plain, f"data.root={root}", f"out={tmp_path}/scored"))
    assert evaluate.main(
        settings("evaluate", *plain, f"data.root={root}", "submission=true", f"out={tmp_path}/asked")
    ) is None  # fmt: skip
    for path in (root / "Annotations").glob("test_*.xml"):
        path.unlink()
    capsys.readouterr()
    assert evaluate.main(settings("evaluate", *plain, f"data.root={root}", f"out={tmp_path}/out")) is None
    assert capsys.readouterr().out.startswith("no mAP: VOC2012-test is scored without annotations")
    for name in ("ball", "crate", "kite", "star"):
        expected = (tmp_path / f"scored/detections/comp4_det_test_{name}.txt").read_bytes()
        for folder in ("out", "asked"):
            assert (tmp_path / folder / f"results/VOC2012/Main/comp4_det_test_{name}.txt").read_bytes() == expected
    assert expected
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.yaml", "detections.json", "results"}
    with pytest.raises(
        InputError, match="submission=true: writes the files of VOC: it needs one dataset in VOC layout"
    ):
        evaluate.main(settings("evaluate", *plain, "data=shapes", f"data.root={root}", "submission=true"))
    with pytest.raises(InputError, match="submission: applies to a network"):
        evaluate.main(settings("evaluate", f"detections={root}", "data=voc", f"data.root={root}", "submission=true"))
    (root / "Annotations").rename(root / "annotations")
    with pytest.raises(InputError, match="Annotations: no such folder, and a score needs annotations; submission=true"):
        evaluate.main(settings("evaluate", *plain, f"data.root={root}"))
    (root / "annotations").rename(root / "Annotations")
    (root / "Annotations/train_0.xml").unlink()  # one that is missing is still an error
    with pytest.raises(InputError, match="1 of the 6 images of split 'train' have no XML file: train_0"):
        evaluate.main(settings("evaluate", *plain, f"data.root={root}", "data.val_split=train"))


def test_classes_keep_their_category_ids(settings, make_coco, make_voc, tmp_path):
    coco = read_coco(make_coco({"train": {"a": [("cat", 1, 1, 9, 9), ("dog", 1, 1, 9, 9)]}}), "train.json", "images")
    wrapped = coco.subset([0]).without_classes(["dog"])
    assert evaluator.category_ids(wrapped, ["cat", "ant"]) == {"cat": 10, "dog": 20, "ant": 21}
    root = make_voc({"test": {"a": [("cat", 1, 1, 9, 9), ("dog", 1, 1, 9, 9)]}})
    assert evaluator.category_ids(read_voc(root, "test"), ["dog", "cat"]) == {"dog": 1, "cat": 2}
    box = {"bbox": [0, 0, 9, 9], "score": 0.5, "image_id": "a"}
    (tmp_path / "d.json").write_text(json.dumps([box | {"category_id": 1}, box | {"category_id": 2, "score": 0.25}]))
    where = [f"detections={tmp_path}/d.json", "data=voc", f"data.root={root}"]
    dataset, detections = evaluator.read_detections(settings("evaluate", *where, "data.exclude_classes=[cat]"))
    assert (dataset.classes, detections[0].labels.tolist(), detections[0].scores.tolist()) == (("dog",), [1], [0.25])
    with pytest.raises(InputError, match="data.max_images=0: must be"):
        evaluator.read_detections(settings("evaluate", *where, "data.max_images=0"))


def test_a_checkpoint_of_a_version_with_fewer_settings_is_scored(run, settings, tmp_path):
    content = torch.load(run / "checkpoints/last.pt", weights_only=True)
    for group, key in (("train", "ema"), ("optimizer", "bias_lr_factor"), ("optimizer", "max_grad_norm")):
        del content["config"][group][key]
    torch.save(content, tmp_path / "old.pt")
    evaluate.main(settings("evaluate", f"checkpoint={tmp_path}/old.pt", f"out={tmp_path}/out", "workers=0"))
    assert (tmp_path / "out/metrics.json").is_file()
