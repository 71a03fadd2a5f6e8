"""Proposals of a joined dataset."""

from collections.abc import Mapping

import numpy as np

from detector.data.loader import Proposals


class JoinedProposals:
    """Proposals of a joined dataset; `sources` maps an image id to (proposals of its part, image id there)."""

    def __init__(self, sources: Mapping[str, tuple[Proposals, str]]) -> None:
        self._sources = sources

    def __getitem__(self, image_id: str) -> np.ndarray:
        """Boxes (P, 4) float32 of one image."""
        proposals, own_id = self._sources[image_id]
        return proposals[own_id]

    def scores(self, image_id: str) -> np.ndarray | None:
        """Scores (P,) float32 of its boxes, or None if its part has no scores."""
        proposals, own_id = self._sources[image_id]
        return proposals.scores(own_id)
