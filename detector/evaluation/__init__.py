"""Evaluation of detections against ground truth."""
