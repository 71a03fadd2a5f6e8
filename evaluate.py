"""Score a checkpoint, or saved detections: python evaluate.py checkpoint=RUN/checkpoints/best.pt [SETTING=VALUE ...]

configs/evaluate.yaml has examples; docs/settings.md lists the settings.
"""

from pathlib import Path

from detector.app.start import run_program
from detector.errors import InputError
from detector.settings import EvaluateSettings


def main(settings: EvaluateSettings) -> float | None:
    """Score, and write the report. Returns the main metric."""
    if (settings.checkpoint is None) == (settings.detections is None):
        raise InputError("give either checkpoint=FILE or detections=FOLDER (or a .json file)")
    # Imported here: invalid settings end the program before torch is imported, which takes seconds.
    from detector.evaluator import score_checkpoint, score_saved
    from detector.runtime.distributed import process_group
    from detector.runtime.files import require_new
    from detector.runtime.ranks import is_main

    if settings.out is not None:
        require_new("out", Path(settings.out))
    if settings.checkpoint is None:
        return score_saved(settings) if is_main() else None
    with process_group(settings.distributed.timeout_s):
        return score_checkpoint(settings)


def command() -> None:
    """Run `main` with the settings of configs/evaluate.yaml and the command line: fast-rcnn-evaluate when installed."""
    run_program(main, "evaluate", EvaluateSettings)


if __name__ == "__main__":
    from evaluate import command  # see train.py

    command()
