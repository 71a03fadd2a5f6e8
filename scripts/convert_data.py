"""Convert a dataset of any layout to VOC, COCO or YOLO layout in a new folder.

    python scripts/convert_data.py --data ROOT --to voc --out NEW
    python scripts/convert_data.py --data ROOT --splits trainval test --to yolo --out NEW
    python scripts/convert_data.py --data ROOT --annotations train.json val.json --images train val --to voc --out NEW

ROOT is read as by the other scripts: VOC layout with --splits, COCO with --annotations, else as with `data=folder`,
with its own splits or new ones. It is not changed; images are copied byte by byte. The program writes:

    voc   JPEGImages/ID.jpg, Annotations/ID.xml, ImageSets/Main/SPLIT.txt
    coco  images/ID.jpg, annotations/SPLIT.json
    yolo  images/SPLIT/ID.jpg, labels/SPLIT/ID.txt, data.yaml

Every image and annotation is validated first. Images and objects that cannot be used are omitted and listed. Exit
status: 0 everything is converted, 1 something is omitted, 2 invalid input, nothing is written.
"""

import argparse
import json
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from detector.box_arrays import clip_array
from detector.data.check import Checked, check_data
from detector.data.command_line import WITHOUT_ANNOTATIONS, add_datasets_options, given_datasets, image_options
from detector.data.dataset import DetectionDataset
from detector.data.formats.folder.reader import split_names
from detector.data.formats.voc import annotation_xml
from detector.errors import InputError, first_few
from detector.runtime.exits import FAILED, exit_status
from detector.runtime.files import require_inside, require_new, write_atomically
from detector.structures import GroundTruth


def main(command_line: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_datasets_options(parser, "those that there are")
    parser.add_argument("--to", required=True, choices=list(WRITERS), help="layout to write")
    parser.add_argument("--out", required=True, type=Path, help="folder to write to, new or empty")
    arguments = parser.parse_args(command_line)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    return exit_status(lambda: run(arguments), f"{arguments.out} is incomplete: delete it")


def run(arguments: argparse.Namespace) -> int:
    """Convert, and print what is written; returns the exit status."""
    require_new("--out", arguments.out)
    if arguments.out.resolve().is_relative_to(arguments.data.resolve()):
        raise InputError(
            f"--out: {arguments.out} is in {arguments.data}, whose images are searched: name another folder"
        )
    splits = {name: check_data(dataset) for name, dataset in read_splits(arguments).items()}
    require_disjoint(splits)
    for checked in splits.values():
        require_inside(arguments.out, checked.dataset.image_ids)
    classes = sorted({name for checked in splits.values() for name in checked.dataset.classes})
    omitted = []
    for name, checked in splits.items():
        omitted += [f"{name}: {kind}: {text}" for kind, text in checked.bad]
        omitted += [f"{name}: {kind}: {text}" for kind, text in checked.repairs if kind == "skipped"]
        omitted += WRITERS[arguments.to](arguments.out, name, checked, classes)
        print(f"{name}: {len(checked.dataset)} images -> {arguments.out}")
    for line in omitted:
        print(line, file=sys.stderr)
    return FAILED if omitted else 0


def read_splits(arguments: argparse.Namespace) -> dict[str, DetectionDataset]:
    """The dataset of each split, by its name."""
    if arguments.annotations:
        names = [Path(file).stem for file in arguments.annotations]
        if len({*names}) < len(names):
            raise InputError(
                f"--annotations: {', '.join(arguments.annotations)} give splits of the same name: rename the files, or "
                "omit --annotations, so that the splits are found by their folders"
            )
        return dict(zip(names, map(named_by_file, given_datasets(arguments, ())), strict=True))
    if arguments.images:
        raise InputError(WITHOUT_ANNOTATIONS)
    names = arguments.splits or split_names(arguments.data, arguments.format, image_options(arguments))
    return dict(zip(names, given_datasets(arguments, names), strict=True))


def named_by_file(dataset: DetectionDataset) -> DetectionDataset:
    """The dataset with the stems of its files as ids, since COCO's ids are numbers, often the same in several files."""
    records = [
        replace(record, image_id=record.image.stem) if isinstance(record.image, Path) else record
        for record in dataset.records
    ]
    if twice := [id for id, count in Counter(record.image_id for record in records).items() if count > 1]:
        raise InputError(f"{dataset.records[0].annotation}: several images have the same name: {first_few(twice)}")
    return replace(dataset, records=records)


def require_disjoint(splits: dict[str, Checked]) -> None:
    """Raise InputError if an id is in two splits: it would be one file for two images, or train and test share it."""
    first: dict[str, str] = {}
    for name, checked in splits.items():
        for image_id in checked.dataset.image_ids:
            if first.setdefault(image_id, name) != name:
                raise InputError(
                    f"image {image_id} is in {first[image_id]} and in {name}, of {', '.join(splits)}: give splits that "
                    "share none with --splits"
                )


def write_voc(out: Path, split: str, checked: Checked, classes: Sequence[str]) -> list[str]:
    """Write a split; returns a line for each kind of object that the layout cannot represent."""
    dataset, crowds = checked.dataset, 0
    for index, (image_id, hw) in enumerate(zip(dataset.image_ids, checked.image_hws, strict=True)):
        image, truth, objects = dataset.image_path(index), inside(dataset.ground_truth(index), hw), []
        for box, label, difficult in zip(truth.boxes.tolist(), truth.labels, truth.difficult, strict=True):
            plain = [int(value) if value == int(value) else round(value, 2) for value in box]
            objects.append({"name": dataset.classes[label - 1], "box": plain, "difficult": bool(difficult)})
        crowds += int(dataset.ground_truth(index).crowd.sum())
        copied = copy_image(image, out / "JPEGImages" / f"{image_id}{image.suffix}")
        write(out / "Annotations" / f"{image_id}.xml", annotation_xml(copied.name, hw, objects))
    write(out / "ImageSets/Main" / f"{split}.txt", "".join(f"{image_id}\n" for image_id in dataset.image_ids))
    return [f"{split}: {crowds} crowds are left out, which VOC layout does not have"] if crowds else []


def write_coco(out: Path, split: str, checked: Checked, classes: Sequence[str]) -> list[str]:
    """As `write_voc`."""
    dataset, difficult = checked.dataset, 0
    content: dict = {"images": [], "annotations": []}
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    for index, (image_id, (height, width)) in enumerate(zip(dataset.image_ids, checked.image_hws, strict=True)):
        image, truth = dataset.image_path(index), dataset.ground_truth(index)
        kept = inside(truth, (height, width), crowd=True)
        copied = copy_image(image, out / "images" / f"{image_id}{image.suffix}")
        file_name = copied.relative_to(out / "images").as_posix()
        content["images"].append({"id": index + 1, "file_name": file_name, "height": height, "width": width})
        for (x1, y1, x2, y2), label, crowd, area in zip(
            kept.boxes.astype(float).round(2).tolist(), kept.labels, kept.crowd, kept.areas, strict=True
        ):
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": index + 1, "iscrowd": int(crowd),
                 "category_id": classes.index(dataset.classes[label - 1]) + 1,
                 "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)], "area": float(area)}
            )  # fmt: skip
        difficult += int(truth.difficult.sum())
    write(out / "annotations" / f"{split}.json", json.dumps(content))
    return (
        [f"{split}: {difficult} objects are no longer marked difficult, which COCO does not have"] if difficult else []
    )


def write_yolo(out: Path, split: str, checked: Checked, classes: Sequence[str]) -> list[str]:
    """As `write_voc`."""
    dataset, crowds, difficult = checked.dataset, 0, 0
    for index, (image_id, (height, width)) in enumerate(zip(dataset.image_ids, checked.image_hws, strict=True)):
        image, truth = dataset.image_path(index), dataset.ground_truth(index)
        kept, lines = inside(truth, (height, width)), []
        for (x1, y1, x2, y2), label in zip(kept.boxes.astype(float).tolist(), kept.labels, strict=True):
            numbers = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
            lines.append(
                f"{classes.index(dataset.classes[label - 1])} {' '.join(f'{number:.7f}' for number in numbers)}\n"
            )
        copy_image(image, out / "images" / split / f"{image_id}{image.suffix}")
        write(out / "labels" / split / f"{image_id}.txt", "".join(lines))
        crowds, difficult = crowds + int(truth.crowd.sum()), difficult + int(truth.difficult.sum())
    there = {path.name: f"images/{path.name}" for path in sorted((out / "images").iterdir())}
    write(out / "data.yaml", yaml.safe_dump(there | {"nc": len(classes), "names": list(classes)}, sort_keys=False))
    lost = [(crowds, "crowds are left out"), (difficult, "objects are no longer marked difficult")]
    return [f"{split}: {count} {what}, which YOLO layout does not have" for count, what in lost if count]


WRITERS = {"voc": write_voc, "coco": write_coco, "yolo": write_yolo}


def inside(truth: GroundTruth, hw: tuple[int, int], crowd: bool = False) -> GroundTruth:
    """The objects with an area inside their image, cut at its border; with `crowd` also the crowds."""
    boxes = clip_array(truth.boxes, hw)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (crowd | ~truth.crowd)
    return GroundTruth(
        truth.image_id, boxes[keep], truth.labels[keep], truth.difficult[keep], truth.crowd[keep], truth.areas[keep]
    )


def copy_image(source: Path, target: Path) -> Path:
    """Copy a file to a path that must be free. Raises InputError if it is not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise InputError(f"{source}: {target} is the copy of another image: rename one; what is written is incomplete")
    return Path(shutil.copyfile(source, target))


def write(path: Path, text: str) -> None:
    write_atomically(path, text.encode())


if __name__ == "__main__":
    sys.exit(main())
