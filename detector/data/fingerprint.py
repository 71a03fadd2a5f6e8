"""Digests of the data and proposals of a run, so that it is not resumed on different ones."""

import hashlib
from collections.abc import Sequence

from detector.data.check import Checked
from detector.data.dataset import DetectionDataset
from detector.data.loader import Proposals


def dataset_fingerprints(part: str, checked: Checked, proposals: Proposals) -> dict[str, str]:
    """Fingerprints of the data and of the proposals, under names such as `training data`."""
    dataset = checked.dataset
    return {
        f"{part} data": fingerprint_data(dataset, checked.digests),
        f"{part} proposals": fingerprint_proposals(proposals, dataset.image_ids),
    }


def fingerprint_data(dataset: DetectionDataset, image_digests: Sequence[str]) -> str:
    """Digest of image ids, image file digests and all objects; independent of the folder."""
    digest = hashlib.sha256()
    for index, (image_id, image_digest) in enumerate(zip(dataset.image_ids, image_digests, strict=True)):
        truth = dataset.ground_truth(index)
        digest.update(f"{image_id} {image_digest} {len(truth.boxes)}\n".encode())
        for values in (truth.boxes, truth.labels, truth.difficult, truth.crowd):
            digest.update(values.tobytes())
    return digest.hexdigest()


def fingerprint_proposals(proposals: Proposals, image_ids: list[str]) -> str:
    """Digest of the proposals of these images, and of their scores where there are any."""
    digest = hashlib.sha256()
    for image_id in image_ids:
        boxes, scores = proposals[image_id], proposals.scores(image_id)
        digest.update(f"{image_id} {len(boxes)}\n".encode())
        digest.update(boxes.tobytes())
        digest.update(b"" if scores is None else scores.tobytes())
    return digest.hexdigest()
