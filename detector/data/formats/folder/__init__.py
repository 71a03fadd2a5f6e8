"""A folder of annotated images as it is found: several formats, with or without splits."""

from detector.data.formats.folder.reader import read_folder

__all__ = ["read_folder"]
