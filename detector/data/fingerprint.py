"""What a run was trained on, in one number each, so that it is not taken up again on something else."""

import hashlib

from detector.data.loader import Proposals, Reader


def fingerprints(part: str, reader: Reader, proposals: Proposals) -> dict[str, str]:
    """Those of the data and of the proposals, under names such as `training data`."""
    return {
        f"{part} data": fingerprint_data(reader),
        f"{part} proposals": fingerprint_proposals(proposals, reader.image_ids),
    }


def fingerprint_data(reader: Reader) -> str:
    """A digest of the image ids, the sizes of the image files in bytes, and all objects. The folder does not count."""
    digest = hashlib.sha256()
    for index, image_id in enumerate(reader.image_ids):
        truth = reader.ground_truth(index)
        digest.update(f"{image_id} {reader.image_path(index).stat().st_size} {len(truth.boxes)}\n".encode())
        for values in (truth.boxes, truth.labels, truth.difficult, truth.crowd):
            digest.update(values.tobytes())
    return digest.hexdigest()


def fingerprint_proposals(proposals: Proposals, image_ids: list[str]) -> str:
    """A digest of the boxes of these images, and of their scores where there are any."""
    digest = hashlib.sha256()
    for image_id in image_ids:
        boxes, scores = proposals[image_id], proposals.scores(image_id)
        digest.update(f"{image_id} {len(boxes)}\n".encode())
        digest.update(boxes.tobytes())
        digest.update(b"" if scores is None else scores.tobytes())
    return digest.hexdigest()
