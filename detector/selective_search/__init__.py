"""Selective search (Uijlings et al., IJCV 2013): about 2000 object proposals per image."""

from detector.selective_search.search import MODES, selective_search

__all__ = ["MODES", "selective_search"]
