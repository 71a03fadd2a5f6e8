"""The score threshold of the paper's code: for each class the one that leaves a given number of boxes per image.

That code keeps the best scores of a class in a heap while it processes the images, and raises the threshold to the
smallest of them. The final threshold is the score at a known rank among all scores, so it is computed from that.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detector.inference.postprocess import Candidates
from detector.runtime.distributed import gather

MAX_PER_CLASS = 100  # boxes of a class in an image


def best_of_each_class(found: Candidates) -> Candidates:
    """At most `MAX_PER_CLASS` boxes of each class of an image, those with the highest scores."""
    order = found.scores.argsort(descending=True, stable=True)
    order = order[found.labels[order].argsort(stable=True)]  # by class, highest score first
    labels = found.labels[order].contiguous()
    place = torch.arange(len(order)) - torch.searchsorted(labels, labels)  # in its class
    return found.rows_of(order[place < MAX_PER_CLASS].sort().values)


def class_thresholds(images: Sequence[Candidates], average: float) -> Tensor:
    """Thresholds by label, -inf if all boxes are kept: fewer than `average` boxes per image exceed that of their class.

    With several processes, each has a part of the images, and all return the same.
    """
    own = [(found.labels.numpy(), found.scores.numpy()) for found in images]
    everywhere = [item for part in gather(own) for item in part]
    labels = torch.from_numpy(np.concatenate([labels for labels, _ in everywhere]))
    scores = torch.from_numpy(np.concatenate([scores for _, scores in everywhere]))
    limit = max(round(average * len(everywhere)), 1)
    thresholds = torch.full((max(labels.tolist(), default=0) + 1,), -torch.inf)
    for label in labels.unique().tolist():
        of_class = scores[labels == label]
        if len(of_class) > limit:
            thresholds[label] = of_class.topk(limit).values[-1]
    return thresholds


def above(found: Candidates, thresholds: Tensor) -> Candidates:
    """The boxes of an image with a score above the threshold (K+1,) of their class."""
    return found.rows_of(torch.nonzero(found.scores > thresholds[found.labels]).flatten())
