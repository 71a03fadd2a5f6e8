import colorsys

import numpy as np
import pytest

from detector.selective_search import colour


def planes_of(rgb):
    """(N, 3) colours from 0 to 1 -> planes (3, 1, N)."""
    return np.ascontiguousarray(np.round(np.asarray(rgb).T * colour.TOP).astype(np.uint16)[:, None])


COLOURS = np.random.default_rng(0).random((200, 3))


def test_hsv_is_that_of_colorsys():
    expected = np.array([colorsys.rgb_to_hsv(*rgb) for rgb in COLOURS]) * [180 * 8, colour.TOP, colour.TOP]
    hsv = colour.to_space(planes_of(COLOURS), "hsv")[:, 0].T
    # a step of 1/2040 in a colour turns the hue by a step over its chroma
    chroma = np.ptp(COLOURS, axis=1)
    assert (np.abs(hsv - expected)[:, 0] * chroma).max() < 1.5
    assert np.abs(hsv - expected)[:, 1:].max() < 6


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((0.5, 0.5, 0.5), (53.39, 0, 0)),
    ],
)
def test_lab_of_known_colours(rgb, lab):
    found = colour.to_space(planes_of([rgb]), "lab")[:, 0, 0] / colour.LEVEL
    np.testing.assert_allclose(found, np.array([lab[0] * 2.55, lab[1] + 128, lab[2] + 128]), atol=0.4)


def test_smoothing_is_a_gaussian_of_sigma_0_8():
    image = np.zeros((9, 9, 3), np.uint8)
    image[4, 4] = 255
    offset = np.arange(-4, 5)
    gaussian = np.exp(-(offset**2) / (2 * 0.8**2))
    expected = np.outer(gaussian, gaussian) / gaussian.sum() ** 2 * colour.TOP
    for plane in colour.smooth(image):
        np.testing.assert_allclose(plane, expected, atol=4)
