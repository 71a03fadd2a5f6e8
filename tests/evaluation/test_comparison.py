import numpy as np
import pytest

from detector.evaluation import comparison
from detector.evaluation.comparison import interval, mean_ap, resample_images, weighted_ap
from detector.evaluation.matching import match
from detector.evaluation.voc_ap import score_voc
from detector.structures import Detections, GroundTruth
from tests.helpers.scoring import random_case

METRICS = ["area@0.50", "11point@0.50", "area@0.50:0.95"]


def with_id(item, image_id: str):
    fields = {name: getattr(item, name) for name in item.__dataclass_fields__} | {"image_id": image_id}
    return type(item)(**fields)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("devkit", [False, True])
def test_weights_equal_copies_of_the_images(metric, devkit):
    """Scored anew, with each image in the dataset as often as the resample took it."""
    generator = np.random.default_rng(0)
    compared = 0
    for _ in range(20):
        truths, detections = random_case(generator)
        weights = resample_images(len(truths), 3, seed=1)
        aps = weighted_ap(match(truths, detections, 2), metric, weights, devkit)
        by_id = {item.image_id: item for item in detections}
        for row, ap in zip(weights, aps, strict=True):
            copies: list[GroundTruth] = []
            found: list[Detections] = []
            for truth, count in zip(truths, row, strict=True):
                for copy in range(count):
                    name = f"{truth.image_id}-{copy}"
                    copies.append(with_id(truth, name))
                    if truth.image_id in by_id:
                        found.append(with_id(by_id[truth.image_id], name))
            voc, _ = score_voc(match(copies, found, 2), ["a", "b"], (0.5,), devkit)
            wanted = [np.nan if value is None else value for value in voc[metric]["AP"].values()]
            assert ap.tolist() == pytest.approx(wanted, nan_ok=True)
            compared += np.isfinite(wanted).sum()
    assert compared > 50


@pytest.mark.parametrize("metric", METRICS)
def test_blocks_of_resamples_change_nothing(metric, monkeypatch):
    truths, detections = random_case(np.random.default_rng(3))
    matches, weights = match(truths, detections, 2), resample_images(len(truths), 50)
    whole = weighted_ap(matches, metric, weights)
    sizes, of_class = [], comparison._ap_of_class
    monkeypatch.setattr(comparison, "_ap_of_class", lambda *given: sizes.append(given[1].shape[1]) or of_class(*given))
    monkeypatch.setattr(comparison, "MAX_CELLS", 20)
    np.testing.assert_array_equal(weighted_ap(matches, metric, weights), whole)
    assert max(sizes) <= 20


def test_resamples_are_seeded_and_whole():
    weights = resample_images(7, 50)
    assert (weights.sum(axis=1) == 7).all()
    assert np.array_equal(weights, resample_images(7, 50))
    assert not np.array_equal(weights, resample_images(7, 50, seed=1))


def test_means_and_intervals_pass_over_undefined_values():
    assert mean_ap(np.array([[0.5, np.nan], [np.nan, np.nan], [0.25, 0.75]])).tolist() == pytest.approx(
        [0.5, np.nan, 0.5], nan_ok=True
    )
    assert interval(np.append(np.arange(1001) / 1000, np.nan)) == pytest.approx((0.025, 0.975))
    assert np.isnan(interval(np.array([np.nan]))).all()
