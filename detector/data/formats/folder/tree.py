"""The files below a folder, and which image an annotation file belongs to."""

import os
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable
from functools import cached_property
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import NoReturn
from unicodedata import normalize

from detector.data.formats.voc import IMAGE_SUFFIXES
from detector.errors import InputError, first_few
from detector.runtime.files import read_json

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "photos", "pictures")
SPLITS = {
    "train": "train", "training": "train", "trainval": "trainval", "val": "val", "valid": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
ANNOTATION_SUFFIXES = (".xml", ".txt", ".json", ".csv")


class FileTree:
    """All files below `root` except hidden ones, sorted by path."""

    def __init__(self, root: Path) -> None:
        if root.is_file():
            raise InputError(f"data.root: {root} is a file, not a folder of images: unpack an archive first")
        if not root.is_dir():
            raise InputError(f"data.root: there is no folder {root} (current directory: {Path.cwd()})")
        self.root = root
        self.files = sorted(_files_below(root))
        self.images = [path for path in self.files if path.suffix.lower() in IMAGE_SUFFIXES]
        self.broken_json: dict[Path, InputError] = {}  # of the files that `json_keys` has read
        self._json_keys: dict[Path, tuple[frozenset[str], frozenset[str]]] = {}

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """The files with one of these suffixes, in upper or lower case."""
        return [path for path in self.files if path.suffix.lower() in suffixes]

    def suffixes(self) -> str:
        """How many files of each kind there are: `20 .jpg, 1 .txt`."""
        counts = Counter(path.suffix.lower() or "without suffix" for path in self.files)
        return first_few([f"{count} {suffix}" for suffix, count in counts.most_common()], 8) or "no file"

    def relative(self, path: Path) -> str:
        """The path below the root, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def image_for(self, annotation: Path) -> Path | InputError:
        """The image with the stem of an annotation file: beside it, else in a parallel folder, else anywhere.

        A parallel folder differs in one component, such as a/labels/b and a/images/b; of several, one named like
        IMAGE_FOLDERS is preferred, then the one whose path has most words in common with that of the annotation. An
        annotation file can also append its suffix to the image's: a.jpg.txt.
        """
        return self._only(self._called(annotation.stem), lambda image: (), annotation, annotation.stem)

    def image_named(self, name: str, source: Path, among: Container[Path] | None = None) -> Path | InputError:
        """The image that a file `source` names, by a path of any origin: the longest common end of the path counts.

        Without suffix, `name` matches images of that stem, and so it does if no image has its suffix, as after a
        conversion. Only files of this tree are found, and of these only images in `among`.
        """
        parts = PurePosixPath(name.strip().replace("\\", "/")).parts
        last = parts[-1] if parts else ""
        called = self._called(last) or self._called(re.sub(r"\.[a-zA-Z]{3,4}$", "", last))
        found = [image for image in called if among is None or image in among]
        folders = parts[:-1]
        return self._only(found, lambda image: (-_common_end(folders, image.parent.parts),), source, name)

    def json_keys(self, path: Path) -> frozenset[str]:
        """The keys of the object in a JSON file; none for anything else, and for a file in `broken_json`."""
        return self._keys(path)[0]

    def json_item_keys(self, path: Path) -> frozenset[str]:
        """The keys of the first item of a list of objects in a JSON file; none as in `json_keys`."""
        return self._keys(path)[1]

    def _keys(self, path: Path) -> tuple[frozenset[str], frozenset[str]]:
        if path not in self._json_keys:
            self._json_keys[path] = frozenset(), frozenset()
            try:
                content = read_json(path)
                first = content[0] if isinstance(content, list) and content else None
                self._json_keys[path] = (
                    frozenset(content if isinstance(content, dict) else ()),
                    frozenset(first if isinstance(first, dict) else ()),
                )
            except InputError as error:
                self.broken_json[path] = error
        return self._json_keys[path]

    def _called(self, name: str) -> list[Path]:
        """The images of this name or stem; case and Unicode form matter only if several images match."""
        found = self._by_name.get(_plain(name), []) or self._by_stem.get(_plain(name), [])
        return [path for path in found if name in (path.name, path.stem)] or found

    def _only(self, images: list[Path], rank: Callable, source: Path, name: str) -> Path | InputError:
        """The image of the lowest rank, of several the nearest to `source`, or the error for none or several."""
        if not images:
            last = re.split(r"[\\/]", name)[-1]
            others = [path.name for path in self._others_by_stem.get(_plain(PurePosixPath(last).stem), [])]
            instead = f", only {first_few(others)}: save it as JPEG or PNG" if others else ""
            return InputError(f"{source}: there is no image '{name}' for it{instead}")
        words = self._words(source)
        ranks = [
            (*rank(image), _distance(source.parent, image.parent), -len(words & self._words(image.parent)))
            for image in images
        ]
        best = [image for image, own in zip(images, ranks, strict=True) if own == min(ranks)]
        if len(best) == 1:
            return best[0]
        return InputError(f"{source}: '{name}' matches {len(best)} images: {first_few([str(path) for path in best])}")

    def _words(self, path: Path) -> set[str]:
        """The words and numbers in a path below the root, with splits as in SPLITS: val and 2017 of valid2017."""
        return {SPLITS.get(word, word) for word in re.findall(r"[^\W\d_]+|\d+", _plain(self.relative(path)))}

    @cached_property
    def _others_by_stem(self) -> dict[str, list[Path]]:
        """Files that are neither images that can be read nor annotations, such as HEIC."""
        known = (*IMAGE_SUFFIXES, *ANNOTATION_SUFFIXES)
        return _grouped([path for path in self.files if path.suffix.lower() not in known], lambda p: _plain(p.stem))

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        return _grouped(self.images, lambda path: _plain(path.stem))

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        return _grouped(self.images, lambda path: _plain(path.name))


def _plain(name: str) -> str:
    """A name without differences in case (which Windows ignores) and in Unicode form (which macOS changes)."""
    return normalize("NFC", name).casefold()


def _files_below(root: Path) -> Iterable[Path]:
    """Files below the root; links to folders are followed, each folder once."""
    seen = set()
    for folder, names, files in os.walk(root, followlinks=True, onerror=_refuse):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:
            names[:] = []
            continue
        seen.add((stat.st_dev, stat.st_ino))
        names[:] = sorted(name for name in names if not name.startswith((".", "__MACOSX")))
        paths = (Path(folder, name) for name in files if not name.startswith("."))
        yield from (path for path in paths if path.is_file())  # reading a pipe or a device could take forever


def _refuse(error: OSError) -> NoReturn:
    raise InputError(f"{error.filename}: cannot be read: {error.strerror}")


def _grouped(paths: Iterable[Path], key: Callable[[Path], str]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(key(path), []).append(path)
    return found


def _distance(one: Path, other: Path) -> int:
    """0: the same folder, 1: parallel folders, the other one for images, 2: parallel folders, 3: any others."""
    if one == other:
        return 0
    differing = [(a, b) for a, b in zip(one.parts, other.parts, strict=False) if a != b]
    if len(one.parts) != len(other.parts) or len(differing) != 1:
        return 3
    return 1 if differing[0][1].lower() in IMAGE_FOLDERS else 2


def _common_end(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
