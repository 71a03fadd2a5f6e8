"""Proposals of a joined dataset."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from detector.data.loader import Proposals


@dataclass(frozen=True)
class JoinedProposals:
    """Proposals of a joined dataset; `sources` maps an image id to (proposals of its part, image id there)."""

    sources: Mapping[str, tuple[Proposals, str]]

    def __getitem__(self, image_id: str) -> np.ndarray:
        """Boxes (P, 4) float32 of one image."""
        proposals, own_id = self.sources[image_id]
        return proposals[own_id]

    def scores(self, image_id: str) -> np.ndarray | None:
        """Scores (P,) float32 of its boxes, or None if its part has no scores."""
        proposals, own_id = self.sources[image_id]
        return proposals.scores(own_id)
