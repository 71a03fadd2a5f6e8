"""The layer inside torch: autograd, compile, export, autocast, memory formats, and memory."""

import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

from detector.roi_pool import RoIPool, cpu, layer, memory, roi_pool, threads

ROIS = torch.tensor([[0, 0, 0, 40, 60], [1, 16, 8, 90, 90], [1, 200, 200, 300, 300], [0, 50, 50, 20, 20.0]])


def features(dtype=torch.float32, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, 6, 7, dtype=dtype, generator=generator)


class Network(nn.Module):
    """A backbone, the layer used twice, and a head."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = RoIPool((2, 3), 1 / 16)
        self.head = nn.Linear(8 * 6, 5)

    def forward(self, images, rois):
        maps = self.convolution(images)
        pooled = self.pool(maps, rois) + roi_pool(maps.relu(), rois, (2, 3), 1 / 8)
        return self.head(pooled.permute(0, 2, 3, 1).flatten(1))


def outputs_and_gradients(network, function, *inputs):
    network.zero_grad()
    output = function(*inputs)
    output.square().sum().backward()
    return [output.detach(), *(parameter.grad for parameter in network.parameters())]


def test_gradcheck():
    maps = features(torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda maps: roi_pool(maps, ROIS.double(), (2, 3), 1 / 16), maps)


@pytest.mark.parametrize("with_argmax", [True, False])
def test_opcheck_forward(with_argmax):
    maps = features().requires_grad_(with_argmax)
    torch.library.opcheck(layer.operator, (maps, ROIS, 2, 3, 1 / 16, with_argmax))


def test_opcheck_backward():
    pooled, argmax = layer.operator(features(), ROIS, 2, 3, 1 / 16, True)
    torch.library.opcheck(layer.backward_operator, (pooled, ROIS, argmax, 2, 6, 7))


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler"),
        ),
    ],
)
def test_compile_whole_network(backend):
    torch.compiler.reset()
    torch.manual_seed(0)
    network = Network()
    compiled = torch.compile(network, backend=backend, fullgraph=True)
    for rois in (ROIS, ROIS[:2], ROIS[:3]):  # the number of RoIs becomes dynamic
        expected = outputs_and_gradients(network, network, features(), rois)
        torch.testing.assert_close(outputs_and_gradients(network, compiled, features(), rois), expected)


def test_compile_with_list_of_boxes():
    torch.compiler.reset()
    boxes = [ROIS[:3, 1:], ROIS[3:, 1:]]
    compiled = torch.compile(roi_pool, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(features(), boxes, 2, 1 / 16), roi_pool(features(), boxes, 2, 1 / 16))


def test_export_with_any_number_of_rois(tmp_path):
    torch.manual_seed(0)
    network = Network()
    dynamic = (None, {0: torch.export.Dim("rois", min=0)})
    program = torch.export.export(network, (features(), ROIS), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "network.pt2")
    loaded = torch.export.load(tmp_path / "network.pt2").module()
    for count in (4, 1, 0):
        torch.testing.assert_close(loaded(features(), ROIS[:count]), network(features(), ROIS[:count]))


def test_autocast_keeps_the_precision_of_rois():
    torch.manual_seed(0)
    network = Network()
    seen = []
    network.pool.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    with torch.autocast("cpu", torch.bfloat16):
        output = network(features(), ROIS)
    (maps, pooled), *_ = seen
    assert maps.dtype == pooled.dtype == output.dtype == torch.bfloat16
    assert torch.equal(pooled.float(), roi_pool(maps.float(), ROIS, (2, 3), 1 / 16))
    output.float().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())
    with torch.autocast("cpu", torch.bfloat16):  # RoIs made under autocast, and float32 maps
        assert roi_pool(features(), ROIS.bfloat16(), 2, 1 / 16).dtype == torch.float32


def test_double_use_in_one_graph_adds_up():
    maps = features().requires_grad_()
    (roi_pool(maps, ROIS, 2, 1 / 16).sum() + 2 * roi_pool(maps, ROIS[:1], 3, 1 / 8).sum()).backward()
    total, maps.grad = maps.grad, None
    roi_pool(maps, ROIS, 2, 1 / 16).sum().backward()
    (2 * roi_pool(maps, ROIS[:1], 3, 1 / 8)).sum().backward()
    torch.testing.assert_close(maps.grad, total)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_result_and_gradient_are_channels_last(memory_format):
    maps = features().contiguous(memory_format=memory_format).requires_grad_()
    pooled = roi_pool(maps, ROIS, (2, 3), 1 / 16)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    assert pooled.permute(0, 2, 3, 1).flatten(1).data_ptr() == pooled.data_ptr()
    # Whatever the layout of the gradient: that of a sum has strides 0.
    pooled.sum().backward()
    strided, maps.grad = maps.grad, None
    roi_pool(maps, ROIS, (2, 3), 1 / 16).backward(torch.ones(4, 3, 2, 3))
    assert torch.equal(maps.grad, strided)


def test_features_that_are_a_view_are_pooled_right():
    wide = torch.randn(2, 6, 7, 8, generator=torch.Generator().manual_seed(0))
    view = wide.transpose(2, 3)[:, ::2, :, 1:]
    assert torch.equal(roi_pool(view, ROIS, 2, 1 / 16), roi_pool(view.contiguous(), ROIS, 2, 1 / 16))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_argmax_is_computed_only_for_a_gradient(mode, monkeypatch):
    asked = []
    forward = cpu.forward
    monkeypatch.setattr(cpu, "forward", lambda *inputs: asked.append(inputs[-1]) or forward(*inputs))
    maps = features()
    expected = roi_pool(maps, ROIS, 2, 1 / 16)
    assert torch.equal(roi_pool(maps.requires_grad_(), ROIS, 2, 1 / 16), expected)
    with mode():
        assert torch.equal(roi_pool(maps, ROIS, 2, 1 / 16), expected)
    assert asked == [False, True, False]


def test_peak_memory():
    maps = features(channels=512).contiguous(memory_format=torch.channels_last)
    rois = ROIS.repeat(100, 1)
    cpu.forward(maps, rois, (7, 7), 1 / 16, False)  # the code is loaded
    pooled, argmax = cpu.forward(maps, rois, (7, 7), 1 / 16, True)
    cpu.backward(pooled, rois, argmax, 2, 6, 7)

    def peak(function, *arguments):
        memory._KEPT.clear()
        tracemalloc.start()  # numpy's arrays are seen by it
        result = function(*arguments)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size, result

    assert peak(cpu.forward, maps, rois, (7, 7), 1 / 16, False)[0] < 1.01 * pooled.nbytes
    assert peak(cpu.forward, maps, rois, (7, 7), 1 / 16, True)[0] < 1.01 * (pooled.nbytes + argmax.nbytes)
    assert argmax.nbytes == pooled.nbytes / 2
    assert peak(cpu.backward, pooled, rois, argmax, 2, 6, 7)[0] < 2 * maps.nbytes


def end_helpers():
    """A helper that found no task left, or was too late for one, holds the call's arrays until its thread has run."""
    threads._executor.shutdown()
    threads._renew()


def test_memory_of_results_is_reused_but_never_while_held():
    end_helpers()
    memory._KEPT.clear()
    first = memory.empty((3, 1000), np.dtype(np.float32))
    first[:] = 1
    held = torch.from_numpy(first).view(1000, 3)
    address = first.ctypes.data
    del first
    second = memory.empty((3, 1000), np.dtype(np.float32))
    second[:] = 2
    assert second.ctypes.data != address
    assert held.unique().tolist() == [1]
    del held
    third = memory.empty((1500,), np.dtype(np.uint16))  # a quarter of the size: not worth it
    assert third.ctypes.data != address
    assert memory.empty((2900,), np.dtype(np.float32)).ctypes.data == address
    assert all(memory.empty((size,), np.dtype(np.uint8)).ctypes.data % 64 == 0 for size in (1, 77, 4096))
    del second, third
    for _ in range(5):
        [memory.empty((10_000,), np.dtype(np.uint8)) for _ in range(5)]
    memory._give_back(np.empty(2**28 + 1, np.uint8))
    assert [room.nbytes < 20_000 for room in memory._KEPT] == [True] * 3


def test_memory_is_not_reused_while_a_thread_may_write_to_it(monkeypatch):
    given, run = [], threads.run
    monkeypatch.setattr(threads, "run", lambda *arguments: (given.append(arguments), run(*arguments)))
    end_helpers()
    memory._KEPT.clear()
    maps = features(channels=64)
    pooled, argmax = cpu.forward(maps, ROIS, (7, 7), 1 / 16, True)
    sums = cpu.backward(pooled, ROIS, argmax, 2, 6, 7)
    del pooled, argmax, sums  # as where Ctrl-C ends the call before its threads
    end_helpers()
    assert len(memory._KEPT) == 0
    given.clear()
    assert len(memory._KEPT) == 3


def test_backward_makes_no_zeros_for_the_gradient_of_argmax():
    pooled = roi_pool(features().requires_grad_(), ROIS, 2, 1 / 16)
    with torch.profiler.profile() as profile:
        pooled.backward(torch.ones_like(pooled))
    assert not {event.name for event in profile.events()} & {"aten::zeros", "aten::zeros_like", "aten::zero_"}


def test_devices_without_kernels_are_served_by_the_reference():
    for operator in ("fast_rcnn::roi_pool", "fast_rcnn::roi_pool_backward"):
        assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(operator, "MPS")
    with pytest.raises(ValueError, match=r"rois\[0\]"):
        layer._forward_reference(features(), torch.full((1, 5), 9.0), 2, 2, 1.0, False)
    for with_argmax in (True, False):  # what the fallback answers is what the CPU's kernels do
        arguments = features(), ROIS, 2, 3, 1 / 16, with_argmax
        for mine, theirs in zip(layer._forward_reference(*arguments), layer.operator(*arguments), strict=True):
            assert torch.equal(mine, theirs)
            assert mine.stride() == theirs.stride()
            assert mine.dtype == theirs.dtype
