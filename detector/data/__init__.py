"""Datasets, transforms and data loaders: from files to batches."""
