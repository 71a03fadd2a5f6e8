"""The published examples: the article that made the layer popular, and the TensorFlow op beside it."""

import doctest

import numpy as np
import pytest
import torch
import torchvision

import detector.roi_pool
from detector.roi_pool import RoIPool, roi_pool
from detector.visualization.pooling import ARTICLE_MAP, ARTICLE_REGION
from tests.conftest import REPOSITORY

ARTICLE = torch.from_numpy(ARTICLE_MAP)[None, None]


def test_docstring():
    assert doctest.testmod(detector.roi_pool) == (0, 4)


def test_docstring_has_the_map_of_the_figures():
    names: dict = {}
    for example in doctest.DocTestParser().get_examples(detector.roi_pool.__doc__)[:3]:  # import torch, features, rois
        exec(example.source, names)
    assert np.array_equal(names["features"][0, 0], ARTICLE_MAP)
    assert tuple(names["rois"][0, 1:].tolist()) == ARTICLE_REGION


def test_article_region_is_pooled_with_overlapping_bins():
    roi = torch.tensor([[0.0, 0, 3, 6, 7]])  # columns 0 to 6, rows 3 to 7
    expected = torch.tensor([[[[0.85, 0.96], [0.97, 0.96]]]])
    assert torch.equal(roi_pool(ARTICLE, roi, 2), expected)
    assert torch.equal(torchvision.ops.roi_pool(ARTICLE, roi, 2), expected)


def test_article_drawing_is_the_pooling_of_disjoint_sections():
    # Its cut, 2 | 3 rows and 3 | 4 columns, as one RoI a section.
    sections = [[0, 0, 3, 2, 4], [0, 3, 3, 6, 4], [0, 0, 5, 2, 7], [0, 3, 5, 6, 7]]
    pooled = roi_pool(ARTICLE, torch.tensor(sections, dtype=torch.float32), 1)
    assert torch.equal(pooled.view(2, 2), torch.tensor([[0.85, 0.84], [0.97, 0.96]]))


def test_article_region_over_the_edge_of_the_map():
    # (5,0)-(10,7): columns 5 to 10 in bins 5-7 and 8-10, of which the second lies off the map.
    pooled = roi_pool(ARTICLE, torch.tensor([[0.0, 5, 0, 10, 7]]), 2)
    assert torch.equal(pooled, torch.tensor([[[[0.96, 0.0], [0.96, 0.0]]]]))


@pytest.fixture
def roi_pooling():
    """The function in the documentation that has the interface of deepsense-ai's TensorFlow op."""
    page = (REPOSITORY / "docs/roi_pooling.md").read_text()
    [example] = [block for block in page.split("```python\n")[1:] if "def roi_pooling(" in block]
    names: dict = {}
    exec(example.partition("```")[0], names)
    return names["roi_pooling"]


def test_deepsense_published_example(roi_pooling):
    # Input and printed output of the minimal example in deepsense-ai's roi-pooling repository.
    feature_map = torch.tensor([[1.0, 2, 4, 4], [3, 4, 1, 2], [6, 2, 1, 7], [1, 3, 2, 8]]).view(1, 4, 4, 1)
    rois = torch.tensor([[0, 0, 0, 1, 3], [0, 2, 2, 3, 3], [0, 1, 0, 3, 2]], dtype=torch.int32)
    pooled = roi_pooling(feature_map, rois, pool_height=2, pool_width=2)
    assert pooled.tolist() == [[[[3, 4], [6, 3]]], [[[1, 7], [2, 8]]], [[[4, 4], [4, 7]]]]


def test_deepsense_gradient_is_right_for_several_channels(roi_pooling):
    feature_map = torch.tensor([[[1.0, 9], [2, 8]], [[3, 7], [4, 6]]]).view(1, 2, 2, 2).requires_grad_()
    roi_pooling(feature_map, torch.tensor([[0, 0, 0, 1, 1]]), 1, 1).sum().backward()
    assert feature_map.grad.tolist() == [[[[0, 1], [0, 0]], [[0, 0], [1, 0]]]]


def test_module_and_function_agree():
    roi = torch.tensor([[0.0, 0, 48, 96, 112]])
    layer = RoIPool(output_size=(2, 3), spatial_scale=1 / 16)
    assert torch.equal(layer(ARTICLE, roi), roi_pool(ARTICLE, roi, (2, 3), 1 / 16))
    assert repr(layer) == "RoIPool(output_size=(2, 3), spatial_scale=0.0625)"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"features": torch.zeros(1, 4, 4)}, r"features must be .* \(1, 4, 4\)"),
        ({"features": torch.zeros(1, 1, 4, 4, dtype=torch.int64)}, "features must be .* torch.int64"),
        ({"rois": torch.zeros(3, 4)}, r"rois must be \(R, 5\).* \(3, 4\)"),
        ({"rois": [torch.zeros(3, 5)]}, r"rois\[0\] must be \(P, 4\) boxes, got shape \(3, 5\)"),
        ({"rois": [torch.zeros(1, 4)] * 2}, "list of 2 tensors, but there are 1 images"),
        ({"rois": torch.zeros(1, 5, device="meta")}, "rois are on meta, but features on cpu"),
        ({"output_size": 0}, r"output_size .* \(0, 0\)"),
        ({"output_size": (2, -1)}, r"output_size .* \(2, -1\)"),
        ({"spatial_scale": 0.0}, "spatial_scale .* 0.0"),
        ({"spatial_scale": float("nan")}, "spatial_scale .* nan"),
    ],
)
def test_wrong_arguments_are_named(changed, message):
    arguments = {"features": torch.zeros(1, 1, 4, 4), "rois": torch.zeros(1, 5), "output_size": 2}
    with pytest.raises(ValueError, match=message):
        roi_pool(**(arguments | changed))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("column", range(5))
def test_roi_that_is_not_finite_is_named(value, column):
    rois = torch.zeros(4, 5)
    rois[2, column] = value
    with pytest.raises(ValueError, match=rf"rois\[2\] is \[.*{value}.*\]: coordinates must be finite"):
        roi_pool(torch.zeros(1, 1, 4, 4), rois, 2)
    with pytest.raises(ValueError, match=r"rois\[2\]"):
        detector.roi_pool.reference.check_rois(rois, 1)


@pytest.mark.parametrize("index", [-1, 3, 1e20])
def test_batch_index_out_of_range_is_named(index):
    rois = torch.tensor([[0.0, 0, 0, 1, 1], [2, 0, 0, 1, 1], [index, 0, 0, 1, 1]])
    with pytest.raises(ValueError, match=r"rois\[2\] is .* below 3, the number of feature maps"):
        roi_pool(torch.zeros(3, 1, 4, 4), rois, 2)
    with pytest.raises(ValueError, match=r"rois\[2\]"):
        detector.roi_pool.reference.check_rois(rois, 3)
