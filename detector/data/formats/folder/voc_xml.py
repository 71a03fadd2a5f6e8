"""VOC XML, one file for each image: labelImg, VOC exports of CVAT, Label Studio and Roboflow."""

from collections.abc import Iterator
from dataclasses import replace

from detector.data.dataset import Record
from detector.data.formats.folder.tree import FileTree
from detector.data.formats.voc import NotAnAnnotation, read_annotation
from detector.data.image import ImageOptions
from detector.errors import InputError


def read(tree: FileTree, _: ImageOptions) -> Iterator[Record]:
    """A record for each XML file."""
    for path in tree.with_suffix(".xml"):
        image = tree.image_for(path)
        try:
            yield replace(read_annotation(path), image_id=tree.relative(path), image=image)
        except InputError as error:
            if isinstance(image, InputError) and isinstance(error, NotAnAnnotation):
                continue
            yield Record(tree.relative(path), image, path, invalid=error)
