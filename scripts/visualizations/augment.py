"""Draw one image under augmentation, and the RoIs sampled from it, as in training.

Writes augmentation and sampled_rois as .png and .svg. The settings are those of train.py.
"""

import argparse

from detector.app.compose import compose_settings
from detector.builders import datasets
from detector.builders.training import build_training_config
from detector.errors import InputError
from detector.runtime.ranks import cores
from detector.settings import TrainSettings
from detector.visualization.sampling import draw_augmentation, draw_sampled_rois
from detector.visualization.style import save_figure
from scripts.visualizations._sources import Searched


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--settings", nargs="*", default=[], metavar="SETTING=VALUE",
        help="as for train.py, such as data=voc data.root=/data/mine augment=scale",
    )  # fmt: skip
    parser.add_argument("--image-id", help="image of the training split (default: the first)")
    parser.add_argument("--count", type=int, default=5, help="augmented images (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    if arguments.count < 1:
        raise InputError(f"--count: {arguments.count} must be 1 or more")
    settings = compose_settings("train", TrainSettings, arguments.settings)
    dataset = datasets.build_dataset(settings.data, "train")
    image_id = dataset.image_ids[0] if arguments.image_id is None else arguments.image_id
    if image_id not in dataset.image_ids:
        raise InputError(f"--image-id: {image_id} is not in {dataset.name}, which has {dataset.image_ids[0]}, ...")
    dataset = dataset.subset([dataset.image_ids.index(image_id)])
    proposals = Searched(dataset, settings.proposals.mode, cores())
    samples = datasets.transformed_dataset_with(settings, dataset, proposals, "train")
    items = [samples[0, position] for position in range(arguments.count)]
    plain = samples.resize(samples.original(0))
    figure = draw_augmentation(plain, [sample for sample, _ in items], dataset.classes)
    save_figure(arguments.out, "augmentation", figure)
    training = build_training_config(settings, dataset.classes)
    figure, _ = draw_sampled_rois(training.collate_with_rois(items[:1]), training.coder, dataset.classes)
    save_figure(arguments.out, "sampled_rois", figure)
