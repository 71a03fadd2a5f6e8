"""Validate a dataset as train.py does before training, and print what is wrong with it. Nothing is changed.

    python scripts/check_data.py --data ROOT                 any folder of annotated images (data=folder)
    python scripts/check_data.py --data ROOT --splits trainval test [--proposals trainval.safetensors test.safetensors]
    python scripts/check_data.py --data ROOT --annotations train.json val.json [--images train val]

Exit status: 0 if the data is valid, 1 if there is something to fix, 2 if it cannot be read (no such folder, ...).
"""

import argparse
import logging
import sys
from itertools import chain

from detector.data.check import Checked, check_data, check_proposals, proposal_recall, warn_leakage
from detector.data.classes import require_unlike
from detector.data.command_line import add_datasets_options, given_datasets
from detector.errors import InputError
from detector.proposals.store import open_proposals, require_exif, require_images
from detector.runtime.exits import exit_status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_datasets_options(parser)
    parser.add_argument("--proposals", nargs="+", help="a file of proposals for each of these")
    parser.add_argument("--classes", nargs="+", help="the expected class names (default: any)")
    parser.add_argument("--drop-empty-boxes", action="store_true", help="COCO: as data.drop_empty_boxes in training")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", stream=sys.stdout, level=logging.INFO)  # tells what a folder has
    sys.exit(exit_status(lambda: 0 if check(arguments) else 1, "nothing was written"))


def check(arguments: argparse.Namespace) -> bool:
    """Print the findings of each split; returns whether all are valid."""
    names = arguments.splits or arguments.annotations or [None]
    if arguments.drop_empty_boxes and not arguments.annotations:
        raise InputError("--drop-empty-boxes belongs to --annotations; in VOC layout such objects are skipped anyway")
    if arguments.proposals and len(arguments.proposals) != len(names):
        raise InputError(f"--proposals: {len(arguments.proposals)} for {len(names)}, {', '.join(map(str, names))}")
    valid, sets = True, []
    for number, dataset in enumerate(given_datasets(arguments, names, arguments.drop_empty_boxes)):
        if arguments.classes:
            dataset = dataset.with_classes(arguments.classes)
        checked = check_data(dataset)
        sets.append(checked)
        print("\n  ".join([checked.summary(), f"classes: {', '.join(dataset.classes)}", *checked.details()]))
        valid &= not (checked.bad or checked.details())
        if arguments.proposals:
            valid &= check_file(checked, arguments.proposals[number])
    try:
        if not arguments.classes:
            require_unlike({*chain(*(checked.dataset.classes for checked in sets))}, str(arguments.data))
    except InputError as error:
        print(error)
        valid = False
    for number, val in enumerate(sets):
        for train in sets[:number]:
            both = warn_leakage(train, val)
            valid &= not both
    return valid


def check_file(checked: Checked, path: str) -> bool:
    """Print the findings on the proposals of a split; returns whether they can be used for it."""
    dataset, proposals = checked.dataset, open_proposals(path)
    try:
        require_images(proposals, dataset.image_ids, checked.image_hws)
        require_exif(proposals, dataset.image_options.exif)
    except InputError as error:
        print(f"  {error}")
        return False
    recall = proposal_recall(dataset, proposals, range(len(dataset)))
    print(
        f"  {path}: {check_proposals(proposals, dataset.image_ids, checked.image_hws)}; recall {recall:.3f} at IoU 0.5"
    )
    return True


if __name__ == "__main__":
    main()
