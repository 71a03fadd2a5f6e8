"""Rank unlabelled images by how much a network doubts them: what to label next (active learning).

    python scripts/select_images.py --checkpoint runs/mine/checkpoints/best.pt --input unlabelled --out next --top 50

The doubt of a detection with score p is (1 - |2p - 1|)^2: 1 at p = 0.5, 0 at p = 0 and p = 1. It is the 1-vs-2 margin
of Brust, Kaeding and Denzler (*Active Learning for Deep Object Detection*, VISAPP 2019) between the class and
everything else. The doubt of an image is that of its detections combined by --by, and 0 without any.

Writes to the folder OUT, which must be new or empty:

    ranking.csv       rank,image,doubt,detections: the image with the highest doubt first
    images/           with --top N: copies of the first N images (with --link, symbolic links to them)

Exit status: 0 all images are ranked; 1 some images failed and are listed, or the disk is full; 2 invalid input, nothing
is done; 130 or 143 interrupted.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from detector.errors import InputError
from detector.runtime.exits import FAILED, exit_status
from detector.runtime.files import csv_text, open_atomically, require_inside, write_atomically

MIN_SCORE = 0.05  # below, a detection has a doubt under 0.01
COMBINE: dict[str, Callable[[np.ndarray], float]] = {
    "sum": lambda doubts: float(doubts.sum()),
    "mean": lambda doubts: float(doubts.mean()) if len(doubts) else 0.0,
    "max": lambda doubts: float(doubts.max(initial=0.0)),
}


def main(command_line: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", required=True, type=Path, help="RUN/checkpoints/best.pt, or an exported network"
    )
    parser.add_argument("--input", required=True, help="a folder (every file in it), or a pattern: 'photos/**/*.jpg'")
    parser.add_argument("--out", required=True, type=Path, help="folder to write to, new or empty")
    parser.add_argument("--proposals", type=Path, help="file of proposals; its ids are the files' names")
    parser.add_argument(
        "--by",
        choices=list(COMBINE),
        default="sum",
        help="sum prefers images with many doubtful objects, mean those that are doubtful throughout, max those with "
        "one very doubtful object (default: %(default)s)",
    )
    parser.add_argument("--top", type=int, metavar="N", help="copy the first N images to OUT/images")
    parser.add_argument("--link", action="store_true", help="make symbolic links instead of copies")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    arguments = parser.parse_args(command_line)
    return exit_status(lambda: run(arguments), "every file in OUT is whole, but some may be missing")


def run(arguments: argparse.Namespace) -> int:
    """Rank, and write the results; returns the exit status, 1 if an image could not be used."""
    from tqdm import tqdm

    import detector
    from detector.runtime.files import find_files, require_new

    if arguments.top is not None and arguments.top < 1:
        raise InputError(f"--top: {arguments.top}: must be an integer from 1")
    if arguments.link and arguments.top is None:
        raise InputError("--link belongs to --top")
    files = find_files(arguments.input)
    require_new("--out", arguments.out)
    require_inside(arguments.out / "images", files)
    model = detector.load(arguments.checkpoint, arguments.device)
    results = model.stream(files, proposals=arguments.proposals, score_threshold=MIN_SCORE)
    rows, bad = [], []
    progress = tqdm(results, total=len(files), unit="image", desc="rank", disable=None)
    for image_id, result in zip(files, progress, strict=True):
        if isinstance(result, InputError):
            bad.append(" ".join(str(result).split()))
        else:
            rows.append((image_id, doubt_of(result.scores, arguments.by), len(result)))
    rows.sort(key=lambda row: (-row[1], row[0]))
    ranking = [[rank, image_id, f"{doubt:.6f}", count] for rank, (image_id, doubt, count) in enumerate(rows, start=1)]
    write_atomically(
        arguments.out / "ranking.csv", csv_text([["rank", "image", "doubt", "detections"], *ranking]).encode()
    )
    chosen = rows[: arguments.top or 0]
    for image_id, *_ in chosen:
        place(files[image_id], arguments.out / "images" / image_id, arguments.link)
    copied = f", the first {len(chosen)} in {arguments.out / 'images'}" if chosen else ""
    print(f"{len(rows)} of {len(files)} images ranked -> {arguments.out / 'ranking.csv'}{copied}")
    for line in bad:
        print(line, file=sys.stderr)
    return FAILED if bad else 0


def doubt_of(scores: np.ndarray, by: str) -> float:
    """The doubt of an image from the scores (N,) of its detections."""
    return COMBINE[by]((1 - np.abs(2 * scores.astype(np.float64) - 1)) ** 2)


def place(source: Path, target: Path, link: bool) -> None:
    """Copy the file, or link to it."""
    if link:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source.resolve())
        return
    with open(source, "rb") as original, open_atomically(target) as copy:
        shutil.copyfileobj(original, copy)


if __name__ == "__main__":
    sys.exit(main())
