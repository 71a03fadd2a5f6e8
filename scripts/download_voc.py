"""Download Pascal VOC 2007 and 2012 and the selective search boxes released with Fast R-CNN.

    python scripts/download_voc.py                      everything: a download of 3.4 GB, about 7 GB on disk
    python scripts/download_voc.py --only voc2007       only VOC 2007: 0.9 GB

They go to data/, where data=voc07 and data=voc0712 look for them. An interrupted download resumes when the
program is called again. The archives in data/downloads/ may be deleted afterwards; a file there marks each as unpacked.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from detector.data.download import download, require_safe_tar, unpack
from detector.runtime.exits import exit_status
from detector.runtime.files import require_writable, write_atomically


class Archive(NamedTuple):
    name: str
    url: str  # of its folder
    md5: str


VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
ARCHIVES = {
    "voc2007": (
        Archive("VOCtrainval_06-Nov-2007.tar", f"{VOC}/voc2007/", "c52e279531787c972589f7e41ab4ae64"),
        Archive("VOCtest_06-Nov-2007.tar", f"{VOC}/voc2007/", "b6e924de25625d8de591ea690078ad9f"),
    ),
    "voc2012": (Archive("VOCtrainval_11-May-2012.tar", f"{VOC}/voc2012/", "6cd6e144f989b92b3379bac3b3de84fd"),),
    "selective_search": (
        Archive(
            "selective_search_data.tgz",
            "https://dl.dropboxusercontent.com/s/orrt7o6bp6ae0tc/",
            "7078c1db87a7851b31966b96774cd9b9",
        ),
    ),
}


def main(command_line: Sequence[str] | None = None, archives: Mapping[str, Sequence[Archive]] = ARCHIVES) -> int:
    """Run the program; returns its exit status: 0 done, 1 or 2 not done (error on stderr), 130 or 143 interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder to unpack to (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(archives), default=list(archives), help="default: all")
    parser.add_argument("--mirror", metavar="URL", help="folder on another server that has files of the same names")
    arguments = parser.parse_args(command_line)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    wanted = [archive for name in arguments.only for archive in archives[name]]
    return exit_status(
        lambda: fetch_all(wanted, arguments.root, arguments.mirror), "run the same command to resume from here"
    )


def fetch_all(archives: Sequence[Archive], root: Path, mirror: str | None) -> None:
    require_safe_tar()
    require_writable("--root", root)
    for archive in archives:
        fetch(archive, root, mirror)


def fetch(archive: Archive, root: Path, mirror: str | None) -> None:
    """Download and unpack one archive, unless this is marked as done."""
    file = root / "downloads" / archive.name
    done = file.with_name(f"{archive.name}.unpacked")
    if done.exists():
        print(f"{archive.name}: is already unpacked (see {done})")
        return
    folder = f"{mirror.rstrip('/')}/" if mirror else archive.url
    download(folder + archive.name, file, archive.md5)
    unpack(file, root)
    write_atomically(done, b"")
    print(f"{archive.name}: unpacked to {root}")


if __name__ == "__main__":
    sys.exit(main())
