"""COCO JSON files, of which Roboflow writes one into the folder of each split."""

from collections.abc import Iterator
from dataclasses import replace

from detector.data.coco import read_coco
from detector.data.dataset import Record
from detector.data.folder.tree import FileTree
from detector.data.image import ImageOptions
from detector.errors import InputError

KEYS = {"images", "annotations", "categories"}


def read(tree: FileTree, _: ImageOptions) -> Iterator[Record]:
    """A record for each image of each COCO file; boxes without area are dropped, as by `data.drop_empty_boxes`."""
    for path in tree.with_suffix(".json"):
        keys = tree.json_keys(path)
        if isinstance(keys, InputError) and isinstance(tree.image_for(path), InputError):
            raise keys
        if isinstance(keys, InputError) or len(keys & KEYS) < 2:  # neither COCO's nor most likely meant to be
            continue
        for record in read_coco(path.parent, path.name, drop_empty_boxes=True).records:
            named = str(record.image)
            yield replace(record, image_id=named, image=tree.image_named(named, path))
