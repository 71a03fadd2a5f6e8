"""Export as ONNX, and detection with the file, compared with the network in torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import batched_nms

import detector
from detector.box_arrays import nms
from detector.boxes import BoxCoder
from detector.builders.network import build_trained_model
from detector.errors import InputError, RunFailure
from detector.inference.onnx_network import FORMAT
from detector.models import FastRCNN, build_model
from detector.models.backbones import Backbone
from detector.models.heads import FcHead
from detector.models.pooling import POOLINGS, PyramidPooling, RoIPoolOnMap, levels_of
from detector.roi_pool import roi_pool
from detector.settings import Model
from detector.training.checkpoint import load_checkpoint, trained_settings
from detector.training.sharing import describe_network
from scripts import export
from tests.conftest import REPOSITORY

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
onnx_export = pytest.importorskip("detector.inference.onnx_export", reason="the extra [onnx] is not installed")
LOW = {"score_threshold": 0.05}


class SmallBackbone(Backbone):
    """Two convolutions of stride 16 together, since the exporter takes many seconds for a deep network."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 7, stride=4, padding=3), nn.ReLU(), nn.Conv2d(16, 32, 5, 4, 2), nn.ReLU()
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def small_network(num_classes: int = 4) -> FastRCNN:
    torch.manual_seed(0)
    network = FastRCNN(
        SmallBackbone(), RoIPoolOnMap(7, 1 / 16), FcHead(32, 7, 32, 0.5), num_classes, normalize_deltas=True
    )
    network.set_delta_statistics(torch.randn(num_classes, 4) / 4, torch.rand(num_classes, 4) + 0.5, keep_outputs=False)
    nn.init.normal_(network.bbox_pred.weight, std=0.05)
    nn.init.normal_(network.cls_score.weight, std=0.3)
    return network.eval()


@pytest.fixture(scope="module")
def coder() -> BoxCoder:
    return BoxCoder((0.1, 0.1, 0.2, 0.2))


@pytest.fixture(scope="module")
def exported(untrained_checkpoint, coder, tmp_path_factory):
    """The small network as a file, with the settings and classes of a checkpoint."""
    about = describe_network(load_checkpoint(untrained_checkpoint)) | {"format": FORMAT}
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    path.write_bytes(onnx_export.export_onnx(small_network(), coder, about))
    return path


def outputs(session, network, coder, images, rois):
    """Scores and boxes of onnxruntime and of torch."""
    theirs = session.run(["scores", "boxes"], {"images": images.numpy(), "rois": rois.numpy()})
    with torch.inference_mode():
        ours = onnx_export.ExportedNetwork(network, coder)(images, rois)
    return zip(theirs, [each.numpy() for each in ours], strict=True)


def random_rois(count: int, images: torch.Tensor) -> torch.Tensor:
    batch, _, height, width = images.shape
    corners = torch.rand(count, 2, 2).sort(dim=1).values.flatten(1) * torch.tensor([width, height] * 2)
    return torch.cat([torch.randint(0, batch, (count, 1)), corners], dim=1)


def test_max_roi_pool_is_our_roi_pooling():
    """Random RoIs, halves between two cells, the widths at which float32 bins exceed the RoI, and RoIs off the map."""
    onnx = pytest.importorskip("onnx")
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("MaxRoiPool", ["x", "rois"], ["y"], pooled_shape=[7, 7], spatial_scale=1 / 16)
    inputs = [helper.make_tensor_value_info(name, real, [None] * rank) for name, rank in (("x", 4), ("rois", 2))]
    graph = helper.make_graph([node], "pool", inputs, [helper.make_tensor_value_info("y", real, [None] * 4)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    features = torch.randn(2, 5, 130, 140)
    starts = torch.randint(0, 130, (300, 2)) * 8.0  # half of them between two cells
    sizes = torch.randint(0, 130, (300, 2)) * 8.0
    many = torch.cat([torch.randint(0, 2, (300, 1)), starts, starts + sizes], dim=1)
    wide = torch.tensor([[0, 0, 0, (size - 1) * 16.0, 100] for size in (57, 114, 121)])
    edge = torch.tensor([[1, 2200, 100, 2300, 300], [0, 300, 300, 200, 200], [1, -50, -60, 40, 30], [0, 5, 5, 5, 5.0]])
    rois = torch.cat([many, random_rois(300, torch.empty(2, 3, 2080, 2240)), wide, edge])
    (pooled,) = session.run(None, {"x": features.numpy(), "rois": rois.numpy()})
    np.testing.assert_array_equal(pooled, roi_pool(features, rois, 7, 1 / 16).numpy())


@pytest.mark.parametrize(("batch", "height", "width", "count"), [(1, 100, 130, 40), (3, 64, 200, 1), (2, 32, 32, 7)])
def test_images_and_rois_of_any_number_and_size(exported, coder, batch, height, width, count):
    session = onnxruntime.InferenceSession(exported)
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    thin = torch.tensor([[0, 0, height - 1, width, height], [0, width - 1, 0, width, height]], dtype=torch.float32)
    rois = torch.cat([random_rois(count, images), thin])
    for theirs, ours in outputs(session, small_network(), coder, images, rois):
        assert theirs.dtype == np.float32
        np.testing.assert_allclose(theirs, ours, atol=1e-4)
    assert (ours[..., 0] >= 0).all()
    assert ours[..., 2].max() <= width


def test_detections_are_those_of_the_network(exported, untrained_checkpoint, coder, small_shapes):
    """With the same settings, classes and selective search."""
    ours, theirs = detector.load(untrained_checkpoint, "cpu"), detector.load(exported)
    ours.network = type(ours.network)(small_network(), coder, ours.network.compute)
    assert (theirs.classes, theirs.settings.detect) == (ours.classes, ours.settings.detect)
    assert theirs.settings.proposals.mode == "single"
    for number in range(2):
        expected, found = (
            model.detect(small_shapes / f"JPEGImages/test_{number}.jpg", **LOW) for model in (ours, theirs)
        )
        assert len(expected) == len(found) > 10
        assert expected.names == found.names
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
    assert len(theirs.detect(np.zeros((20, 20, 3), np.uint8), proposals=np.zeros((0, 4)))) == 0
    with pytest.raises(InputError, match="has no such output"):
        theirs.roi_features(np.zeros((20, 20, 3), np.uint8), [[0, 0, 5, 5]])


def test_the_program_detects_without_torch(exported, small_shapes, tmp_path):
    blocked = ("torch", "torchvision", "albumentations", "hydra", "omegaconf", "tensorboard", "onnx", "onnxscript")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked})); from scripts.detect import main; sys.exit(main())"
    )
    options = ["--checkpoint", exported, "--input", small_shapes / "JPEGImages/test_0.jpg", "--out", tmp_path / "found"]
    command = [sys.executable, "-c", code, *map(str, options), "--score-threshold", "0.05"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads((tmp_path / "found/detections.json").read_text())
    expected = detector.load(exported).detect(small_shapes / "JPEGImages/test_0.jpg", **LOW)
    assert [item["category_name"] for item in found] == expected.names
    assert (tmp_path / "found/pictures/test_0.jpg").is_file()


def test_nms_in_numpy_is_that_of_torch():
    generator = np.random.default_rng(0)
    for count in (0, 1, 300):
        boxes = np.sort(generator.uniform(0, 100, (count, 2, 2)), axis=1).reshape(-1, 4).astype(np.float32)
        scores, labels = generator.uniform(size=count).astype(np.float32), generator.integers(1, 4, count)
        for iou in (0.0, 0.3, 0.7, 1.0):
            given = torch.from_numpy(boxes).double(), torch.from_numpy(scores).double(), torch.from_numpy(labels)
            np.testing.assert_array_equal(nms(boxes, scores, labels, iou), batched_nms(*given, iou).numpy())


def test_a_difference_ends_the_export(exported, coder):
    session, network = onnxruntime.InferenceSession(exported), small_network()
    onnx_export._verify(session, onnx_export.ExportedNetwork(network, coder))
    network.roi_pool.spatial_scale = 1 / 15
    with pytest.raises(RunFailure, match="onnxruntime gives other scores than the network: they differ by 0."):
        onnx_export._verify(session, onnx_export.ExportedNetwork(network, coder))


def test_an_export_that_fails_leaves_the_network_as_it_was(monkeypatch, coder):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    network = small_network()
    pooling = network.roi_pool
    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(RuntimeError, match="no such operator"):
        onnx_export.export_onnx(network, coder, {})
    assert network.roi_pool is pooling


class SmallPyramid(SmallBackbone):
    """Four maps, with negative values, of strides 4 to 32."""

    ends_with_relu, stride, levels = False, 4, 4

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        finest = self.layers[:3](images) - 0.5
        return [finest, *(nn.functional.avg_pool2d(finest, 2**level) for level in (1, 2, 3))]


@pytest.mark.parametrize(
    ("pooling", "levels"),
    [
        ("roi_align", 1),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("roi_align_v2", 1), ("roi_pool", 4), ("roi_align", 4)]
        ),
    ],
)
def test_every_pooling_is_exported(pooling, levels, coder):
    """The network with the weights of `small_network`, on RoIs of all sizes and at the border."""
    network = small_network()
    if levels == 4:
        torch.manual_seed(0)
        network.backbone = SmallPyramid()
        network.backbone.layers[2] = nn.Conv2d(16, 32, 5, 1, 2)
        network.roi_pool = PyramidPooling([POOLINGS[pooling](7, 1 / (4 * 2**level)) for level in range(4)])
    else:
        network.roi_pool = POOLINGS[pooling](7, 1 / 16)
    before = network.roi_pool
    session = onnxruntime.InferenceSession(onnx_export.export_onnx(network, coder, {}))
    assert network.roi_pool is before
    images = torch.randint(0, 256, (2, 3, 500, 600), dtype=torch.uint8)
    off = torch.tensor([[1, 599, 499, 600, 500], [0, 599, 0, 600, 500], [0, 0, 0, 600, 500.0]])
    rois = torch.cat([random_rois(60, images), random_rois(40, images) / torch.tensor([1, 9, 9, 9, 9]), off])
    if levels == 4:
        assert set(levels_of(rois, 4).tolist()) == {0, 1, 2, 3}
    for theirs, ours in outputs(session, network, coder, images, rois):
        np.testing.assert_allclose(theirs, ours, atol=1e-4 * (600 if ours.ndim == 3 else 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        ("resnet18", "fc"),
        ("resnet50", "res5"),
        ("vgg16", "fc"),
        ("resnet18_fpn", "fc"),
        ("timm/mobilenetv3_small_050", "fc"),
    ],
)
def test_networks_with_hard_nms_are_exported(backbone, head, coder):
    if backbone.startswith("timm/"):
        pytest.importorskip("timm", reason="the extra [timm] is not installed")
    torch.manual_seed(0)
    network = build_model(Model(backbone=backbone, head=head, hidden=64), 3)
    content = onnx_export.export_onnx(network, coder, {})  # which compares 100 RoIs
    assert str(REPOSITORY).encode() not in content  # nor any other path of this machine
    assert b"site-packages" not in content


def test_the_program_writes_the_file_and_its_card(untrained_checkpoint, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(
        onnx_export, "export_onnx", lambda model, coder, about: calls.append((model, coder, about)) or b"onnx"
    )
    command = ["onnx", "--checkpoint", str(untrained_checkpoint), "--out", str(tmp_path / "new/model.onnx")]
    assert export.main([*command, "--licence", "CC BY 4.0"]) == 0
    assert (tmp_path / "new/model.onnx").read_bytes() == b"onnx"
    card = (tmp_path / "new/model.md").read_text()
    for line in (
        "- Classes, label 1 first: ball, crate, kite, star",
        "- Licence of the weights: CC BY 4.0",
        "There is no evaluation of these weights beside the checkpoint.",
        "  max_side_px: 160",
    ):
        assert line in card.splitlines()
    ((model, coder, about),) = calls
    checkpoint = load_checkpoint(untrained_checkpoint)
    settings = trained_settings(checkpoint)
    expected = build_trained_model(settings.model, checkpoint["model"], 4)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())
    assert coder.std == settings.roi.delta_std
    assert about["classes"] == ["ball", "crate", "kite", "star"]
    assert about["config"]["data"]["root"] is None
    assert export.main(command) == 2
    assert "model.onnx already exists and is not overwritten" in capsys.readouterr().err
    assert export.main([*command[:-1], str(tmp_path / "model.pt")]) == 2
    assert "must end in .onnx" in capsys.readouterr().err


def test_the_card_has_the_metrics_of_the_run(untrained_checkpoint, tmp_path, capsys):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    checkpoint = tmp_path / "run/checkpoints/best.pt"
    checkpoint.write_bytes(untrained_checkpoint.read_bytes())
    metrics = {"voc": {"area@0.50": {"mAP": 0.5, "AP": {"ball": 0.25, "crate": None}}}}
    metrics["source"] = {"images": 3, "data": "mine-test", "iteration": 1}
    (tmp_path / "run/metrics.json").write_text(json.dumps(metrics))
    command = ["weights", "--checkpoint", str(checkpoint), "--out"]
    assert export.main([*command, str(tmp_path / "a")]) == 0
    card = (tmp_path / "a/model.md").read_text()
    assert "On 3 images of mine-test, after 1 iterations:" in card
    assert "| area@0.50 | 0.500 | 0.250 | - |" in card
    assert "- Licence of the weights: not stated" in card
    metrics["source"]["iteration"] = 2  # of other weights of the run
    (tmp_path / "run/metrics.json").write_text(json.dumps(metrics))
    assert export.main([*command, str(tmp_path / "later")]) == 0
    assert "There is no evaluation of these weights" in (tmp_path / "later/model.md").read_text()
    (tmp_path / "run/metrics.json").write_text("[]")
    assert export.main([*command, str(tmp_path / "b")]) == 2
    assert "metrics.json: is not the metrics.json of a run" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "model.md"])
def test_a_folder_with_exported_weights_is_refused_first(name, tmp_path, capsys):
    (tmp_path / name).write_text("mine")
    assert export.main(["weights", "--checkpoint", "nowhere.pt", "--out", str(tmp_path)]) == 2
    says = f"error: --out: {tmp_path / name} already exists and is not overwritten: name another folder\n"
    assert capsys.readouterr().err == says
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}


def test_files_that_are_no_exported_network(exported, tmp_path):
    onnx = pytest.importorskip("onnx")
    other = onnx.load(exported)
    (tmp_path / "cut.onnx").write_bytes(exported.read_bytes()[:5000])
    about = json.loads(other.metadata_props[0].value)
    for key, change in {
        "other.onnx": {"format": "another"},
        "classes.onnx": {"classes": ["a", "a"]},
        "none.onnx": {"classes": []},
        "config.onnx": {"config": {"detect": 3}},
        "soft.onnx": {"config": about["config"] | {"detect": about["config"]["detect"] | {"nms": "soft"}}},
    }.items():
        changed = onnx.ModelProto.FromString(other.SerializeToString())
        changed.metadata_props[0].value = json.dumps(about | change)
        onnx.save(changed, tmp_path / key)
    for name, says in {
        "nowhere.onnx": "no such file",
        "cut.onnx": "not a readable ONNX file",
        "other.onnx": "was not written by this version's scripts/export.py onnx",
        "classes.onnx": "classes",
        "none.onnx": "its classes are not a list of names",
        "config.onnx": "its settings",
        "soft.onnx": "was trained with detect.nms=soft",
    }.items():
        with pytest.raises(InputError, match=rf"{name}.*{says}"):
            detector.load(tmp_path / name)
    with pytest.raises(InputError, match="device: 'cuda': an .onnx runs on the CPU"):
        detector.load(exported, "cuda")
