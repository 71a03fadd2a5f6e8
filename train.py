"""Train a Fast R-CNN: python train.py [GROUP=CHOICE ...] [SETTING=VALUE ...]

A group, such as model, is a folder of configs/, and each file in it a choice; docs/settings.md lists the settings.
"""

from detector.app.start import run_program
from detector.settings import TrainSettings


def main(settings: TrainSettings) -> float | None:
    """Start or resume a run, and train to the end.

    Returns the main metric of the last evaluation, which a sweeper of Hydra's may optimize; None for a run that was
    complete already.
    """
    # Imported here: invalid settings end the program before torch is imported, which takes seconds.
    from detector.builders.training import build_training, with_learning_rate
    from detector.runtime.distributed import process_group, require_divisible
    from detector.training.resume import open_run
    from detector.training.trainer import Trainer

    settings = with_learning_rate(settings)  # in place of null, so that the run records it
    require_divisible("train.images_per_batch", settings.train.images_per_batch)
    with process_group(settings.distributed.timeout_s), open_run(settings) as run:
        if run.is_complete(settings):
            return None
        components = build_training(settings, run.checkpoint)  # before there is a folder: invalid data leaves none
        run.prepare_folder(settings)
        return Trainer(settings, run, components).fit()


def command() -> None:
    """Run `main` with the settings of configs/train.yaml and the command line: fast-rcnn-train when installed."""
    run_program(main, "train", TrainSettings)


if __name__ == "__main__":
    # A launcher of Hydra's imports `main` by its module's name in the processes it starts, which cannot be __main__.
    from train import command

    command()
