import functools
import hashlib
import http.server
import threading

import pytest
import torch
from torchvision import models

from detector.errors import InputError
from detector.models import build_model, weights
from detector.models.weights import imagenet_url, load_weights, to_torchvision
from detector.settings import Model
from detector.training.checkpoint import Checkpoints, load_checkpoint

CLASSES = ["cat", "dog"]


def classifier(backbone: str) -> torch.nn.Module:
    return {"vgg16": models.vgg16, "resnet18": models.resnet18, "resnet50": models.resnet50}[backbone]().eval()


@pytest.mark.parametrize("head", ["fc", "res5"])
def test_a_resnet_computes_what_the_classifier_computed(tmp_path, head):
    net = classifier("resnet18")
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    model = build_model(Model(backbone="resnet18", head=head, hidden=8, weights="imagenet"), num_classes=2).train()
    load_weights(model, "resnet18", str(tmp_path / "w.pth"), CLASSES)
    x = torch.rand(1, 3, 64, 64)
    of_layer3 = net.layer3(net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))))
    features = model.backbone(x)
    torch.testing.assert_close(features, of_layer3, atol=1e-4, rtol=1e-4)
    back, expected = to_torchvision(model.state_dict(), "resnet18"), net.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in back.items())
    assert {key.partition(".")[0] for key in expected.keys() - back.keys() if "num_batches" not in key} == (
        {"fc"} if head == "res5" else {"fc", "layer4"}
    )
    if head == "res5":
        torch.testing.assert_close(model.head(features), net.layer4(of_layer3).mean((2, 3)), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_fully_connected_layers_of_vgg16_are_reordered(tmp_path):
    net = classifier("vgg16")
    torch.save(net.state_dict(), tmp_path / "w.pth")
    model = build_model(Model(backbone="vgg16", hidden=4096, weights="imagenet"), num_classes=2).eval()
    load_weights(model, "vgg16", str(tmp_path / "w.pth"), CLASSES)
    pooled = torch.rand(2, 512, 7, 7)
    torch.testing.assert_close(model.head(pooled), net.classifier[:5](pooled.flatten(1)), atol=1e-4, rtol=1e-4)
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(model.backbone(x), net.features[:-1](x), atol=1e-4, rtol=1e-4)
    back, expected = to_torchvision(model.state_dict(), "vgg16"), net.state_dict()
    assert expected.keys() - back.keys() == {"classifier.6.weight", "classifier.6.bias"}
    assert all(torch.equal(value, expected[key]) for key, value in back.items())


def test_a_pyramid_starts_from_the_weights_of_a_resnet(tmp_path, caplog):
    caplog.set_level("INFO")
    net = classifier("resnet18")
    torch.save(net.state_dict(), tmp_path / "w.pth")
    model = build_model(Model(backbone="resnet18_fpn", hidden=8, weights="imagenet"), num_classes=2)
    load_weights(model, "resnet18_fpn", str(tmp_path / "w.pth"), CLASSES)
    assert torch.equal(model.backbone.layer4[1].conv2.weight, net.layer4[1].conv2.weight)
    assert "trained from scratch: backbone.fpn." in caplog.text
    assert "backbone.layer" not in caplog.text
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "layer1"}
    back, expected = to_torchvision(model.state_dict(), "resnet18_fpn"), net.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in back.items())
    assert {key.partition(".")[0] for key in expected.keys() - back.keys() if "num_batches" not in key} == {"fc"}


def test_a_dilated_resnet_takes_all_of_a_resnet_s_weights(tmp_path):
    net = classifier("resnet50").eval()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    model = build_model(Model(backbone="resnet50_dc5", hidden=8, weights="imagenet"), num_classes=2).eval()
    load_weights(model, "resnet50_dc5", str(tmp_path / "w.pth"), CLASSES)
    images = torch.rand(1, 3, 32, 32)
    found, expected = [], []
    model.backbone.layer4.register_forward_hook(lambda *args: found.append(args[2]))
    net.layer4.register_forward_hook(lambda *args: expected.append(args[2]))
    model.backbone(images)
    net(images)
    assert (found[0].shape, expected[0].shape) == ((1, 2048, 2, 2), (1, 2048, 1, 1))
    assert imagenet_url("resnet50_dc5") == imagenet_url("resnet50")
    back, wanted = to_torchvision(model.state_dict(), "resnet50_dc5"), net.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in back.items())
    assert {key.partition(".")[0] for key in wanted.keys() - back.keys() if "num_batches" not in key} == {"fc"}
    with pytest.raises(InputError, match="resnet50_dc5 takes fc or 4conv1fc"):
        build_model(Model(backbone="resnet50_dc5", head="res5"), num_classes=2)


def test_weights_with_batch_norm_do_not_fit_group_norm(tmp_path):
    torch.save(classifier("resnet18").state_dict(), tmp_path / "w.pth")
    model = build_model(Model(backbone="resnet18", hidden=8, norm="group", weights="x"), num_classes=2)
    with pytest.raises(InputError, match=r"model.norm=group: .*w\.pth has statistics of batch norm"):
        load_weights(model, "resnet18", str(tmp_path / "w.pth"), CLASSES)


@pytest.mark.slow
def test_alexnet_computes_what_the_classifier_computed(tmp_path):
    net = models.alexnet().eval()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    settings = Model(backbone="alexnet", pool_size=6, hidden=4096, weights="imagenet")
    model = build_model(settings, num_classes=2).eval()
    load_weights(model, "alexnet", str(tmp_path / "w.pth"), CLASSES)
    pooled = torch.rand(2, 256, 6, 6)
    torch.testing.assert_close(model.head(pooled), net.classifier[:6](pooled.flatten(1)), atol=1e-4, rtol=1e-4)
    back, expected = to_torchvision(model.state_dict(), "alexnet"), net.state_dict()
    assert expected.keys() - back.keys() == {"classifier.6.weight", "classifier.6.bias"}
    assert all(torch.equal(value, expected[key]) for key, value in back.items())


def test_torchvision_has_no_weights_of_the_paper_s_model_m():
    model = build_model(Model(backbone="vgg_cnn_m", pool_size=2, hidden=8, weights="imagenet"), num_classes=2)
    with pytest.raises(InputError, match="torchvision has none for vgg_cnn_m"):
        load_weights(model, "vgg_cnn_m", "imagenet", CLASSES)


@pytest.mark.parametrize("theirs", [["a", "b", "c", "d", "e"], ["dog", "cat"], ["cat", "horse"], None])
def test_other_classes_give_all_but_the_output_layers(tmp_path, caplog, theirs):
    """Also where as many, or the same in another order: those layers would say the wrong name."""
    caplog.set_level("INFO")
    trained = build_model(Model(backbone="resnet18", hidden=8), num_classes=len(theirs or CLASSES))
    content = {"model": trained.state_dict(), "config": {"seed": 0}, "classes": theirs, "iteration": 7}
    Checkpoints(tmp_path).save_last(content)
    model = build_model(Model(backbone="resnet18", hidden=8, weights="imagenet"), num_classes=2)
    fresh = model.cls_score.weight.clone()
    load_weights(model, "resnet18", str(tmp_path / "last.pt"), CLASSES)
    assert torch.equal(model.head.fc6.weight, trained.head.fc6.weight)
    assert torch.equal(model.cls_score.weight, fresh)
    assert "trained from scratch: bbox_pred, cls_score" in caplog.text
    assert (f"its output layers are not loaded: {', '.join(theirs or [])}" in caplog.text) is (theirs is not None)


def test_a_checkpoint_with_the_same_classes_gives_all(tmp_path, caplog):
    caplog.set_level("INFO")
    trained = build_model(Model(backbone="resnet18", hidden=8), num_classes=2)
    Checkpoints(tmp_path).save_last({"model": trained.state_dict(), "classes": CLASSES, "iteration": 7})
    model = build_model(Model(backbone="resnet18", hidden=8, weights="imagenet"), num_classes=2)
    load_weights(model, "resnet18", str(tmp_path / "last.pt"), tuple(CLASSES))
    assert torch.equal(model.cls_score.weight, trained.cls_score.weight)
    assert "trained from scratch: nothing" in caplog.text


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize(
    ("theirs", "own"), [("per_class", "fixed"), ("fixed", "per_class"), ("per_class", "per_class")]
)
def test_boxes_do_not_depend_on_the_statistics_of_the_targets(tmp_path, theirs, own, agnostic):
    model = Model(backbone="resnet18", hidden=8, class_agnostic=agnostic, delta_normalization=theirs)
    trained = build_model(model, num_classes=2)
    rows = 1 if agnostic else 2
    if theirs == "per_class":
        trained.set_delta_statistics(torch.randn(rows, 4), torch.rand(rows, 4) + 0.5, keep_outputs=False)
    torch.nn.init.normal_(trained.bbox_pred.bias)
    torch.nn.init.normal_(trained.bbox_pred.weight)
    Checkpoints(tmp_path).save_last({"model": trained.state_dict(), "classes": CLASSES, "iteration": 7})
    taken = build_model(model.with_values(weights="x", delta_normalization=own, norm="batch"), num_classes=2)
    assert load_weights(taken, "resnet18", str(tmp_path / "last.pt"), CLASSES)
    if own == "per_class":
        taken.set_delta_statistics(torch.randn(rows, 4), torch.rand(rows, 4) + 0.5, keep_outputs=True)
    images, rois = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8), torch.tensor([[0, 0, 0, 50, 60.0]])
    expected, found = trained.eval()(images, rois)[1], taken.eval()(images, rois)[1]
    assert expected.shape == (1, 2, 4)
    torch.testing.assert_close(found, expected)


def test_statistics_that_do_not_fit_their_boxes_are_refused(tmp_path):
    model = Model(backbone="resnet18", hidden=8, delta_normalization="per_class")
    state = build_model(model, num_classes=2).state_dict() | {"delta_std": torch.ones(3, 4)}
    Checkpoints(tmp_path).save_last({"model": state, "classes": CLASSES, "iteration": 7})
    with pytest.raises(InputError, match="statistics of its targets do not fit its box regression"):
        load_weights(build_model(model, num_classes=2), "resnet18", str(tmp_path / "last.pt"), CLASSES)


class Payload:
    def __reduce__(self):
        return (open, ("stolen", "w"))


def test_bad_files_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = build_model(Model(backbone="resnet18", hidden=8), num_classes=2)
    torch.save(classifier("vgg16").features.state_dict(), tmp_path / "other.pth")
    torch.save(models.resnet50().state_dict(), tmp_path / "deeper.pth")
    torch.save({"model": Payload()}, tmp_path / "evil.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    cases = {"none": "no such", "junk": "not a checkpoint", "evil": "code above all, are refused",
             "list": "holds a list", "other": "does not fit resnet18: it lacks backbone.stem.0.weight",
             "deeper": "does not fit resnet18"}  # fmt: skip
    for name, says in cases.items():
        with pytest.raises(InputError, match=rf"{name}\.pth:? .*{says}"):
            load_weights(model, "resnet18", f"{name}.pth", CLASSES)
    assert not (tmp_path / "stolen").exists()
    with pytest.raises(InputError, match=r"evil\.pth"):
        load_checkpoint(tmp_path / "evil.pth")
    with pytest.raises(InputError, match=r"other\.pth: not a checkpoint of this program: it has no classes, config"):
        load_checkpoint(tmp_path / "other.pth")


def test_weights_that_are_wrapped_as_other_programs_do(tmp_path):
    state = classifier("resnet18").state_dict()
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, tmp_path / "w.pth"
    )
    model = build_model(Model(backbone="resnet18", hidden=8), num_classes=2)
    load_weights(model, "resnet18", str(tmp_path / "w.pth"), CLASSES)
    assert torch.equal(model.backbone.stem[0].weight, state["conv1.weight"])


@pytest.mark.parametrize(
    "spoil",
    [
        {"classifier.0.weight": torch.zeros(1280, 960), "classifier.0.bias": torch.zeros(1280)},  # of MobileNetV3
        {3: torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(2)},
        {"conv1.weight": "zeros"},
        {"conv1.weight": torch.zeros(64, 3, 7, 7, device="meta")},
        {"conv1.weight": torch.zeros(64, 3, 7, 7, dtype=torch.complex64)},
        {"conv1.weight": torch.zeros(64, 3, 7, 7, dtype=torch.int8)},
        {"conv1.weight": torch.zeros(64, 3, 7, 7).to_sparse()},
    ],
)
def test_files_of_other_networks_and_of_no_tensors_do_not_fit(tmp_path, spoil):
    state = models.resnet18().state_dict()
    torch.save(spoil if "classifier.0.weight" in spoil else state | spoil, tmp_path / "w.pth")
    backbone = "vgg16" if "classifier.0.weight" in spoil else "resnet18"
    model = build_model(Model(backbone=backbone, hidden=8), num_classes=2)
    with pytest.raises(InputError, match=rf"w\.pth does not fit {backbone}: it lacks backbone"):
        load_weights(model, backbone, str(tmp_path / "w.pth"), CLASSES)


@pytest.fixture
def server(tmp_path):
    """A web server on this machine with the folder `web`."""
    (tmp_path / "web").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", tmp_path / "web"
        running.shutdown()


def test_imagenet_weights_are_fetched_once_and_checked(server, tmp_path, monkeypatch):
    url, web = server
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    net = classifier("resnet18")
    torch.save(net.state_dict(), web / "net.pth")
    digest = hashlib.sha256((web / "net.pth").read_bytes()).hexdigest()[:8]
    name = f"resnet18-{digest}.pth"
    (web / "net.pth").rename(web / name)
    monkeypatch.setattr(weights, "imagenet_url", lambda backbone: f"{url}/{name}")
    model = build_model(Model(backbone="resnet18", hidden=8, weights="imagenet"), num_classes=2)
    load_weights(model, "resnet18", "imagenet", CLASSES)
    assert torch.equal(model.backbone.stem[0].weight, net.conv1.weight)
    (web / name).write_bytes(b"junk")
    load_weights(model, "resnet18", "imagenet", CLASSES)  # the kept file
    (tmp_path / "home/hub/checkpoints" / name).unlink()
    with pytest.raises(InputError, match="cannot be downloaded .*hash"):
        load_weights(model, "resnet18", "imagenet", CLASSES)


def test_without_a_network_the_error_names_the_file_and_place(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(weights, "imagenet_url", lambda backbone: "http://127.0.0.1:9/vgg16-12345678.pth")
    model = build_model(Model(backbone="vgg16", hidden=8, weights="imagenet"), num_classes=2)
    with pytest.raises(InputError, match=r"127.0.0.1:9/vgg16-12345678.pth cannot be downloaded .*home/hub/checkpoints"):
        load_weights(model, "vgg16", "imagenet", CLASSES)
