"""A new split of annotated images: stratified by class, with copies and near-copies of an image on one side."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detector.data.dataset import Record
from detector.data.image import ImageOptions, read_image_hw, read_thumbnail
from detector.errors import InputError
from detector.runtime.files import digest_of
from detector.runtime.ranks import cores
from detector.runtime.threads import thread_pool

SIDE_PX = 16  # of the thumbnails that are compared
LENGTH = SIDE_PX * SIDE_PX * 3
MIN_CORRELATION = 0.98  # of the thumbnails of near-copies
_thumbnails: dict[str, np.ndarray] = {}  # by digest of the file: a dataset is read for each part


def make_split(
    records: Sequence[Record], shares: Sequence[float], part: int, seed: int, options: ImageOptions
) -> tuple[list[int], list[int], int]:
    """Divide the records into parts of these shares, of which the one of index `part` is val and the others train.

    Returns the indices of train and val, and how many images have a near-copy. The result depends only on the images,
    classes, shares and seed. Scoring needs every image and object, so records that cannot be used go to train, which
    can skip them. Raises InputError if there are too few images.
    """
    with thread_pool(cores()) as pool:
        thumbnails = [*pool.map(lambda record: _thumbnail(record, options), records)]
    usable = [number for number, thumbnail in enumerate(thumbnails) if thumbnail is not None]
    if len(usable) < 2:
        usable = [*range(len(records))]  # a fault of all, which the validation explains
    groups = near_copies([records[number] for number in usable], [thumbnails[number] for number in usable])
    groups = [[usable[number] for number in group] for group in groups]
    chosen = stratify(groups, [{*record.names} or {""} for record in records], shares, seed)
    val = sorted(number for group, own in zip(groups, chosen, strict=True) if own == part for number in group)
    train = sorted({*range(len(records))} - {*val})
    if not (train and val):
        raise InputError(
            f"only {len(groups)} of {len(records)} images are distinct, too few for a split: make folders train/ and "
            "val/, or give data.val_fraction"
        )
    return train, val, sum(len(group) for group in groups if len(group) > 1)


def near_copies(records: Sequence[Record], thumbnails: Sequence[np.ndarray | None]) -> list[list[int]]:
    """Groups of the records, in order, that are copies of one image or, by Roboflow's file names, augmented from one.

    Re-encoded and resized copies are found, and those with another brightness; mirrored and cropped ones are not.
    """
    from scipy.sparse import coo_array  # here, as the import is slow and few datasets need it
    from scipy.sparse.csgraph import connected_components

    pairs: list[tuple[int, int]] = []
    sources: dict[str, int] = {}
    for number, record in enumerate(records):
        if isinstance(record.image, Path) and record.image.is_file():
            source, _, augmented = record.image.name.partition(".rf.")
            for key in (digest_of(record.image), *([source] if augmented else [])):
                pairs.append((number, sources.setdefault(key, number)))
    vectors = np.stack([np.zeros(LENGTH, np.float32) if item is None else item for item in thumbnails])
    for start in range(0, len(vectors), 1024):  # limits the memory
        close = np.argwhere(vectors[start : start + 1024] @ vectors.T > MIN_CORRELATION)
        pairs += [(start + one, other) for one, other in close.tolist()]
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(records), len(records)))
    groups: dict[int, list[int]] = {}
    for number, group in enumerate(connected_components(graph, directed=False)[1].tolist()):
        groups.setdefault(group, []).append(number)
    return [*groups.values()]


def stratify(
    groups: Sequence[Sequence[int]], labels: Sequence[set[str]], shares: Sequence[float], seed: int
) -> list[int]:
    """The part of each group of images, so that each part has its share of the images of every label.

    Greedy, from the rarest label on (Sechidis et al. 2011, "On the stratification of multi-label data"): a group goes
    to the part that lacks most images of that label.
    """
    counts = [Counter(label for number in group for label in labels[number]) for group in groups]
    totals = sum(counts, Counter[str]())
    lacking = [{label: share * count for label, count in totals.items()} for share in shares]
    capacity = [share * sum(map(len, groups)) for share in shares]
    chosen = [0] * len(groups)
    left = np.random.default_rng(seed).permutation(len(groups)).tolist()
    while left:
        there = sum((counts[group] for group in left), Counter[str]())
        label = min(there, key=lambda label: (there[label], label))
        for group in [group for group in left if label in counts[group]]:
            part = max(range(len(shares)), key=lambda part: (lacking[part][label], capacity[part], -part))
            chosen[group] = part
            capacity[part] -= len(groups[group])
            for own, count in counts[group].items():
                lacking[part][own] -= count
        left = [group for group in left if label not in counts[group]]
    return chosen


def _thumbnail(record: Record, options: ImageOptions) -> np.ndarray | None:
    """(N,) a small image, each colour with mean 0, of norm 1; None if the image or an object of it cannot be used."""
    if isinstance(record.image, InputError) or record.invalid or record.skipped:
        return None
    try:
        height, width = hw = read_image_hw(record.image, options)
        digest = digest_of(record.image)
        if digest not in _thumbnails:
            pixels = read_thumbnail(record.image, SIDE_PX, options).astype(np.float32)
            pixels = (pixels - pixels.mean(axis=(0, 1))).ravel()
            _thumbnails[digest] = pixels / max(float(np.linalg.norm(pixels)), 1.0)  # nothing of an even image
    except InputError:
        return None
    x1, y1, x2, y2 = record.boxes.T
    outside = (x2 <= 0) | (y2 <= 0) | (x1 >= width) | (y1 >= height)
    return None if record.annotated_hw not in (None, hw) or outside.any() else _thumbnails[digest]
