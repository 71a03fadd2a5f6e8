"""A dataset at a glance: contact sheets of its objects, and statistics, on one page.

Writes data.html, a self-contained page, with the same pictures beside it: statistics.png and .svg, and the contact
sheets sheet_01.png, sheet_02.png, ... in the order of the page. Every image is validated as before training.
"""

import argparse
from pathlib import Path

from detector.data.check import check_data
from detector.data.command_line import add_dataset_options, add_image_options, given_dataset
from detector.errors import InputError
from detector.runtime.files import write_atomically
from detector.visualization.dataset import (
    choose_objects,
    collect_objects,
    dataset_page,
    draw_contact_sheet,
    draw_statistics,
)
from detector.visualization.style import save_figure, save_picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="folder of a dataset of any layout")
    add_dataset_options(parser, root=False)
    add_image_options(parser)


def run(arguments: argparse.Namespace) -> None:
    checked = check_data(given_dataset(arguments, root=arguments.dataset))
    dataset = checked.dataset
    objects = collect_objects(dataset, checked.image_hws)
    if not len(objects.labels):
        raise InputError(f"{arguments.dataset}: no object in a usable image. {checked.summary()}")
    statistics, _ = draw_statistics(objects, dataset.classes, len(dataset))
    sheets = {
        title: draw_contact_sheet(dataset, objects, indices)
        for title, indices in choose_objects(objects, dataset.classes).items()
    }
    save_figure(arguments.out, "statistics", statistics)
    for number, picture in enumerate(sheets.values(), start=1):
        save_picture(arguments.out / f"sheet_{number:02d}.png", picture)
    page = dataset_page(f"The dataset {dataset.name}", checked.summary(), statistics, sheets)
    write_atomically(arguments.out / "data.html", page.encode())
