"""Generate proposals for a dataset by selective search; convert, join and check proposals.

    python scripts/proposals.py generate --data ROOT --split trainval --out FILE.safetensors
    python scripts/proposals.py merge PART.safetensors ... --out FILE.safetensors
    python scripts/proposals.py convert --from voc-mat --to store --data ROOT --split SPLIT FILE.mat FILE.safetensors
    python scripts/proposals.py check FILE --data ROOT --split SPLIT
    python scripts/proposals.py recall FILE ... --data ROOT --split SPLIT
    python scripts/proposals.py info FILE
    python scripts/proposals.py union FILE FILE ... --nms 0.9 --out FILE.safetensors
    python scripts/proposals.py grid --data ROOT --split SPLIT --out FILE.safetensors

ROOT is in VOC layout, in COCO layout with --annotations FILE.json [--images FOLDER] in place of --split, or any folder
of annotated images, where --split can be omitted. It is only read, and no file is overwritten. Exit status: 0 done, 1
`check` found problems or a write failed (such as a full disk), 2 invalid input, 130 or 143 interrupted.
docs/proposals.md explains formats, shards and faults.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from detector.data.command_line import (
    add_dataset_options,
    add_image_options,
    given_dataset,
    require_no_dataset_options,
)
from detector.data.dataset import DetectionDataset
from detector.data.image import UPRIGHT_IMAGES
from detector.errors import InputError
from detector.proposals.check import describe, fault_table, find_faults
from detector.proposals.convert import READERS, WRITERS, convert
from detector.proposals.formats.records import ORDERS, PIXEL_ORIGINS
from detector.proposals.store import (
    OpenedProposals,
    ProposalStore,
    open_proposals,
    require_exif,
    require_present,
    stream_store,
)
from detector.runtime.exits import exit_status
from detector.runtime.files import require_new_file, write_atomically
from detector.runtime.ranks import cores
from detector.settings import SearchMode

FOUND_SOMETHING = 1
FILE = "a .safetensors store or a release's .mat"


def main(arguments: list[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    left = "no partial file is left, and generate resumes where it stopped"
    sys.exit(exit_status(lambda: options.run(options), left))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def new(name: str, run: Callable[[argparse.Namespace], int | None], help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help)
        command.set_defaults(run=run)
        return command

    add_generate(new("generate", generate, "selective search over all images of a split"))
    command = new("merge", merge, "join the shards of one dataset")
    command.add_argument("parts", nargs="+", type=Path, metavar="PART", help="a store made with --shard")
    add_out(command)
    add_convert(new("convert", run_convert, "from one format to another"))
    command = new("check", check, "faults of proposals: missing, extra, NaN, out of bounds, ...")
    add_file(command)
    add_image_options(command)
    new("info", info, "describe a file").add_argument("file", type=Path, help=FILE)
    command = new("union", union, "join files of the same images, without near duplicates")
    command.add_argument("files", nargs="+", type=Path, metavar="FILE", help=FILE)
    command.add_argument("--nms", type=float, default=0.9, metavar="IOU", help="default: %(default)s; 1: keep all")
    add_out(command)
    command = new("grid", grid, "windows on a grid, a baseline for recall")
    add_dataset_options(command)
    add_image_options(command)
    add_out(command)
    command = new("recall", recall, "fraction of the objects that the proposals cover")
    add_file(command, nargs="+")
    command.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw a plot")
    return parser


def add_generate(command: argparse.ArgumentParser) -> None:
    add_dataset_options(command)
    add_image_options(command)
    add_out(command)
    command.add_argument(
        "--mode", default="fast", choices=get_args(SearchMode), help="search mode (default: %(default)s)"
    )
    command.add_argument("--workers", type=int, default=cores(), help="images in parallel (default: all cores)")
    command.add_argument(
        "--max-bad-fraction", type=float, default=0.01, metavar="F",
        help="fraction of unreadable images to allow; they are listed and have no boxes (default: %(default)s)",
    )  # fmt: skip
    command.add_argument("--shard", type=shard, metavar="I/N", help="only the I-th of N parts, from 1/N to N/N")


def add_convert(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", type=Path, help="file or folder to read")
    command.add_argument("target", type=Path, help="file or folder to write")
    command.add_argument("--from", required=True, choices=list(READERS), dest="source_format")
    command.add_argument("--to", required=True, choices=list(WRITERS), dest="target_format")
    overrides = "overrides the format; required if the format does not define it"
    command.add_argument("--order", choices=list(ORDERS), help=f"coordinate order; {overrides}")
    command.add_argument(
        "--base",
        choices=list(PIXEL_ORIGINS),
        help=f"how pixels are counted; {overrides}: " + "; ".join(map(": ".join, PIXEL_ORIGINS.items())),
    )
    command.add_argument(
        "--i-trust-this-file", action="store_true", help="allow reading a pickle, which can run any code"
    )
    add_dataset_options(command, required=False)
    add_image_options(command)


def add_out(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", required=True, type=Path, help="the store to write, FILE.safetensors")


def add_file(command: argparse.ArgumentParser, nargs: str | None = None) -> None:
    command.add_argument("file", nargs=nargs, type=Path, help=FILE)
    add_dataset_options(command)
    command.add_argument("--json", type=Path, metavar="FILE", help="also write all results to a JSON file")


def shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"'{text}' is not a shard, such as 1/4")
    return int(number), int(count)


def generate(options: argparse.Namespace) -> None:
    require_new_file("--out", options.out, ".safetensors")
    if options.workers < 1:
        raise InputError(f"--workers: {options.workers} must be 1 or more")
    if not 0 <= options.max_bad_fraction <= 1:
        raise InputError(f"--max-bad-fraction: {options.max_bad_fraction} must be from 0 to 1")
    from detector.proposals.generate import generate_proposals

    dataset = given_dataset(options)
    generate_proposals(dataset, options.out, options.mode, options.workers, options.shard, options.max_bad_fraction)
    print(summary(ProposalStore(options.out)))


def merge(options: argparse.Namespace) -> None:
    require_new_file("--out", options.out, ".safetensors")
    from detector.proposals.generate import merge_shards

    merge_shards(options.parts, options.out)
    print(summary(ProposalStore(options.out)))


def summary(store: ProposalStore) -> str:
    count = store.num_boxes
    return f"{store.path}: {count} boxes of {len(store)} images, {count / max(len(store), 1):.0f} per image"


def run_convert(options: argparse.Namespace) -> None:
    if options.data is None:
        require_no_dataset_options(options, "--data")
    if options.target_format == "store":
        require_new_file("the file to write", options.target, ".safetensors")
    require_new_file("the file to write", options.target)
    dataset = given_dataset(options) if options.data else None
    num_images, num_boxes = convert(
        options.source, options.source_format, options.target, options.target_format,
        options.order, options.base, dataset, options.i_trust_this_file,
    )  # fmt: skip
    print(f"{options.target}: {num_boxes} boxes of {num_images} images")


def check(options: argparse.Namespace) -> int:
    if options.json:
        require_new_file("--json", options.json)
    proposals = open_proposals(options.file)
    require_exif(proposals, options.exif)
    faults = find_faults(proposals, given_dataset(options))
    print(fault_table(faults))
    if options.json:
        write_json(options.json, faults)
    return FOUND_SOMETHING if any(faults.values()) else 0


def info(options: argparse.Namespace) -> None:
    print(describe(open_proposals(options.file)))


def union(options: argparse.Namespace) -> None:
    require_new_file("--out", options.out, ".safetensors")
    if not 0 < options.nms <= 1:
        raise InputError(f"--nms: {options.nms} must be above 0, and 1 at most")
    from detector.proposals.union import common_metadata, unite

    sources = [open_proposals(path) for path in options.files]
    generator = {"name": "union", "files": [path.name for path in options.files], "nms": options.nms}
    stream_store(options.out, unite(sources, options.nms), generator | common_metadata(sources))
    print(summary(ProposalStore(options.out)))


def grid(options: argparse.Namespace) -> None:
    require_new_file("--out", options.out, ".safetensors")
    from detector.proposals.generate import write_grid

    write_grid(given_dataset(options), options.out)
    print(summary(ProposalStore(options.out)))


def recall(options: argparse.Namespace) -> None:
    for name in ("json", "plot"):
        if getattr(options, name):
            require_new_file(f"--{name}", getattr(options, name), *((".png",) if name == "plot" else ()))
    from detector.evaluation.recall import recall_table, write_recall_comparison, write_recall_plot

    dataset = given_dataset(options, UPRIGHT_IMAGES)
    results = {str(path): recall_of(open_proposals(path), dataset) for path in options.file}
    if len(options.file) == 1:
        (result,) = results.values()
        print(recall_table(result))
    else:
        result = results
        print("\n\n".join(f"{path}:\n{recall_table(of_file)}" for path, of_file in results.items()))
    if options.json:
        write_json(options.json, result)
    if options.plot and len(options.file) == 1:
        write_recall_plot(options.plot, result)
    elif options.plot:
        write_recall_comparison(options.plot, results)


def recall_of(proposals: OpenedProposals, dataset: DetectionDataset) -> dict:
    from detector.evaluation.recall import score_recall

    require_present(proposals, dataset.image_ids)
    return score_recall(
        (dataset.ground_truth(index) for index in range(len(dataset))),
        (proposals[image_id] for image_id in dataset.image_ids),
        dataset.classes,
    )


def write_json(path: Path, content: dict) -> None:
    write_atomically(path, json.dumps(content, indent=1).encode())


if __name__ == "__main__":
    main()
