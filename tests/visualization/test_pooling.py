import itertools

import numpy as np
import pytest
import torch
import torchvision

import detector.roi_pool
from detector.errors import InputError
from detector.visualization.pooling import (
    ARTICLE_MAP,
    ARTICLE_OUTPUT_HW,
    ARTICLE_REGION,
    pool_disjoint,
    pool_overlapping,
)
from detector.visualization.pooling_figures import (
    _draw_frame,
    animate,
    draw_comparison,
    draw_maxima,
    draw_steps,
    rule,
)
from detector.visualization.style import new_figure, pixels

ARTICLE = ARTICLE_MAP, ARTICLE_REGION, ARTICLE_OUTPUT_HW


def operator(features: np.ndarray, region: tuple, output_hw: tuple[int, int]) -> np.ndarray:
    """The pooled values, by an operator that is not ours."""
    image = torch.from_numpy(features.astype(np.float32))[None, None]
    return torchvision.ops.roi_pool(image, torch.tensor([[0.0, *region]], dtype=torch.float32), output_hw)[0, 0].numpy()


def test_map_is_that_of_the_documentation():
    for line in ARTICLE_MAP:
        shown = "[" + ", ".join(f"{value:.2f}".lstrip("0") for value in line) + "]"
        assert shown in detector.roi_pool.__doc__


def test_article_drawing_differs_from_the_layer_in_one_maximum():
    _, disjoint, overlapping = draw_comparison(pool_disjoint(*ARTICLE), pool_overlapping(*ARTICLE))
    assert disjoint.output == {(0, 0): "0.85", (0, 1): "0.84", (1, 0): "0.97", (1, 1): "0.96"}
    assert overlapping.output == {(0, 0): "0.85", (0, 1): "0.96", (1, 0): "0.97", (1, 1): "0.96"}
    assert disjoint.sections == {(0, 0): (3, 5, 0, 3), (0, 1): (3, 5, 3, 7), (1, 0): (5, 8, 0, 3), (1, 1): (5, 8, 3, 7)}
    assert overlapping.sections[0, 1] == (3, 6, 3, 7)
    assert disjoint.maxima[0, 1] == (3, 3)
    assert overlapping.maxima[0, 1] == overlapping.maxima[1, 1] == (5, 6)


@pytest.mark.parametrize("seed", range(5))
def test_drawn_numbers_are_those_of_the_operator(seed):
    generator = np.random.default_rng(seed)
    height, width = generator.integers(3, 13, 2)
    features = generator.permutation(height * width).reshape(height, width).astype(np.float32)
    x1, y1 = generator.uniform(0, [width - 1, height - 1])
    region = (x1, y1, x1 + generator.uniform(0, width), y1 + generator.uniform(0, height))
    output_hw = tuple(generator.integers(1, 5, 2).tolist())
    _, drawn = draw_steps(pool_overlapping(features, region, output_hw))
    expected = operator(features, region, output_hw)
    assert {place: float(text) for place, text in drawn.output.items()} == dict(np.ndenumerate(expected))
    for place, (row, column) in drawn.maxima.items():
        top, bottom, left, right = drawn.sections[place]
        assert features[row, column] == features[top:bottom, left:right].max() == expected[place]
        assert top <= row < bottom
        assert left <= column < right
    assert set(drawn.maxima) == {place for place in np.ndindex(output_hw) if drawn.sections.get(place)}


@pytest.mark.parametrize("seed", range(2))
def test_disjoint_sections_cover_each_cell_of_the_region_once(seed):
    generator = np.random.default_rng(seed)
    features = generator.permutation(100).reshape(10, 10).astype(np.float32)
    _, drawn = draw_steps(pool_disjoint(features, (1.0, 2.0, 8.0, 7.0), (3, 4)))
    covered = np.zeros((10, 10), dtype=int)
    for place, (top, bottom, left, right) in drawn.sections.items():
        covered[top:bottom, left:right] += 1
        assert float(drawn.output[place]) == features[top:bottom, left:right].max() == features[drawn.maxima[place]]
    assert (covered == np.pad(np.ones((6, 8), dtype=int), ((2, 2), (1, 1)))).all()


def test_fewer_cells_than_sections_have_no_disjoint_cut():
    assert pool_disjoint(ARTICLE_MAP, (2.0, 2.0, 2.0, 2.0), (2, 2)) is None
    assert (pool_overlapping(ARTICLE_MAP, (2.0, 2.0, 2.0, 2.0), (2, 2)).values == ARTICLE_MAP[2, 2]).all()


def test_rule_names_the_cells_of_each_section():
    assert "rows 3 to 7: s = 5, n = 2\n   i = 0:  rows 3 to 5\n   i = 1:  rows 5 to 7" in rule(
        pool_overlapping(*ARTICLE)
    )
    assert "11 cells (hatched)" in rule(pool_overlapping(*ARTICLE))
    assert "i = 0:  rows 3 to 4\n   i = 1:  rows 5 to 7" in rule(pool_disjoint(*ARTICLE))
    assert "no cell\n\nA section without a cell gives 0" in rule(
        pool_overlapping(ARTICLE_MAP, (0.0, 0.0, 15.0, 7.0), (1, 3))
    )


def test_animation_shows_the_maxima_one_after_the_other():
    frames, seconds = animate([pool_overlapping(*ARTICLE)])
    assert len(frames) == len(seconds) == 7  # map, region, sections, four maxima
    assert all((one != other).any() for one, other in itertools.pairwise(frames))


def test_animation_says_that_a_section_has_no_cell():
    outside = pool_overlapping(ARTICLE_MAP, (-8.0, 0.0, 7.0, 7.0), (1, 4))
    assert outside.cells[0, :2].tolist() == [[-1, -1], [-1, -1]]
    for count, caption in ((2, "Section 2 has no cell: 0.00"), (3, "The maximum of section 3 is 0.97")):
        axes = _draw_frame(outside, "maxima", count).axes[0]
        assert axes.get_title() == caption
        assert len(draw_maxima(axes, outside, count)) == count - 2


@pytest.mark.parametrize(
    ("scale", "text", "output_hw"),
    [(1, "0.97", (14, 14)), (12.5, "12.1", (3, 2)), (12345, "11975", (7, 7)), (1e-7, "9.7e-08", (4, 7))],
)
def test_numbers_fit_into_the_cells_of_the_output(scale, text, output_hw):
    pooling = pool_overlapping(ARTICLE_MAP * scale, (0.0, 0.0, 7.0, 7.0), output_hw)
    figure, drawn = draw_steps(pooling)
    assert text in drawn.output.values()
    pixels(figure)
    cells, numbers = figure.axes[4].patches, figure.axes[4].texts
    for number, cell in zip(numbers, cells[::2], strict=True):
        assert number.get_window_extent().width < cell.get_window_extent().width
        assert number.get_fontsize() >= 4


def test_one_cell_pooled_to_many_sections_has_few_rings():
    axes = new_figure(3, 3).subplots()
    drawn = draw_maxima(axes, pool_overlapping(np.ones((1, 1)), (0.0, 0.0, 0.0, 0.0), (7, 7)))
    assert len(drawn) == 49
    assert [round(ring.radius, 2) for ring in axes.patches] == [0.46, 0.37, 0.28, 0.19]


def test_region_far_beyond_the_map_leaves_the_map_visible():
    figure, _ = draw_steps(pool_overlapping(ARTICLE_MAP, (-1e30, 0.0, 1e30, 7.0), (2, 2)))
    low, high = figure.axes[1].get_xlim()
    assert high - low < 25


@pytest.mark.parametrize(
    ("features", "region", "output_hw", "message"),
    [
        (np.zeros((2, 3, 4)), (0, 0, 1, 1), (2, 2), r"shape \(2, 3, 4\)"),
        (np.zeros((65, 3)), (0, 0, 1, 1), (2, 2), "from 1 to 64"),
        (np.zeros((0, 3)), (0, 0, 1, 1), (2, 2), "from 1 to 64"),
        (np.full((3, 3), np.nan), (0, 0, 1, 1), (2, 2), "finite"),
        (np.full((3, 3), "a"), (0, 0, 1, 1), (2, 2), "finite numbers"),
        (np.full((3, 3), 1e39), (0, 0, 1, 1), (2, 2), "range of float32"),
        (np.zeros((3, 3)), (0, 0, 1, 1), (0, 2), "output size 0 2"),
        (np.zeros((3, 3)), (2, 0, 1, 1), (2, 2), "region 2 0 1 1"),
        (np.zeros((3, 3)), (0, 0, np.inf, 1), (2, 2), "region 0 0 inf 1"),
        (np.zeros((3, 3)), (7, 0, 8, 1), (2, 2), "outside the map of 3 x 3 cells"),
    ],
)
def test_invalid_input_is_named(features, region, output_hw, message):
    with pytest.raises(InputError, match=message):
        pool_overlapping(features, region, output_hw)
