"""COCO JSON and VOC XML files anywhere in a folder, read as in the layouts of their own.

Roboflow writes a COCO JSON into the folder of each split; labelImg, and the VOC exports of CVAT, Label Studio and
Roboflow, one XML file for each image.
"""

from collections.abc import Iterator
from dataclasses import replace

from detector.data.dataset import Record
from detector.data.formats.coco import read_coco
from detector.data.formats.folder.tree import FileTree
from detector.data.formats.voc import NotAnAnnotation, read_annotation
from detector.data.image import ImageOptions
from detector.errors import InputError

KEYS = {"images", "annotations", "categories"}


def read_coco_json(tree: FileTree, _: ImageOptions) -> Iterator[Record]:
    """A record for each image of each COCO file; boxes without area are dropped, as by `data.drop_empty_boxes`."""
    files = tree.with_suffix(".json")
    meant = [path for path in files if len(tree.json_keys(path) & KEYS) >= 2]  # or lacks one of the lists
    if meant and (broken := [path for path in tree.broken_json if isinstance(tree.image_for(path), InputError)]):
        raise tree.broken_json[broken[0]]
    for path in meant:
        for record in read_coco(path.parent, path.name, drop_empty_boxes=True).records:
            named = str(record.image)
            yield replace(record, image_id=named, image=tree.image_named(named, path))


def read_voc_xml(tree: FileTree, _: ImageOptions) -> Iterator[Record]:
    """A record for each XML file."""
    for path in tree.with_suffix(".xml"):
        image = tree.image_for(path)
        try:
            yield replace(read_annotation(path), image_id=tree.relative(path), image=image)
        except InputError as error:
            if isinstance(image, InputError) and isinstance(error, NotAnAnnotation):
                continue
            yield Record(tree.relative(path), image, path, invalid=error)
