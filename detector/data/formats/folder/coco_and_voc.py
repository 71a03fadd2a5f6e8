"""COCO JSON and VOC XML files anywhere in a folder, read as in the layouts of their own.

Roboflow writes a COCO JSON into the folder of each split; labelImg, and the VOC exports of CVAT, Label Studio and
Roboflow, one XML file for each image.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from detector.data.dataset import Record
from detector.data.formats.coco import read_coco
from detector.data.formats.folder.tree import FileTree
from detector.data.formats.voc import NotAnAnnotation, read_annotation, read_file_name
from detector.data.image import ImageOptions
from detector.errors import InputError

KEYS = {"images", "annotations", "categories"}
CHOOSE_COCO = "data=coco data.train_json=FILE data.val_json=FILE"


def read_coco_json(tree: FileTree, _: ImageOptions) -> Iterator[Record]:
    """A record for each image of each COCO file; boxes without area are dropped, as by `data.drop_empty_boxes`."""
    files = tree.with_suffix(".json")
    meant = [path for path in files if len(tree.json_keys(path) & KEYS) >= 2]  # or lacks one of the lists
    if meant and (broken := [path for path in tree.broken_json if isinstance(tree.image_for(path), InputError)]):
        raise tree.broken_json[broken[0]]
    for path in meant:
        if lacking := KEYS - tree.json_keys(path):  # such as captions
            raise InputError(f"{path}: it has no list of objects '{min(lacking)}', so it is not a COCO file of "
                             f"boxes: move it out of the folder, or choose others: {CHOOSE_COCO}")  # fmt: skip
        for record in read_coco(path.parent, path.name, drop_empty_boxes=True).records:
            named = str(record.image)
            yield replace(record, image_id=os.path.relpath(named, tree.root), image=tree.image_named(named, path))


def read_voc_xml(tree: FileTree, _: ImageOptions) -> Iterator[Record]:
    """A record for each XML file. Its image is the one of its name or, if that has none, of its <filename>."""
    images = {path: tree.image_for(path) for path in tree.with_suffix(".xml")}
    taken = {*images.values()}
    for path, image in images.items():
        try:
            record = read_annotation(path)
            if isinstance(image, InputError):
                named = tree.image_named(read_file_name(path), path)
                image = named if isinstance(named, Path) and named not in taken else image
            yield replace(record, image_id=tree.relative(path), image=image)
        except InputError as error:
            if isinstance(image, InputError) and isinstance(error, NotAnAnnotation):
                continue
            yield Record(tree.relative(path), image, path, invalid=error)
