"""Backbones, heads, and the Fast R-CNN that joins them."""

from detector.models.build import build_model
from detector.models.fast_rcnn import FastRCNN

__all__ = ["FastRCNN", "build_model"]
