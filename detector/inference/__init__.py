"""From a trained network to detections."""
