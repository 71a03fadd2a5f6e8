"""Public function: diversification over colour spaces, scales and similarities, then ordering of all boxes."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from detector.runtime.ranks import cores
from detector.selective_search.colour import LEVEL, smooth, to_space
from detector.selective_search.grouping import group
from detector.selective_search.ordering import order
from detector.selective_search.regions import COLOUR_BINS, DIRECTIONS, TEXTURE_BINS, Regions, coarsen, measure
from detector.selective_search.segmentation import segment, sorted_edges

LARGEST_SIDE_PX = 16384  # edge numbers have 32 bits, with four edges per pixel


class Strategy(NamedTuple):
    """The similarities that are summed (section 3.2.1)."""

    colour: bool
    texture: bool
    size: bool
    fill: bool


ALL = Strategy(colour=True, texture=True, size=True, fill=True)
NO_COLOUR = ALL._replace(colour=False)
SIZE = Strategy(colour=False, texture=False, size=True, fill=False)
FILL = Strategy(colour=False, texture=False, size=False, fill=True)


class Mode(NamedTuple):
    """Diversification: one hierarchy per combination (section 3.2)."""

    spaces: tuple[str, ...]
    ks: tuple[int, ...]
    strategies: tuple[Strategy, ...]
    min_size: int = 100  # minimum region size in pixels


MODES = {
    "single": Mode(("hsv",), (200,), (ALL,)),
    "fast": Mode(("hsv", "lab"), (75, 150, 300, 450), (ALL, NO_COLOUR)),
    "quality": Mode(("hsv", "lab", "rgi", "gray", "hue"), (75, 150, 300, 450, 600), (ALL, NO_COLOUR, FILL, SIZE)),
}


def selective_search(
    image: npt.NDArray[np.uint8], mode: str = "fast", seed: int = 0, threads: int | None = None, max_side_px: int = 1000
) -> npt.NDArray[np.float32]:
    """Propose boxes for the objects of an image (Uijlings et al., IJCV 2013).

    image: (H, W, 3) RGB or (H, W) gray, uint8. If the longer side exceeds `max_side_px`, the image is shrunk to it,
        and the boxes are scaled back. Memory: at most about 150 bytes per (shrunk) pixel and thread.
    mode: "single", "fast" or "quality", see `MODES`.
    seed: for the order of boxes with equal rank.
    threads: number of colour spaces or hierarchies processed at once; None uses every core. The GIL is released, so for
        many images call this with `threads=1` from several Python threads or processes.

    Returns (P, 4) float32 x1 y1 x2 y2 in continuous pixels of the given image, best first, without duplicates, and
    including the whole image. The boxes are the same on every machine and for any number of threads.

    Raises ValueError for an invalid image or argument.
    """
    chosen = check(image, mode, seed, threads, max_side_px)
    height, width = image.shape[:2]
    small = shrink(image, max_side_px)
    rgb = smooth(
        np.ascontiguousarray(np.broadcast_to(small[..., None], (*small.shape, 3)) if small.ndim == 2 else small)
    )
    with ThreadPoolExecutor(threads or cores()) as pool:

        def grow(space: str) -> list[Future]:
            """Submit the grouping of each segmentation as soon as it is ready."""
            found = segmentations(rgb, space, chosen.ks, chosen.min_size)
            return [pool.submit(hierarchy, regions, strategy) for regions in found for strategy in chosen.strategies]

        per_space = [pool.submit(grow, space) for space in chosen.spaces]
        hierarchies = [grouped.result() for space in per_space for grouped in space.result()]
    boxes = order(hierarchies, seed).astype(np.float32)
    scale = np.array([width / small.shape[1], height / small.shape[0]] * 2, np.float32)
    return boxes * scale


def check(image: npt.NDArray[np.uint8], mode: str, seed: int, threads: int | None, max_side_px: int) -> Mode:
    """Raise ValueError, naming the value and the way out, for an invalid argument."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        what = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"image must be a numpy array of uint8 (0 to 255), not {what}: convert it first")
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or image.size == 0:
        raise ValueError(f"image must be (H, W, 3) RGB or (H, W) gray with H, W >= 1, not of shape {image.shape}")
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is unknown: choose one of {', '.join(MODES)}")
    if seed < 0:
        raise ValueError(f"seed is {seed}: give 0 or more")
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}: give 1 or more, or None for every core")
    if not 1 <= max_side_px <= LARGEST_SIDE_PX:
        raise ValueError(f"max_side_px is {max_side_px}: give a length from 1 to {LARGEST_SIDE_PX} pixels")
    return MODES[mode]


def shrink(image: npt.NDArray[np.uint8], max_side_px: int) -> npt.NDArray[np.uint8]:
    """Downscale to a longer side of `max_side_px`, with Pillow's box filter (fixed-point arithmetic)."""
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer <= max_side_px:
        return image
    size = [max(1, (2 * side * max_side_px + longer) // (2 * longer)) for side in (width, height)]
    return np.asarray(Image.fromarray(image).resize((size[0], size[1]), Image.Resampling.BOX))


def segmentations(rgb: npt.NDArray[np.uint16], space: str, ks: tuple[int, ...], min_size: int) -> Iterator[Regions]:
    """The regions in one colour space for each k."""
    planes = to_space(rgb, space)
    edges, ends = sorted_edges(planes)
    regions = measure(planes, *segment(edges, ends, planes.shape[1:], ks[0] * LEVEL, min_size))
    yield regions
    for k in ks[1:]:
        regions = coarsen(regions, k * LEVEL)
        yield regions


def hierarchy(regions: Regions, strategy: Strategy) -> npt.NDArray[np.int32]:
    """Boxes (2R - 1, 4) of the R regions and of all regions merged from them."""
    bins = regions.histogram.shape[1]
    colour_bins = bins * COLOUR_BINS // (COLOUR_BINS + DIRECTIONS * TEXTURE_BINS)
    start = 0 if strategy.colour else colour_bins
    stop = bins if strategy.texture else colour_bins
    return group(regions, regions.histogram[:, start : max(start, stop)], strategy.size, strategy.fill)
