"""Images without annotations, given by file, folder or glob pattern."""

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from detector.data.image import UPRIGHT_IMAGES, ImageOptions, read_image
from detector.errors import InputError
from detector.structures import GroundTruth


class ImageFiles:
    """Images by id, without annotations. A DetectionDataset without objects."""

    def __init__(
        self, paths: Mapping[str, Path], classes: Sequence[str], image_options: ImageOptions = UPRIGHT_IMAGES
    ) -> None:
        self.image_ids = list(paths)
        self.classes = tuple(classes)
        self.image_options = image_options
        self._paths = paths

    def with_classes(self, classes: Sequence[str]) -> "ImageFiles":
        return ImageFiles(self._paths, classes, self.image_options)

    @property
    def name(self) -> str:
        return "images"

    def __len__(self) -> int:
        return len(self.image_ids)

    def image(self, index: int) -> np.ndarray:
        return read_image(self.image_path(index), self.image_options)

    def image_path(self, index: int) -> Path:
        return self._paths[self.image_ids[index]]

    def annotation_path(self, index: int) -> Path:
        """The image itself, as there is no annotation."""
        return self.image_path(index)

    def annotated_hw(self, index: int) -> None:
        """None, as there is no annotation."""

    def invalid_objects(self, index: int) -> Sequence[str]:
        return ()

    def ground_truth(self, index: int) -> GroundTruth:
        return GroundTruth(
            image_id=self.image_ids[index],
            boxes=np.zeros((0, 4), dtype=np.float32),
            labels=np.zeros(0, dtype=np.int64),
            difficult=np.zeros(0, dtype=bool),
            crowd=np.zeros(0, dtype=bool),
            areas=np.zeros(0),
        )


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
        raise InputError(f"{where}: there is no file (here is {Path.cwd()}){hint}")
    common = Path(os.path.commonpath([file.parent for file in found]))
    return {file.relative_to(common).as_posix(): file for file in found}
