"""Visualization of boxes on images."""
