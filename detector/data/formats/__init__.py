"""Layouts of datasets: one module for each, with a function that reads it."""
