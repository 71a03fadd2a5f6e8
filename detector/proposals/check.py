"""What is wrong with the proposals of a data set, image by image."""

import numpy as np

from detector.data.image import read_image_hw
from detector.data.loader import DetectionDataset
from detector.data.proposal_selection import first_of_equals
from detector.proposals.store import FileProposals, ProposalStore

TOLERANCE_PX = 0.01  # how far a box may stand over the border: what float32 loses in scaling

FAULTS = {
    "missing": "images of the data set that are not in the file",
    "extra": "images of the file that are not in the data set",
    "other size": "images that had another size when the boxes were made",
    "empty": "images without a box",
    "nan": "boxes with a coordinate that is no finite number; they count as nothing else",
    "degenerate": "boxes without width or height",
    "out of bounds": "boxes that stand over the border of their image",
    "duplicate": "boxes that equal one before them",
}


def find_faults(proposals: ProposalStore | FileProposals, reader: DetectionDataset) -> dict[str, dict[str, int]]:
    """Each of FAULTS -> image id -> how often, for the images that have it."""
    faults: dict[str, dict[str, int]] = {kind: {} for kind in FAULTS}
    faults["extra"] = dict.fromkeys(sorted({*proposals.image_ids} - {*reader.image_ids}), 1)
    for index, image_id in enumerate(reader.image_ids):
        if image_id not in proposals:
            faults["missing"][image_id] = 1
            continue
        image_hw = read_image_hw(reader.image_path(index), reader.image_options)
        found = _box_faults(proposals[image_id], image_hw)
        found["other size"] = int(proposals.image_hw(image_id) not in (None, image_hw))
        for kind, count in found.items():
            if count:
                faults[kind][image_id] = count
    return faults


def _box_faults(boxes: np.ndarray, image_hw: tuple[int, int]) -> dict[str, int]:
    height, width = image_hw
    finite = boxes[np.isfinite(boxes).all(axis=1)]
    limits = np.array([width, height], dtype=np.float32)
    outside = (finite < -TOLERANCE_PX).any(axis=1) | (finite.reshape(-1, 2, 2) > limits + TOLERANCE_PX).any(axis=(1, 2))
    return {
        "empty": int(len(boxes) == 0),
        "nan": len(boxes) - len(finite),
        "degenerate": int((finite[:, 2:] <= finite[:, :2]).any(axis=1).sum()),
        "out of bounds": int(outside.sum()),
        "duplicate": len(finite) - len(first_of_equals(finite)),
    }


def fault_table(faults: dict[str, dict[str, int]]) -> str:
    """A line for each kind: how often in all, in how many images, and what it means."""
    lines = [f"{'':13}  {'in all':>9}  {'images':>7}"]
    for kind, meaning in FAULTS.items():
        lines.append(f"{kind:13}  {sum(faults[kind].values()):9}  {len(faults[kind]):7}  {meaning}")
    return "\n".join(lines)
