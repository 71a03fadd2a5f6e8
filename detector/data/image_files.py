"""Images without annotations, given by file, folder or glob pattern."""

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from detector.data.dataset import DetectionDataset, Record
from detector.data.image import UPRIGHT_IMAGES, ImageOptions
from detector.errors import InputError


def image_dataset(
    paths: Mapping[str, Path], classes: Sequence[str], image_options: ImageOptions = UPRIGHT_IMAGES
) -> DetectionDataset:
    """A dataset of images by id, without annotations."""
    records = [Record(image_id, path, path) for image_id, path in paths.items()]
    return DetectionDataset("images", tuple(classes), records, image_options)


def find_files(where: str) -> dict[str, Path]:
    """Files of an image path, a folder or a glob pattern, by id, sorted by path.

    A folder gives its files that are not hidden, without subfolders; a pattern may hold *, ?, [] and **.
    The id is the path relative to the common parent folder: the file name if all are in one folder.
    Raises InputError if there is no file.
    """
    path = Path(where)
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    else:
        found = sorted(Path(name) for name in glob.glob(where, recursive=True) if Path(name).is_file())
    if not found:
        hint = f"; its subfolders are not searched, but those of '{where}/**/*' are" if path.is_dir() else ""
        raise InputError(f"{where}: there is no file (current directory: {Path.cwd()}){hint}")
    common = Path(os.path.commonpath([file.parent for file in found]))
    return {file.relative_to(common).as_posix(): file for file in found}
