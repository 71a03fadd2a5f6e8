"""A network exported as ONNX, run by onnxruntime on the CPU. Nothing here needs torch."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from detector.box_arrays import clip_array, nms
from detector.data.classes import check_classes
from detector.data.transforms import pad
from detector.errors import InputError
from detector.runtime.files import reading
from detector.schema import parse
from detector.settings import CommonSettings, Detect
from detector.structures import Detections, Sample

METADATA, FORMAT = "fast_rcnn", "fast-rcnn onnx 1"  # the metadata of the file: JSON with classes, settings, iteration


class OnnxNetwork:
    """An open .onnx file. Several threads may use one at the same time."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def limit_threads(self, threads: int) -> None:
        """Do nothing: all threads that call onnxruntime share the threads of the session, one for each core."""

    def detect(self, sample: Sample, limits: Detect) -> Detections:
        """Detections, in the original frame, of a sample in the network frame: postprocess.py in numpy."""
        image_hw, count = sample.image.shape[:2], len(sample.proposals)
        if not count:
            none = np.zeros(0, np.float32)
            return Detections(sample.image_id, none.reshape(0, 4), none.astype(np.int64), none)
        rois = np.concatenate([np.zeros((count, 1), np.float32), sample.proposals], axis=1)
        images = pad([sample.image]).transpose(0, 3, 1, 2)
        scores, boxes = self.session.run(["scores", "boxes"], {"images": images, "rois": rois})
        scores, boxes = scores[:, 1:], clip_array(boxes, image_hw)  # (P, K) and (P, K, 4)
        has_area = (boxes[..., 2:] > boxes[..., :2]).all(axis=2)
        row, column = np.nonzero((scores > limits.score_threshold) & has_area)
        scores, boxes, labels = scores[row, column], boxes[row, column], column + 1
        keep = nms(boxes, scores, labels, limits.nms_iou)[: limits.max_detections]
        height, width = sample.original_hw
        to_original = np.array([width / image_hw[1], height / image_hw[0]] * 2, dtype=np.float32)
        return Detections(sample.image_id, boxes[keep] * to_original, labels[keep], scores[keep])

    def roi_features(self, sample: Sample) -> np.ndarray:
        raise InputError("roi_features: an exported .onnx has no such output: load the checkpoint or its weights")


def require_supported(settings: CommonSettings, source: object) -> None:
    """Raise InputError for settings of detection that need more than one pass through the network and hard NMS."""
    detect = settings.detect
    for key, is_set in {
        "nms=soft": detect.nms == "soft",
        "flip=true": detect.flip,
        "pyramid_px": bool(detect.pyramid_px),
        "regress_boxes=false": not detect.regress_boxes,
    }.items():
        if is_set:
            raise InputError(f"{source}: was trained with detect.{key}, which an exported .onnx does not have")


def load_onnx(path: Path) -> tuple[OnnxNetwork, CommonSettings, tuple[str, ...]]:
    """The network, the settings of its training and its classes, from a file of scripts/export.py onnx.

    Raises InputError if the file is missing or not such a file; it may be untrusted.
    """
    try:
        import onnxruntime
    except ImportError:
        raise InputError(f"{path}: an .onnx file needs the package onnxruntime: uv pip install onnxruntime") from None
    with reading(path, "not a readable ONNX file", sys.maxsize):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        about = json.loads(session.get_modelmeta().custom_metadata_map.get(METADATA, "{}"))
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise InputError(f"{path}: was not written by this version's scripts/export.py onnx")
    if not isinstance(about.get("classes"), list) or not about["classes"]:
        raise InputError(f"{path}: its classes are not a list of names")
    classes = check_classes(f"{path}, classes", about["classes"])
    settings = parse(CommonSettings, about.get("config"), f"{path}: its settings", ignore_unknown=True)
    require_supported(settings, path)
    return OnnxNetwork(session), settings, classes
