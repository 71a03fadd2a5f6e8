"""Selective search (Uijlings et al., IJCV 2013): from an image to about 2000 boxes that may hold objects."""

from detector.selective_search.search import MODES, selective_search

__all__ = ["MODES", "selective_search"]
