"""Fast R-CNN model, backbones and heads."""

from detector.models.build import build_model
from detector.models.fast_rcnn import FastRCNN

__all__ = ["FastRCNN", "build_model"]
