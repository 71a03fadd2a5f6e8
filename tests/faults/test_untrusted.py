"""Untrusted files: they can be wrong, and nothing worse. Case 15 and the second table of FAULTS.md."""

import copy
import json
import logging
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import evaluate
import train
from detector.app import start
from detector.builders.network import build_trained_model
from detector.data.check import cache_folder, check_data
from detector.data.formats.coco import read_coco
from detector.data.formats.voc import read_annotation, read_voc
from detector.errors import InputError
from detector.models import build_model
from detector.models.weights import load_weights
from detector.proposals.convert import READERS
from detector.proposals.store import open_proposals
from detector.runtime.files import write_atomically
from detector.schema import parse
from detector.settings import Model, TrainSettings
from detector.training.checkpoint import Checkpoints, load_checkpoint
from detector.training.sharing import save_weights
from scripts.export import main as export
from tests.conftest import REPOSITORY, write_xml
from tests.helpers.watch import nothing_happens


class Payload:
    """Writes the file `stolen` when it is unpickled."""

    def __reduce__(self):
        return (open, ("stolen", "w"))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder, which is to stay free of `stolen`."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def content(run) -> dict:
    """What the run's last checkpoint holds."""
    return load_checkpoint(run / "checkpoints/last.pt")


def refused(path: Path, says: str) -> None:
    with nothing_happens(), pytest.raises(InputError, match=says):
        load_checkpoint(path)


# --- checkpoints


def test_case_15_a_payload_in_a_checkpoint_is_not_run(here, content):
    for where in ("model", "config", "classes", "iteration"):
        torch.save({**content, where: Payload()}, here / "evil.pt")
        refused(here / "evil.pt", "code above all, are refused")
        with pytest.raises(InputError, match="are refused"):
            load_weights(
                build_model(Model(backbone="resnet18", hidden=8), num_classes=2), "resnet18", "evil.pt", ["cat"]
            )
    for protocol in (0, 2, 5):  # a plain pickle under the name of a checkpoint
        (here / "evil.pt").write_bytes(pickle.dumps(Payload(), protocol))
        refused(here / "evil.pt", "are refused")
    assert not (here / "stolen").exists()


def test_case_15_a_payload_in_a_valid_checkpoint_is_refused(here, content):
    torch.save(content, here / "sound.pt")
    with zipfile.ZipFile(here / "sound.pt") as sound, zipfile.ZipFile(here / "evil.pt", "w") as evil:
        for name in sound.namelist():
            evil.writestr(name, pickle.dumps(Payload(), 2) if name.endswith("data.pkl") else sound.read(name))
    refused(here / "evil.pt", "are refused")
    assert not (here / "stolen").exists()


def huge(content: dict) -> dict:
    """A tensor that poses as 4 TB by a stride of 0."""
    return {**content["model"], "cls_score.weight": torch.zeros(1).expand(10**12)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda content: {"model": {}}, "`model` is not a dict of tensors"),
        (lambda content: {"model": {"a": 1}}, "`model` has 'a', not a tensor"),
        (lambda content: {"model": {1: torch.zeros(1)}}, "`model` has 1, not a tensor"),
        (lambda content: {"model": huge(content)}, "cls_score.weight is not a plain tensor"),
        (lambda content: {"model": {"a": torch.eye(2).to_sparse()}}, "a is not a plain tensor"),
        (lambda content: {"config": [1]}, "`config` is not a dict"),
        (lambda content: {"config": {}}, "its settings: data is not given: must be a group of settings"),
        (lambda content: {"config": content["config"] | {"x": torch.zeros(1)}}, "more than plain values"),
        (lambda content: {"config": content["config"] | {"x": OrderedDict(y=1)}}, "more than plain values"),
        (lambda content: {"classes": "cat"}, "`classes` is not a list"),
        (lambda content: {"classes": ["../../.bashrc"]}, "cannot be a class"),
        (lambda content: {"classes": ["cat", "cat"]}, "names a class twice"),
        (lambda content: {"iteration": "7"}, "`iteration` is not a number"),
    ],
)
def test_a_checkpoint_with_a_part_of_another_kind_is_refused(here, content, change, says):
    torch.save({**content, **change(content)}, here / "odd.pt")
    refused(here / "odd.pt", rf"odd\.pt.*{says}")


def test_a_checkpoint_unlike_its_settings_takes_no_memory(settings, content):
    large = Model(backbone="resnet50", hidden=2**16)  # 30 GB of weights
    with pytest.raises(InputError, match="the checkpoint does not fit its own settings of the network: .* tensors"):
        build_trained_model(large, content["model"], 4)


def evaluated(settings, content: dict, here: Path, *overrides: str, **data) -> None:
    """Evaluate a checkpoint that came with other settings of the dataset."""
    content = copy.deepcopy(content)
    content["config"]["data"] |= data
    torch.save(content, here / "model.pt")
    evaluate.main(settings("evaluate", f"checkpoint={here}/model.pt", f"out={here}/out", "workers=0", *overrides))


@pytest.mark.parametrize(
    "reader",
    [
        "os.system",
        "detector.training.tracking.Tracker",
        "torch.optim.SGD",
        "albumentations.Compose",
        "detector.data.check.os",
        "image",  # has read_image
        "nowhere",
    ],
)
def test_a_checkpoint_can_only_name_a_data_set_as_its_reader(settings, content, here, reader):
    with pytest.raises(
        InputError, match=f"data.reader={reader}: (must be voc, coco, folder or shapes|there is no such layout)"
    ):
        evaluated(settings, content, here, reader=reader)


def test_a_checkpoint_cannot_have_a_data_set_made(settings, content, here):
    with pytest.raises(
        InputError, match=r"was trained on data\.root=.*planted, which is not here .*name one with data=voc"
    ):
        evaluated(settings, content, here, reader="shapes", root=f"{here}/planted")
    parts = [{"reader": "shapes", "root": f"{here}/planted", "val_split": "test"}]
    with pytest.raises(InputError, match=r"was trained on .*planted too, which is not here"):
        evaluated(settings, content, here, root=str(here), parts=parts)
    assert not (here / "planted").exists()


def test_exported_weights_name_no_data_set(settings, content, here):
    with pytest.raises(InputError, match=r"model\.pt: names no dataset: name one with data=voc data\.root=DIR"):
        evaluated(settings, content, here, root=None)


def test_other_classes_than_those_of_the_checkpoint_are_refused(settings, content, here):
    with pytest.raises(InputError, match=r"data\.classes=\['ball'\]: .*model\.pt finds .*: leave data\.classes out"):
        evaluated(settings, content, here, "data=voc", "data.root=/data", "data.classes=[ball]")
    with pytest.raises(InputError, match="leave data.classes out"):
        evaluated(settings, content, here, "data.classes=[ball]")
    for classes in ("5", "[1,cat]"):
        with pytest.raises(InputError, match="data.classes=.*: must be null or a list of names"):
            evaluated(settings, content, here, "data=voc", "data.root=/data", f"data.classes={classes}")


def test_the_classes_of_training_may_be_given_again(settings, content, here, small_shapes):
    """Classes that were excluded in training are not among those of the checkpoint."""
    content["config"]["data"]["exclude_classes"] = ["ball"]
    for key in ("cls_score.weight", "cls_score.bias"):
        content["model"][key] = content["model"][key][:4]
    for key in ("bbox_pred.weight", "bbox_pred.bias"):
        content["model"][key] = content["model"][key][:12]
    classes, content["classes"] = content["classes"], content["classes"][1:]
    evaluated(settings, content, here, "data=voc", f"data.root={small_shapes}", "proposals.mode=single",
              f"data.classes=[{','.join(classes)}]", "data.exclude_classes=[ball]")  # fmt: skip
    assert set(json.loads((here / "out/metrics.json").read_text())["voc"]["area@0.50"]["AP"]) == {*content["classes"]}


def test_a_checkpoint_names_no_place_to_write_to(settings, content, here, tmp_path):
    content = copy.deepcopy(content)
    content["config"]["proposals"]["folder"] = str(tmp_path / "planted")
    content["config"]["run"]["dir"] = str(tmp_path / "planted")
    content["config"]["metric"]["devkit"] = True
    content["config"]["out"] = str(tmp_path / "planted")
    evaluated(settings, content, here)
    assert not (tmp_path / "planted").exists()
    assert len(list((here / "data/proposals").glob("*.safetensors"))) == 1
    assert json.loads((here / "out/metrics.json").read_text())["source"]["images"] == 3


def test_proposals_that_training_kept_are_read_where_they_are(settings, content, here):
    evaluated(settings, content, here)
    assert sorted(path.name for path in here.iterdir()) == ["model.pt", "out"]


# --- weights to share


@pytest.fixture
def exported(run, here, monkeypatch) -> Path:
    checkpoint = str(run / "checkpoints/last.pt")
    monkeypatch.setattr(sys, "argv", ["export.py", "weights", "--checkpoint", checkpoint, "--out", str(here / "share")])
    export()
    return here / "share"


def test_exported_weights_score_the_same_to_the_digit(settings, run, exported, here, small_shapes):
    assert sorted(path.name for path in exported.iterdir()) == ["model.json", "model.md", "model.safetensors"]
    where = ["data=voc", f"data.root={small_shapes}", "workers=0"]
    for name, path in (("trained", run / "checkpoints/last.pt"), ("shared", exported / "model.safetensors")):
        evaluate.main(settings("evaluate", f"checkpoint={path}", f"out={here / name}", *where))
    trained, shared = (json.loads((here / name / "metrics.json").read_text()) for name in ("trained", "shared"))
    assert trained["voc"]["area@0.50"]["mAP"] > 0
    assert (shared["voc"], shared["loss"]) == (trained["voc"], trained["loss"])
    assert shared["source"]["iteration"] == 4


def test_exported_weights_tell_nothing_of_the_machine(settings, exported, run, small_shapes):
    about = (exported / "model.json").read_text() + (exported / "model.md").read_text()
    for place in (str(run), str(small_shapes), str(Path.home()), os.sep + "tmp"):
        assert place not in about
    with pytest.raises(InputError, match=r"model\.safetensors: names no dataset: name one with data=voc"):
        evaluate.main(settings("evaluate", f"checkpoint={exported}/model.safetensors"))


def test_of_places_in_the_settings_not_even_the_name_is_exported(here, content):
    """A name without a separator is one too, of a file beside the program; what lies in the dataset is kept."""
    parts = [{"root": "VOC2007"}, {"root": "/data/VOC2012"}]  # lie in data.root, if they do
    mine = {"root": "mine", "train_proposals": "secret.safetensors", "val_json": "val.json", "parts": parts}
    content["config"]["data"] |= mine
    save_weights(here / "more", content)
    data = json.loads((here / "more/model.json").read_text())["config"]["data"]
    assert (data["root"], data["train_proposals"], data["val_json"]) == (None, None, "val.json")
    assert data["parts"] == [{"root": "VOC2007"}, {"root": None}]


def test_what_is_no_path_of_this_machine_is_exported(here, content):
    """Not a fold, a file inside the dataset, or a class that has the name of a setting of paths."""
    kept = {"fold": "1/5", "val_json": "annotations/val.json", "classes": ["root", "a b"]}
    content["config"]["data"] |= kept
    content["config"]["loss"]["class_weights"] = {"root": 2.0, "folder": 0.5}
    save_weights(here / "more", content)
    config = json.loads((here / "more/model.json").read_text())["config"]
    assert {key: config["data"][key] for key in kept} == kept
    assert config["loss"]["class_weights"] == {"root": 2.0, "folder": 0.5}


@pytest.mark.parametrize("image_id", ["/home/you/photo", "../../photo", "a/../../photo"])
def test_an_image_id_cannot_lead_out_of_the_folder_of_results(make_voc, make_coco, image_id):
    root = make_voc({"train": {"a": []}})
    (root / "Annotations/x/y").mkdir(parents=True)
    (root / "ImageSets/Main/evil.txt").write_text(f"{image_id}\n")
    with pytest.raises(InputError, match=r"image id|have no XML file"):
        read_voc(root, "evil")
    coco = make_coco({"train": {"a": []}})
    text = (coco / "train.json").read_text()
    (coco / "train.json").write_text(text.replace('"id": 1', f'"id": "{image_id}"', 1))
    with pytest.raises(InputError, match=r"train\.json: image id .* must be a relative path without '\.\.'"):
        read_coco(coco, "train.json")


def test_exported_weights_start_a_training(exported, content):
    for classes, same in ((content["classes"], True), (content["classes"][::-1], False)):
        model = build_model(Model(backbone="resnet18", hidden=32, weights="imagenet"), num_classes=len(classes))
        load_weights(model, "resnet18", str(exported / "model.safetensors"), classes)
        assert torch.equal(model.head.fc6.weight, content["model"]["head.fc6.weight"])
        assert torch.equal(model.cls_score.weight, content["model"]["cls_score.weight"]) is same


def test_an_export_that_fails_leaves_nothing_behind(here, content, monkeypatch):
    def full(path, data):
        if path.suffix == ".json":
            raise OSError(28, "No space left on device")
        write_atomically(path, data)

    monkeypatch.setattr("detector.training.sharing.write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(here / "share", content)
    assert list((here / "share").iterdir()) == []
    monkeypatch.undo()
    save_weights(here / "share", content)


def test_damaged_exports_are_named(exported):
    tensors, about = exported / "model.safetensors", exported / "model.json"
    whole, said = tensors.read_bytes(), json.loads(about.read_text())
    for header in (
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 10**9),
        b"\0" * 8,
    ):  # a bomb: bytes of the header to come
        tensors.write_bytes(header + whole[8:])
        refused(tensors, r"model\.safetensors: not a checkpoint")
    tensors.write_bytes(whole[:-4])
    refused(tensors, r"model\.safetensors: not a checkpoint")
    tensors.write_bytes(whole)
    texts = {"{": "broken JSON", "[" * 100_000: "broken JSON", "[]": "its format is not", '{"format": 1}': "its format"}
    texts[json.dumps({**said, "format": "fast-rcnn weights 9"})] = "its format is not 'fast-rcnn weights 2'"
    texts[json.dumps({**said, "classes": ["a/b"]})] = "cannot be a class"
    texts[json.dumps({**said, "config": 3})] = "`config` is not a dict"
    for text, says in texts.items():
        about.write_text(text)
        refused(tensors, says)
    about.unlink()
    refused(tensors, r"model\.json: no such file; weights in \.safetensors need it beside them")


# --- settings


FOREIGN = {"_target_": "os.system", "command": "touch stolen"}
WRITES = {"_target_": "detector.training.tracking.Tracker", "folder": "stolen"}
MAKES = {"_target_": "detector.training.checkpoint.Checkpoints", "folder": "stolen"}


@pytest.mark.parametrize("item", [FOREIGN, WRITES, MAKES])
@pytest.mark.parametrize("group", ["optimizer", "schedule", "augment"])
def test_a_config_with_a_target_of_another_kind_makes_nothing(settings, common, here, group, item):
    config = settings("train", *common, "run.dir=run").plain()
    config["augment"]["transforms"] = [item] if group == "augment" else []
    if group == "optimizer":
        config["optimizer"] = item
    if group == "schedule":
        config["schedule"] |= item
    with pytest.raises(InputError, match=rf"_target_: {item['_target_']}: not a class of"):
        train.main(parse(TrainSettings, config))
    assert not (here / "stolen").exists()


OPENS = "{_target_: builtins.open, file: stolen, mode: w}"
LOGS = "{version: 1, handlers: {x: {class: logging.FileHandler, filename: stolen}}, root: {handlers: [x]}}"
STRANGE = {  # untrusted experiments, by the settings of Hydra that they change
    "callbacks": f"callbacks: {{x: {OPENS}}}",
    "job_logging": f"job_logging: {LOGS}",
    "hydra_logging": f"hydra_logging: {LOGS}",
    "launcher": "launcher: {_target_: strange.Launcher}",
    "sweeper": f"sweeper: {{params: {{x: {OPENS}}}}}",
    "output_subdir": "output_subdir: stolen",
    "job": "job: {env_copy: [HOME]}",
    "mode": "mode: MULTIRUN",
}


@pytest.fixture
def ended(here, monkeypatch, capsys):
    """Call a program that leaves the file `done`, with untrusted files at hand: (its status, its stderr)."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    (here / "strange/experiment").mkdir(parents=True)
    (here / "strange/hydra/launcher").mkdir(parents=True)
    for name, text in STRANGE.items():
        (here / f"strange/experiment/{name}.yaml").write_text(f"# @package _global_\nhydra:\n  {text}\n")
    (here / "strange/hydra/launcher/evil.yaml").write_text(
        f"_target_: hydra._internal.core_plugins.basic_launcher.BasicLauncher\nx: {OPENS}\n"
    )
    (here / "strange/model").mkdir()
    (here / "strange/experiment/combined.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: m_${data}\n"
    )
    (here / "strange/model/m_shapes.yaml").write_text("backbone: resnet18\n")
    (here / "strange/model/m_voc07.yaml").write_text(
        "# @package _global_\nhydra:\n  job: {env_set: {HOME: stolen}}\nmodel: {backbone: resnet18}\n"
    )
    own = (REPOSITORY / "configs/train.yaml").read_text()
    (here / "strange/primary.yaml").write_text(own.replace("hydra:", f"hydra:\n  {STRANGE['callbacks']}"))

    def leave_a_file(settings: TrainSettings) -> None:
        (here / "done").write_text(json.dumps(settings.plain()))

    def end(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", "--config-dir", str(here / "strange"), *arguments])
        try:
            start.run_program(leave_a_file, "train", TrainSettings)
        except SystemExit as error:
            return int(error.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return end


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        *((f"experiment={name}", f"hydra.{name}") for name in STRANGE),
        *((f"-m seed=1,2 experiment={name}", f"hydra.{name}") for name in STRANGE),
        ("-m experiment=paper,job_logging", "hydra.job_logging"),
        ("-m experiment=combined,paper data=shapes,voc07", "hydra.job"),  # not in the first run, nor the last
        ("--config-name primary", "--config-name"),
        ("--config-name primary -m experiment=null,paper", "--config-name"),
        ("--help experiment=hydra_logging", "hydra.hydra_logging"),
        ("--hydra-help +experiment=hydra_logging", "--hydra-help"),
        ("--info all experiment=job_logging", "--info"),
        ("-m hydra/launcher=evil", "hydra/launcher=evil"),
        ("-m +hydra.launcher.x._target_=builtins.print", "hydra.launcher"),
        ("+hydra.callbacks.x._target_=builtins.print", "hydra.callbacks"),
        ("--experimental-rerun strange.pickle", "--experimental-rerun"),
    ],
)
def test_an_untrusted_config_file_runs_no_code(here, ended, arguments, says):
    (here / "strange.pickle").write_bytes(pickle.dumps(Payload()))
    status, error = ended(*arguments.split())
    assert (status, error.count("\n"), error.startswith("error: ")) == (2, 1, True), error
    assert says in error
    assert {path.name for path in here.iterdir()} - {"multirun"} == {"strange", "strange.pickle"}


def test_files_and_flags_that_set_nothing_of_hydra(here, ended):
    (here / "strange/experiment/valid.yaml").write_text("# @package _global_\nseed: 7\n")
    assert ended("experiment=valid") == (0, "")
    assert json.loads((here / "done").read_text())["seed"] == 7
    (here / "done").unlink()
    assert ended("-m", "hydra.sweep.dir=sweep", "hydra.sweeper.max_batch_size=1", "seed=1,9") == (0, "")
    assert json.loads((here / "done").read_text())["seed"] == 9
    for flag in (["--help"], ["--cfg", "job"]):
        assert ended(*flag) == (0, "")


@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_the_program_itself_refuses_an_untrusted_config_file(here, ended, flags):
    command = [sys.executable, REPOSITORY / "train.py", *flags, "--config-dir=strange", "experiment=callbacks"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert result.stderr.startswith("error: hydra.callbacks: must not be set")
    assert not (here / "stolen").exists()


@pytest.mark.parametrize("flags", [[], ["-m"]])
@pytest.mark.parametrize(
    "setting",
    ["+data.note=${oc.env:SECRET}", "model.weights='${oc.decode:${oc.env:SECRET}}'", "experiment=secret",
     "experiment=nested"],
)  # fmt: skip
def test_settings_cannot_hold_what_is_in_the_environment(here, ended, monkeypatch, setting, flags):
    monkeypatch.setenv("SECRET", "planted")
    (here / "strange/experiment/secret.yaml").write_text("# @package _global_\nrun:\n  dir: ${oc.env:SECRET}\n")
    (here / "strange/experiment/nested.yaml").write_text(
        "# @package _global_\nrun:\n  kind: env\n  dir: ${oc.${run.kind}:SECRET}\n"
    )
    status, error = ended(*flags, setting)
    assert (status, error.count("\n")) == (2, 1), error
    assert "oc.env: settings do not read the environment; let the shell fill it in, key=$NAME" in error
    assert "planted" not in error
    assert not (here / "done").exists()


@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_what_is_in_the_environment_chooses_no_file(here, ended, monkeypatch, flags):
    monkeypatch.setenv("SECRET", "planted")
    (here / "strange/experiment/chosen.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: ${oc.env:SECRET}\n"
    )
    status, error = ended(*flags, "experiment=chosen")
    assert (status, error.count("\n")) == (2, 1), error
    assert "'${oc.env:SECRET}'" in error
    assert "settings do not read the environment; let the shell fill it in, key=$NAME" in error
    assert "planted" not in error
    assert not (here / "done").exists()


# --- annotations


def bomb() -> str:
    entities = "".join(f'<!ENTITY {b} "&{a};&{a};&{a};&{a};">' for a, b in zip("abcdefghi", "bcdefghij", strict=True))
    return f'<!DOCTYPE x [<!ENTITY a "lol">{entities}]><annotation><object><name>&j;</name></object></annotation>'


@pytest.mark.parametrize(
    "text",
    [bomb(), '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation><object><name>&a;</name></object>'
     "</annotation>", '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><annotation>&a;</annotation>'],
    ids=["bomb", "a file of this machine", "a file from the network"],
)  # fmt: skip
def test_entities_in_xml_are_refused(tmp_path, text):
    (tmp_path / "a.xml").write_text(text)
    with nothing_happens(), pytest.raises(InputError, match=r"a\.xml: broken XML"):
        read_annotation(tmp_path / "a.xml")


def test_100_mb_of_xml_are_refused_unread(tmp_path):
    with open(tmp_path / "a.xml", "w") as file:
        file.truncate(100_000_000)
    with pytest.raises(InputError, match=r"a\.xml: has 100000000 bytes; the limit is 10000000"):
        read_annotation(tmp_path / "a.xml")


def test_elements_nested_deep_are_no_objects(tmp_path):
    (tmp_path / "a.xml").write_text("<annotation>" + "<object>" * 100_000 + "</object>" * 100_000 + "</annotation>")
    annotation = read_annotation(tmp_path / "a.xml")
    assert (annotation.names, len(annotation.skipped)) == ((), 1)


def test_a_class_that_is_a_path_is_refused(make_voc):
    with pytest.raises(InputError, match="cannot be a class"):
        read_voc(make_voc({"train": {"a": [("../../x", 1, 1, 2, 2)]}}), "train")


def test_a_packed_checkpoint_is_refused_before_it_is_unpacked(tmp_path, content):
    torch.save(content | {"model": {"a": torch.zeros(10**7)}}, tmp_path / "stored.pt")
    with (
        zipfile.ZipFile(tmp_path / "stored.pt") as stored,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in stored.namelist():
            bomb.writestr(name, stored.read(name))
    refused(tmp_path / "bomb.pt", r"bomb\.pt: not a checkpoint .*data\.pkl is packed")


def test_a_split_cannot_name_a_place_to_write_to(make_voc, tmp_path):
    """What a checkpoint says of the data becomes part of files' names."""
    root = make_voc({"train": {"a": [("cat", 1, 1, 20, 20)]}}, name="climbs")
    (tmp_path / "notes.txt").write_text("a\n")
    up = os.path.relpath(tmp_path / "notes", root / "ImageSets/Main")
    dataset = read_voc(root, up)
    assert "/" not in dataset.name
    check_data(dataset)
    assert [path.parent for path in cache_folder().rglob("climbs-*notes*")] == [cache_folder()]
    assert sorted(path.name for path in tmp_path.glob("notes*")) == ["notes.txt"]


# --- proposals, caches, images


@pytest.mark.parametrize("name", ["p.pkl", "p.mat", "p.safetensors"])
def test_a_pickle_given_as_proposals_is_refused(here, name):
    (here / name).write_bytes(pickle.dumps(Payload()))
    with nothing_happens(), pytest.raises(InputError, match=rf"{name}: "):
        open_proposals(here / name)
    assert not (here / "stolen").exists()


def test_a_pickle_given_as_npz_is_refused(here):
    (here / "p.npz").write_bytes(pickle.dumps(Payload()))
    with nothing_happens(), pytest.raises(InputError, match=r"p\.npz: not a readable"):
        READERS["npz"](here / "p.npz")
    assert not (here / "stolen").exists()


def test_object_arrays_given_as_proposals_run_nothing(here):
    np.savez(here / "p.npz", boxes=np.array([Payload()], dtype=object))
    raw = READERS["npz"](here / "p.npz")
    with pytest.raises(InputError, match=r"p\.npz: 'boxes' cannot be read.*allow_pickle=False"):
        [*raw.rows.values()]
    assert not (here / "stolen").exists()


def test_a_pickle_given_as_the_cache_is_ignored(here, make_voc):
    root = make_voc({"train": {"a": [("cat", 1, 1, 2, 2)]}}, name="poisoned")
    check_data(read_voc(root, "train"))
    [cache] = cache_folder().glob("poisoned-train-*.json")
    cache.write_bytes(pickle.dumps(Payload()))
    assert check_data(read_voc(root, "train")).image_hws == [(40, 60)]
    assert not (here / "stolen").exists()


@pytest.mark.parametrize("suffix", ["gif", "ppm", "eps", "ico", "icns", "fits"])
def test_only_common_image_formats_are_decoded(make_voc, suffix):
    root = make_voc({"train": {"a": [("cat", 1, 1, 2, 2)]}})
    write_xml(root / "Annotations/a.xml", [])
    starts = {"fits": b"SIMPLE  =                    T".ljust(2880)}
    if suffix in starts:
        (root / "JPEGImages/a.jpg").write_bytes(starts[suffix])
    else:
        Image.new("RGB", (16, 16)).save(root / "JPEGImages/a.jpg", format={"ico": "ICO"}.get(suffix, suffix.upper()))
    [(kind, text)] = check_data(read_voc(root, "train")).bad
    assert (kind, "not an image (readable are JPEG, PNG, WEBP, BMP, TIFF)" in text) == ("corrupt", True)


def test_save_and_load_keep_what_a_checkpoint_says(tmp_path, content):
    Checkpoints(tmp_path).save_last(content)
    again = load_checkpoint(tmp_path / "last.pt")
    assert {key: again[key] for key in ("config", "classes", "iteration")} == {
        key: content[key] for key in ("config", "classes", "iteration")
    }
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", r"other\.json: no such file")
