"""Do these numbers mean what was said of them? Every order and base is tried against the ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from detector.boxes import box_iou
from detector.data.loader import DetectionDataset
from detector.errors import InputError
from detector.proposals.formats.records import BASES, ORDERS, Layout, RawProposals

SAMPLE_SIZE = 200  # images
# A layout is taken for a better one only if it beats the declared one by this.
MARGIN = 0.02
# Selective search finds 0.8 and more of most data sets' objects; boxes of other images find next to none.
LOW_RECALL = 0.3
# Counts are weighed as if there had been so many more that speak for nothing, so that a handful decides nothing.
PRIOR_COUNT = 10
SURE_COUNT = 20  # as many objects leave no doubt
# Widths count pixels in every base, so x1 y1 w h from 0 is the same with and without the last pixel.
LAYOUTS = [Layout(order, base) for order in ORDERS for base in BASES if (order, base) != ("xywh", "0-inclusive")]


class OtherOrder(InputError):
    """Beyond doubt the numbers are in another order: in that they find half of the objects, and twice as many."""


@dataclass(frozen=True)
class Fit:
    """How well boxes fit a sample of images; every part is from 0 to 1, 1 is best."""

    inside: float  # boxes that lie within their image
    sound: float  # boxes with x2 > x1 and y2 > y1
    found: int  # objects overlapped by a box with IoU 0.5 or more
    objects: int
    touching: tuple[int, int]  # sides of boxes exactly on the left or upper border, and on the right or lower one

    @property
    def recall(self) -> float:
        """Part of the objects that a box overlaps, IoU 0.5 or more; 1 without objects."""
        return self.found / self.objects if self.objects else 1.0

    @property
    def score(self) -> float:
        """Mean of four: `inside`, `sound`, recall, and how alike the two counts of `touching` are.

        Boxes end at a border as often as they begin at the one opposite. A wrong base, or another size of the images,
        takes them off one border and lets them touch the other still.
        """
        recall = self.found / (self.objects + PRIOR_COUNT)
        borders = min(self.touching) / (max(self.touching) + PRIOR_COUNT)
        return (self.inside + self.sound + recall + borders) / 4


def measure_fit(
    boxes: Sequence[np.ndarray], gt_boxes: Sequence[np.ndarray], image_hws: Sequence[tuple[int, int]]
) -> Fit:
    """Fit of each image's boxes (P, 4) to its objects (G, 4) and its size."""
    inside = sound = total = found = objects = near = far = 0
    for image_boxes, image_gt, (height, width) in zip(boxes, gt_boxes, image_hws, strict=True):
        low, high = image_boxes[:, :2], image_boxes[:, 2:]
        limit = np.array([width, height], dtype=np.float32)
        inside += int(((low > -0.01) & (high < limit + 0.01)).all(axis=1).sum())
        sound += int((high > low).all(axis=1).sum())
        near += int((np.abs(low) < 0.01).sum())
        far += int((np.abs(high - limit) < 0.01).sum())
        total += len(image_boxes)
        objects += len(image_gt)
        if len(image_boxes) and len(image_gt):
            best = box_iou(torch.from_numpy(image_gt), torch.from_numpy(image_boxes)).amax(dim=1)
            found += int((best >= 0.5).sum())
    return Fit(inside / max(total, 1), sound / max(total, 1), found, objects, (near, far))


def require_fit(
    raw: RawProposals, reader: DetectionDataset, image_hws: Sequence[tuple[int, int]], declared: Layout | None
) -> None:
    """Raise InputError, with the score of every layout, unless `declared` is the best for a sample of the images.

    Also if nothing was declared, if the boxes fit better when they are stretched to the size of their images, and if
    they hardly find an object at all. An order that is wrong beyond doubt is an OtherOrder. `image_hws` are the sizes
    of the reader's images, which must all be in the file.
    """
    sample = np.unique(np.linspace(0, len(reader) - 1, SAMPLE_SIZE).astype(int)).tolist()
    truths = [reader.ground_truth(index) for index in sample]
    gt_boxes = [truth.boxes[~truth.crowd] for truth in truths]
    hws = [image_hws[index] for index in sample]
    rows = [raw.rows[truth.image_id][:, :4] for truth in truths]
    in_layout = {layout: [layout.to_boxes(coordinates) for coordinates in rows] for layout in LAYOUTS}
    fits = {_options(layout): measure_fit(boxes, gt_boxes, hws) for layout, boxes in in_layout.items()}
    best = max(LAYOUTS, key=lambda layout: fits[_options(layout)].score)
    if declared is None:
        said = (
            f"their order is {ORDERS[raw.order]}, but not their base" if raw.order else "neither their order nor base"
        )
        raise InputError(
            f"{raw.path}: the file does not say what its numbers mean ({said}); say it with {_options(best)} if "
            f"that is right, which fits best:\n{_table(fits)}"
        )
    if declared == Layout("xywh", "0-inclusive"):
        declared = Layout("xywh", "0")
    mine = fits[_options(declared)]
    stretched = [_stretch(boxes, hw) for boxes, hw in zip(in_layout[declared], hws, strict=True)]
    stretched_fit = measure_fit(stretched, gt_boxes, hws)
    theirs = fits[_options(best)]
    other_order = best.order != declared.order
    # Stretching always makes boxes touch the far borders: against another order it must find more objects too.
    if stretched_fit.score > theirs.score + MARGIN and (not other_order or stretched_fit.found > theirs.found):
        fits[f"{_options(declared)}, stretched"] = stretched_fit
        raise InputError(
            f"{raw.path}: its boxes fit better when they are stretched to the images: they were made on images of "
            f"another size. Make them again on these images:\n{_table(fits)}"
        )
    if theirs.score > mine.score + MARGIN:
        sure = theirs.objects >= SURE_COUNT and theirs.found >= max(theirs.objects / 2, 2 * mine.found)
        sure &= theirs.inside >= mine.inside - MARGIN  # boxes that then lie outside are not theirs
        raise (OtherOrder if sure and other_order else InputError)(
            f"{raw.path}: its boxes were taken for {declared}, but fit images and objects better as {best}; if that is "
            f"what they are, convert them with {_options(best)}:\n{_table(fits)}"
        )
    if mine.recall < LOW_RECALL and mine.objects > PRIOR_COUNT:
        raise InputError(
            f"{raw.path}: hardly any object has a proposal, however its numbers are read: are these boxes of other "
            f"images, or of another split under the same names?\n{_table(fits)}"
        )


def _stretch(boxes: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Boxes scaled so that the furthest ends at the right and the lower border."""
    height, width = image_hw
    extent = boxes[:, 2:].max(axis=0, initial=1)
    return boxes * np.tile(np.array([width, height], dtype=np.float32) / extent, 2).astype(np.float32)


def _options(layout: Layout) -> str:
    return f"--order {layout.order} --base {layout.base}"


def _table(fits: dict[str, Fit]) -> str:
    width = max(map(len, fits))
    lines = [f"  {'':{width}}  score  inside  x2>x1  objects found  borders touched"]
    for name, fit in sorted(fits.items(), key=lambda item: -item[1].score):
        counts = f"{fit.found} of {fit.objects}"
        near, far = fit.touching
        lines.append(
            f"  {name:{width}}  {fit.score:5.3f}  {fit.inside:6.3f}  {fit.sound:5.3f}  {counts:>13}  {near} and {far}"
        )
    return "\n".join(lines)
