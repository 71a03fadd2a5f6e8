"""The page of demo.py: its content and its layout."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from detector.api import SCORE_THRESHOLD, Detector, Result
from detector.errors import InputError
from detector.inference.network import TorchNetwork
from detector.proposals.search import search_image
from detector.runtime.ranks import cores
from detector.visualization.detection import PROPOSALS_SHOWN
from detector.visualization.drawing import COLOURS, draw_boxes
from detector.visualization.features import draw_features, pool_roi
from detector.visualization.style import pixels
from scripts.visualizations.features import pooling_of

CLICK = "Click a detection: what RoI pooling takes from the shared feature map for it appears below."


class Demo:
    """The results of a network that the page shows."""

    def __init__(self, network: Detector) -> None:
        if not isinstance(network.network, TorchNetwork):
            raise InputError("--checkpoint: an .onnx has no pooled features to show: give RUN/checkpoints/best.pt")
        self.network, self.model = network, network.network.model
        self._one_at_a_time = threading.Lock()  # a forward hook sees the calls of all threads of the page

    def propose(self, image: np.ndarray) -> np.ndarray:
        """Proposals (P, 4) of an image, best first."""
        return search_image(image, self.network.settings.proposals.mode, cores())[0]

    def detect(self, image: np.ndarray, proposals: np.ndarray, threshold: float, nms_iou: float | None) -> Result:
        """Detections from these proposals."""
        with self._one_at_a_time:
            return self.network.detect(image, proposals=proposals, score_threshold=threshold, nms_iou=nms_iou)

    def draw_proposals(self, image: np.ndarray, proposals: np.ndarray) -> np.ndarray:
        """The image with the first proposals, the best on top."""
        shown = proposals[:PROPOSALS_SHOWN][::-1]
        return draw_boxes(image, shown, [ImageColor.getrgb(COLOURS[0])] * len(shown))

    def draw_pooled(self, result: Result, place: int) -> np.ndarray:
        """The figure of the features that are pooled for one detection."""
        features, rois = self._pooled_from(result, place)
        layer, level = pooling_of(self.model.roi_pool, features, rois)
        box = rois[0, 1:].cpu().numpy()  # in the network frame
        scale = (box[2] - box[0]) / (result.boxes[place, 2] - result.boxes[place, 0])
        height, width = result.image.shape[:2]
        image = np.array(Image.fromarray(result.image).resize((round(width * scale), round(height * scale))))
        size = layer.output_size
        pooled = pool_roi(level, box, (size, size) if isinstance(size, int) else size, layer.spatial_scale)
        return pixels(draw_features(image, pooled, f"{result.names[place]} {result.scores[place]:.2f}"))

    def _pooled_from(self, result: Result, place: int) -> list[Any]:
        """The input of RoI pooling for one detection: the features and its RoI."""
        seen: list[Any] = []
        with self._one_at_a_time:
            hook = self.model.roi_pool.register_forward_hook(lambda _, inputs, output: seen.extend(inputs))
            try:
                self.network.roi_features(result.image, result.boxes[place : place + 1])
            finally:
                hook.remove()
        return seen


def at_point(boxes: np.ndarray, x: float, y: float) -> int | None:
    """The smallest of the boxes (N, 4) around a point."""
    sides = boxes[:, 2:] - boxes[:, :2]
    inside = ((boxes[:, :2] <= [x, y]) & (boxes[:, 2:] >= [x, y])).all(axis=1)
    return int(np.where(inside, sides.prod(axis=1), np.inf).argmin()) if inside.any() else None


def build_page(gradio: Any, demo: Demo, examples: Sequence[Path]) -> Any:
    """The page: image and sliders at the left, the results of the network at the right."""
    limits, soft = demo.network.settings.detect, demo.network.settings.detect.nms == "soft"
    output = {"interactive": False, "buttons": ["fullscreen", "download"]}  # no button that shares

    def propose(image: np.ndarray | None) -> np.ndarray | None:
        return None if image is None else demo.propose(image)

    def show(image: np.ndarray | None, boxes: np.ndarray | None, count: int, threshold: float, nms: float) -> list:
        if image is None or boxes is None:
            return [None, None, None, None, ""]
        try:
            result = demo.detect(image, boxes[:count], threshold, None if soft else nms)
        except InputError as error:
            raise gradio.Error(str(error)) from error
        text = f"{min(count, len(boxes))} of {len(boxes)} proposals, {len(result)} detections. "
        return [demo.draw_proposals(image, boxes[:count]), result.draw(), result, None, text + CLICK]

    def pooled(result: Result | None, event: gradio.SelectData) -> np.ndarray | None:
        place = None if result is None else at_point(result.boxes, *event.index)
        try:
            return None if place is None else demo.draw_pooled(result, place)
        except InputError as error:
            raise gradio.Error(str(error)) from error

    with gradio.Blocks(title="Fast R-CNN", analytics_enabled=False) as page:
        boxes, result = gradio.State(), gradio.State()
        gradio.Markdown(f"# Fast R-CNN\nThis network finds {', '.join(demo.network.classes)}.")
        with gradio.Row():
            with gradio.Column(scale=1):
                image = gradio.Image(label="Image", type="numpy", sources=["upload"], image_mode="RGB")
                count = gradio.Slider(1, 4000, 2000, step=1, label="Number of proposals")
                threshold = gradio.Slider(0, 1, SCORE_THRESHOLD, step=0.01, label="Score threshold")
                nms = gradio.Slider(
                    0, 1, limits.nms_iou, step=0.01, label="IoU of non-maximum suppression", visible=not soft
                )
                if examples:
                    gradio.Examples([[str(path)] for path in examples], [image], label="Images")
            with gradio.Column(scale=2):
                with gradio.Row():
                    proposals = gradio.Image(label=f"The first {PROPOSALS_SHOWN} proposals", **output)
                    detections = gradio.Image(label="Detections", **output)
                text = gradio.Markdown()
                features = gradio.Image(label="Pooled features of the detection", show_label=False, **output)
        shown = [proposals, detections, result, features, text]
        inputs = [image, boxes, count, threshold, nms]
        image.change(propose, image, boxes).then(show, inputs, shown)
        for slider in (count, threshold, nms):
            slider.change(show, inputs, shown, trigger_mode="always_last")
        detections.select(pooled, result, features)
    return page
