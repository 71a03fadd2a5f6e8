"""COCO JSON files, of which Roboflow writes one into the folder of each split."""

from collections.abc import Iterator
from dataclasses import replace

from detector.data.dataset import Record
from detector.data.formats.coco import read_coco
from detector.data.formats.folder.tree import FileTree
from detector.data.image import ImageOptions
from detector.errors import InputError

KEYS = {"images", "annotations", "categories"}


def read(tree: FileTree, _: ImageOptions) -> Iterator[Record]:
    """A record for each image of each COCO file; boxes without area are dropped, as by `data.drop_empty_boxes`."""
    files = tree.with_suffix(".json")
    meant = [path for path in files if len(tree.json_keys(path) & KEYS) >= 2]  # or lacks one of the lists
    if meant and (broken := [path for path in tree.broken_json if isinstance(tree.image_for(path), InputError)]):
        raise tree.broken_json[broken[0]]
    for path in meant:
        for record in read_coco(path.parent, path.name, drop_empty_boxes=True).records:
            named = str(record.image)
            yield replace(record, image_id=named, image=tree.image_named(named, path))
