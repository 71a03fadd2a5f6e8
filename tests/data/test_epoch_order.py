from collections import Counter

import numpy as np
import pytest

from detector.data.epoch_order import EpochOrder, repeat_factors
from detector.data.loader import TrainBatchSampler


def test_literal_repeat_factors():
    """Of 100 images, all have a, one has b, four have c, and one has no object."""
    classes = [["a", "b"], *[["a", "c", "c"]] * 4, *[["a"]] * 94, []]
    factors = repeat_factors(classes, threshold=0.16)
    assert factors.tolist() == pytest.approx([4.0, *[2.0] * 4, *[1.0] * 95])


def test_images_are_repeated_by_their_factors():
    repeats = np.array([1.0, 1.5, 2.0, 3.25])
    order = EpochOrder(4, seed=0, repeats=repeats)
    assert order.size == 8  # the sum, rounded up
    counts = Counter()
    for epoch in range(2000):
        indices = order.indices(epoch)
        assert len(indices) == 8
        found = np.bincount(indices, minlength=4)
        assert (found >= np.floor(repeats)).all()
        counts.update(indices.tolist())
    assert [counts[index] / 2000 for index in range(4)] == pytest.approx(repeats * 8 / 7.75, rel=0.02)
    assert order.indices(5).tolist() == EpochOrder(4, seed=0, repeats=repeats).indices(5).tolist()
    assert order.indices(5).tolist() != EpochOrder(4, seed=1, repeats=repeats).indices(5).tolist()


@pytest.mark.parametrize("size", [1, 3, 50, 51, 53])
def test_batches_have_one_orientation(size):
    """Except, of each epoch, the first one, which the epoch before began, and what is left at the end."""
    is_portrait = np.random.default_rng(0).random(size) < 0.3
    order = EpochOrder(size, seed=3, is_portrait=is_portrait, images_per_batch=4)
    for epoch in range(6):
        assert sorted(order.indices(epoch).tolist()) == list(range(size))
    batches = list(TrainBatchSampler(order, 4, 300))
    mixed = [len({bool(is_portrait[index]) for index, _ in batch}) > 1 for batch in batches]
    ungrouped = list(TrainBatchSampler(EpochOrder(size, 3), 4, 300))
    by_chance = [len({bool(is_portrait[index]) for index, _ in batch}) > 1 for batch in ungrouped]
    if size >= 50:
        assert sum(mixed) <= 3 * (300 * 4 / size)
        assert sum(mixed) < 0.4 * sum(by_chance)
    assert list(TrainBatchSampler(order, 4, 300, start=41)) == batches[41:]


def test_a_plain_order_is_a_permutation_of_each_epoch():
    order = EpochOrder(7, seed=0)
    assert (order.size, sorted(order.indices(2).tolist())) == (7, list(range(7)))
    assert order.indices(0).tolist() != order.indices(1).tolist()
