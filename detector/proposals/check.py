"""Faults in the proposals of a dataset, per image."""

import numpy as np

from detector.data.dataset import DetectionDataset
from detector.data.image import read_image_hw
from detector.data.proposal_selection import first_of_equals
from detector.errors import first_few
from detector.proposals.store import OpenedProposals, ProposalStore

TOLERANCE_PX = 0.01  # how far a box can extend over the border: float32 rounding in scaling

FAULTS = {
    "missing": "images of the dataset that are not in the file",
    "extra": "images of the file that are not in the dataset",
    "other size": "images that had another size when the boxes were made",
    "empty": "images without a box",
    "nan": "boxes with a coordinate that is not a finite number; counted only here",
    "degenerate": "boxes without width or height",
    "out of bounds": "boxes that extend over the border of their image",
    "duplicate": "boxes that equal one before them",
}


def find_faults(proposals: OpenedProposals, dataset: DetectionDataset) -> dict[str, dict[str, int]]:
    """Number of faults by kind (see FAULTS) and image id, for the images that have them."""
    faults: dict[str, dict[str, int]] = {kind: {} for kind in FAULTS}
    faults["extra"] = dict.fromkeys(sorted({*proposals.image_ids} - {*dataset.image_ids}), 1)
    for index, image_id in enumerate(dataset.image_ids):
        if image_id not in proposals:
            faults["missing"][image_id] = 1
            continue
        image_hw = read_image_hw(dataset.image_path(index), dataset.image_options)
        found = _box_faults(proposals[image_id], image_hw)
        found["other size"] = int(proposals.image_hw(image_id) not in (None, image_hw))
        for kind, count in found.items():
            if count:
                faults[kind][image_id] = count
    return faults


def describe(proposals: OpenedProposals) -> str:
    """What a file has, one fact per line: images, boxes per image, their sides, scores, origin."""
    boxes = [proposals[image_id] for image_id in proposals.image_ids if image_id in proposals]
    counts = np.array([len(item) for item in boxes] or [0])
    together = np.concatenate([np.zeros((0, 4), np.float32), *boxes])
    sides = np.nan_to_num((together[:, 2:] - together[:, :2]).min(axis=1)) if len(together) else np.zeros(1)
    shorter = " / ".join(f"{value:.0f}" for value in np.quantile(sides, (0, 0.25, 0.5, 0.75, 1)))
    with_size = sum(proposals.image_hw(image_id) is not None for image_id in proposals.image_ids)
    first = next((image_id for image_id in proposals.image_ids if image_id in proposals), None)
    has_scores = first is not None and proposals.scores(first) is not None
    lines = [
        ("images", f"{len(boxes)}, {with_size} of them with their size; ids: {first_few([*proposals.image_ids], 3)}"),
        ("boxes", f"{counts.sum()}; per image {counts.min()} to {counts.max()}, median {np.median(counts):.0f}"),
        ("shorter side", f"{shorter} px (minimum, quartiles, maximum)"),
        ("scores", "yes" if has_scores else "no: the order is best first"),
    ]
    if isinstance(proposals, ProposalStore):
        origin = {key: value for key, value in proposals.generator.items() if key != "unreadable"}
        lines.append(("made by", ", ".join(f"{key} {value}" for key, value in origin.items()) or "unknown"))
        for image_id, reason in proposals.unreadable.items():
            lines.append(("unreadable", f"{image_id}: {reason}"))
    return "\n".join(f"{name:14}{text}" for name, text in lines)


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
    """One line per kind of fault: total count, number of images, and meaning."""
    lines = [f"{'':13}  {'in all':>9}  {'images':>7}"]
    for kind, meaning in FAULTS.items():
        lines.append(f"{kind:13}  {sum(faults[kind].values()):9}  {len(faults[kind]):7}  {meaning}")
    return "\n".join(lines)
