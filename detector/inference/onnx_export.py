"""Export of a trained network as ONNX: images and RoIs in, scores and boxes out.

RoI pooling becomes the operator MaxRoiPool, which rounds in the same way (it is Caffe's layer), and RoI Align RoiAlign.
Some ONNX runtimes start the maximum at 0 (onnxruntime does not): where no ReLU ends the backbone, the minimum of the
map is subtracted before pooling. `export_onnx` compares the results of the file with those of the network.
"""

import json
import logging
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detector.boxes import BoxCoder
from detector.data.formats.shapes import draw_scene
from detector.errors import InputError, RunFailure
from detector.inference.onnx_network import METADATA
from detector.models import FastRCNN
from detector.models.pooling import PyramidPooling, RoIAlign, levels_of
from detector.roi_pool import RoIPool

OPSET = 18
COMPARED_ROIS = 100
TOLERANCE = 1e-4  # of scores, and of box corners as a fraction of the image's longer side


class ExportedPooling(nn.Module):
    """The pooling of RoIs (R, 5) from the map or maps of a network, in operators that ONNX has."""

    def __init__(self, pooling: nn.Module, is_nonnegative: bool) -> None:
        super().__init__()
        self.pooling, self.is_nonnegative = pooling, is_nonnegative

    def forward(self, features: Tensor | list[Tensor], rois: Tensor) -> Tensor:
        if isinstance(features, Tensor):
            return self._pool(self.pooling, features, rois)
        assert isinstance(self.pooling, PyramidPooling)
        levels = levels_of(rois, len(features))[:, None]
        parts = []
        for level, (pool, maps) in enumerate(zip(self.pooling.pools, features, strict=True)):
            # RoIs of other levels are one cell here, which takes no time: their number is not known to the graph.
            pooled = self._pool(pool, maps, torch.where(levels == level, rois, 0.0))
            parts.append(torch.where((levels == level)[:, :, None, None], pooled, 0.0))
        return torch.stack(parts).sum(dim=0)

    def _pool(self, pool: nn.Module, features: Tensor, rois: Tensor) -> Tensor:
        if isinstance(pool, RoIAlign):
            return pool.pool(features, rois)
        assert isinstance(pool, RoIPool)
        if self.is_nonnegative:
            return pool.forward(features, rois)
        lowest = features.amin(dim=(0, 1, 2, 3))  # ONNX needs the dimensions
        not_empty = pool.forward(torch.ones_like(features[:, :1]), rois)  # empty bins stay 0
        return pool.forward(features - lowest, rois) + lowest * not_empty


class ExportedNetwork(nn.Module):
    """The network with its box decoding, in float32."""

    def __init__(self, model: FastRCNN, coder: BoxCoder) -> None:
        super().__init__()
        self.model = model
        self.coder = coder

    def forward(self, images: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, H, W) uint8 and rois (R, 5) -> scores (R, K+1), boxes (R, K, 4) clipped to the images."""
        class_logits, deltas = self.model(images, rois)
        x1, y1, x2, y2 = self.coder.decode(deltas, rois[:, 1:]).unbind(-1)
        height, width = images.shape[-2:]
        corners = [x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)]
        return class_logits.softmax(dim=1), torch.stack(corners, dim=-1)


def export_onnx(model: FastRCNN, coder: BoxCoder, about: dict) -> bytes:
    """The content of an .onnx file with `about` in its metadata. The batch, image size and number of RoIs are dynamic.

    Raises InputError if the packages of the extra [onnx] are missing, RunFailure if onnxruntime gives other results
    than the network.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise InputError(
            f"export to ONNX needs the package {error.name}: uv pip install onnx onnxruntime onnxscript"
        ) from None
    exported = ExportedNetwork(model.float().cpu().eval(), coder).eval()
    images = torch.zeros(2, 3, 96, 128, dtype=torch.uint8)
    rois = torch.tensor([[0, 0, 0, 60, 50], [1, 9, 9, 90, 80], [1, 30, 20, 90, 80]], dtype=torch.float32)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about operators that are not used here
    pooling = model.roi_pool
    model.roi_pool = ExportedPooling(pooling, model.backbone.ends_with_relu)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                exported, (images, rois), dynamo=True, opset_version=OPSET, verbose=False,
                input_names=["images", "rois"], output_names=["scores", "boxes"],
                dynamic_shapes={"images": {0: "batch", 2: "height", 3: "width"}, "rois": {0: "num_rois"}},
                custom_translation_table={torch.ops.fast_rcnn.roi_pool.default: _max_roi_pool},
            )  # fmt: skip
    finally:
        model.roi_pool = pooling
    assert program is not None
    proto = program.model_proto
    _remove_notes(proto.graph)
    proto.metadata_props.add(key=METADATA, value=json.dumps(about))
    content: bytes = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    _verify(session, exported)
    return content


def _max_roi_pool(
    features: Any, rois: Any, pooled_height: int, pooled_width: int, scale: float, with_argmax: bool
) -> tuple[Any, Any]:
    """The operator `fast_rcnn::roi_pool` without its argmax, which only the gradient needs."""
    from onnxscript import opset18 as op

    pooled = op.MaxRoiPool(features, rois, pooled_shape=[pooled_height, pooled_width], spatial_scale=scale)
    return pooled, op.Constant(value_ints=[0])


def _remove_notes(graph: Any) -> None:
    """Remove the exporter's notes from the nodes: they contain paths of this machine."""
    for item in [*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph]:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


@torch.inference_mode()
def _verify(session: Any, exported: ExportedNetwork) -> None:
    """Raise RunFailure unless scores and boxes of RoIs on a picture are those of the network."""
    generator = np.random.default_rng(0)
    picture, _ = draw_scene(generator)
    height, width = picture.shape[:2]
    corners = np.sort(generator.uniform(0, 1, (COMPARED_ROIS, 2, 2)), axis=1).reshape(-1, 4) * ([width, height] * 2)
    rois = np.concatenate([np.zeros((COMPARED_ROIS, 1)), corners], axis=1).astype(np.float32)
    images = np.ascontiguousarray(picture.transpose(2, 0, 1)[None])
    ours = exported(torch.from_numpy(images), torch.from_numpy(rois))
    theirs = session.run(["scores", "boxes"], {"images": images, "rois": rois})
    for name, mine, other, scale in zip(("scores", "boxes"), ours, theirs, (1, max(height, width)), strict=True):
        difference = float(np.abs(mine.numpy() - other).max()) / scale
        if not difference <= TOLERANCE:
            raise RunFailure(f"onnxruntime gives other {name} than the network: they differ by {difference:.2g}")
