"""Verify the declared box format of proposals: every order and pixel origin is tried against the ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detector.box_arrays import box_iou_array
from detector.data.dataset import DetectionDataset
from detector.errors import InputError
from detector.proposals.formats.records import ORDERS, PIXEL_ORIGINS, BoxFormat, RawProposals

SAMPLE_SIZE = 200  # images
# Another box format counts as better only if its score exceeds that of the declared one by this.
MARGIN = 0.02
# Selective search finds at least 0.8 of the objects in most datasets; boxes of other images find almost none.
LOW_RECALL = 0.3
# Added to the denominators of counts, so that a few boxes or objects do not decide.
PRIOR_COUNT = 10
SURE_COUNT = 20  # number of objects that is sufficient evidence
# Widths count pixels with every origin, so x1 y1 w h from 0 is the same with and without the last pixel.
BOX_FORMATS = [
    BoxFormat(order, origin)
    for order in ORDERS
    for origin in PIXEL_ORIGINS
    if (order, origin) != ("xywh", "0-inclusive")
]


class OtherOrder(InputError):
    """The numbers are certainly in another order: it finds half of the objects, and twice as many as the declared."""


@dataclass(frozen=True)
class BoxFormatMatch:
    """How well boxes match a sample of images; fractions are from 0 to 1, 1 is best."""

    inside: float  # fraction of boxes within their image
    valid: float  # fraction of boxes with x2 > x1 and y2 > y1
    found: int  # objects covered by a box with an IoU of at least 0.5
    objects: int
    touching: tuple[int, int]  # box sides exactly on the left or upper border, and on the right or lower border

    @property
    def recall(self) -> float:
        """Fraction of the objects covered by a box with an IoU of at least 0.5; 1 without objects."""
        return self.found / self.objects if self.objects else 1.0

    @property
    def score(self) -> float:
        """Mean of four values: `inside`, `valid`, recall, and the ratio of the two counts of `touching`.

        Boxes touch opposite borders equally often. With a wrong pixel origin, or another image size, they no longer
        touch one of the two borders.
        """
        recall = self.found / (self.objects + PRIOR_COUNT)
        borders = min(self.touching) / (max(self.touching) + PRIOR_COUNT)
        return (self.inside + self.valid + recall + borders) / 4


def measure_match(
    boxes: Sequence[np.ndarray], gt_boxes: Sequence[np.ndarray], image_hws: Sequence[tuple[int, int]]
) -> BoxFormatMatch:
    """Match the boxes (P, 4) of each image with its objects (G, 4) and its size."""
    inside = valid = total = found = objects = near = far = 0
    for image_boxes, image_gt, (height, width) in zip(boxes, gt_boxes, image_hws, strict=True):
        low, high = image_boxes[:, :2], image_boxes[:, 2:]
        limit = np.array([width, height], dtype=np.float32)
        inside += int(((low > -0.01) & (high < limit + 0.01)).all(axis=1).sum())
        valid += int((high > low).all(axis=1).sum())
        near += int((np.abs(low) < 0.01).sum())
        far += int((np.abs(high - limit) < 0.01).sum())
        total += len(image_boxes)
        objects += len(image_gt)
        if len(image_boxes) and len(image_gt):
            best = box_iou_array(image_gt, image_boxes).max(axis=1)
            found += int((best >= 0.5).sum())
    return BoxFormatMatch(inside / max(total, 1), valid / max(total, 1), found, objects, (near, far))


def require_box_format(
    raw: RawProposals, dataset: DetectionDataset, image_hws: Sequence[tuple[int, int]], declared: BoxFormat | None
) -> None:
    """Raise InputError, with the score of every box format, unless `declared` is the best on a sample of the images.

    Also raises if nothing is declared, if the boxes match better when stretched to the size of their images, and if
    they find hardly any objects. An order that is certainly wrong raises OtherOrder. `image_hws` are the sizes of the
    images of `dataset`, which must all be in the file.
    """
    sample = np.unique(np.linspace(0, len(dataset) - 1, SAMPLE_SIZE).astype(int)).tolist()
    truths = [dataset.ground_truth(index) for index in sample]
    gt_boxes = [truth.boxes[~truth.crowd] for truth in truths]
    hws = [image_hws[index] for index in sample]
    rows = [raw.rows[truth.image_id][:, :4] for truth in truths]
    converted = {box_format: [box_format.to_boxes(coordinates) for coordinates in rows] for box_format in BOX_FORMATS}
    matches = {_options(box_format): measure_match(boxes, gt_boxes, hws) for box_format, boxes in converted.items()}
    best = max(BOX_FORMATS, key=lambda box_format: matches[_options(box_format)].score)
    if declared is None:
        said = (
            f"their order is {ORDERS[raw.order]}, but not their base" if raw.order else "neither their order nor base"
        )
        raise InputError(
            f"{raw.path}: the file does not say what its numbers mean ({said}); say it with {_options(best)} if "
            f"that is right, which fits best:\n{_table(matches)}"
        )
    if declared == BoxFormat("xywh", "0-inclusive"):
        declared = BoxFormat("xywh", "0")
    stretched = [_stretch(boxes, hw) for boxes, hw in zip(converted[declared], hws, strict=True)]
    stretched_match = measure_match(stretched, gt_boxes, hws)
    mine, theirs = matches[_options(declared)], matches[_options(best)]
    other_order = best.order != declared.order
    # Stretched boxes always touch the far borders, so they must also find more objects than another order.
    if stretched_match.score > theirs.score + MARGIN and (not other_order or stretched_match.found > theirs.found):
        matches[f"{_options(declared)}, stretched"] = stretched_match
        raise InputError(
            f"{raw.path}: its boxes fit better when they are stretched to the images: they were generated on images of "
            f"another size. Generate them again for these images:\n{_table(matches)}"
        )
    if theirs.score > mine.score + MARGIN:
        sure = theirs.objects >= SURE_COUNT and theirs.found >= max(theirs.objects / 2, 2 * mine.found)
        sure &= theirs.inside >= mine.inside - MARGIN  # the right order does not put boxes outside their image
        raise (OtherOrder if sure and other_order else InputError)(
            f"{raw.path}: its boxes were taken for {declared}, but fit images and objects better as {best}; if that is "
            f"what they are, convert them with {_options(best)}:\n{_table(matches)}"
        )
    if mine.recall < LOW_RECALL and mine.objects > PRIOR_COUNT:
        raise InputError(
            f"{raw.path}: hardly any object has a proposal, however its numbers are read: are these boxes of other "
            f"images, or of another split under the same names?\n{_table(matches)}"
        )


def _stretch(boxes: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Boxes scaled so that the outermost ones end at the right and lower borders."""
    height, width = image_hw
    extent = boxes[:, 2:].max(axis=0, initial=1)
    return boxes * np.tile(np.array([width, height], dtype=np.float32) / extent, 2).astype(np.float32)


def _options(box_format: BoxFormat) -> str:
    return f"--order {box_format.order} --base {box_format.pixel_origin}"


def _table(matches: dict[str, BoxFormatMatch]) -> str:
    width = max(map(len, matches))
    lines = [f"  {'':{width}}  score  inside  x2>x1  objects found  borders touched"]
    for name, match in sorted(matches.items(), key=lambda item: -item[1].score):
        counts = f"{match.found} of {match.objects}"
        near, far = match.touching
        lines.append(
            f"  {name:{width}}  {match.score:5.3f}  {match.inside:6.3f}  {match.valid:5.3f}  {counts:>13}  "
            f"{near} and {far}"
        )
    return "\n".join(lines)
