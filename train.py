"""Train a Fast R-CNN: python train.py [GROUP=CHOICE] [SETTING=VALUE ...]; docs/settings.md lists the settings."""

from detector.app import run_program
from detector.settings import TrainSettings


def main(settings: TrainSettings) -> float | None:
    """Start or resume a run, and train to the end. Returns the main metric of the last evaluation."""
    # Imported here: invalid settings end the program before torch is imported, which takes seconds.
    from detector.builders import build_training, with_learning_rate
    from detector.runtime.distributed import process_group, require_divisible
    from detector.training.resume import open_run
    from detector.training.trainer import Trainer

    settings = with_learning_rate(settings)
    require_divisible("train.images_per_batch", settings.train.images_per_batch)
    with process_group(settings.distributed.timeout_s), open_run(settings) as run:
        if run.is_complete(settings):
            return None
        components = build_training(settings, run.checkpoint)
        run.prepare_folder(settings)
        return Trainer(settings, run, components).fit()


if __name__ == "__main__":
    from train import main  # importable by this name in processes that Hydra's launchers start

    run_program(main, "train", TrainSettings)
