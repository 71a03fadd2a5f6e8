"""Compilation settings of all numeric functions in this package."""

from detector.runtime.compiled import compiled as cached

compiled = cached(error_model="numpy")  # without zero checks in divisions: callers avoid zeros
