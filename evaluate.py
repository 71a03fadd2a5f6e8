"""Score a checkpoint, or detections from files: python evaluate.py checkpoint=RUN/checkpoints/best.pt [KEY=VALUE ...]

configs/evaluate.yaml lists the settings.
"""

import logging
from pathlib import Path

from detector import compose
from detector.checkpoint import load_checkpoint
from detector.cli import run_program
from detector.config import build, validate, validate_metric
from detector.data.loader import Reader, eval_loader
from detector.engine import evaluate
from detector.errors import InputError
from detector.evaluation.report import write_report
from detector.evaluation.results import ap_table, read_result_files, result_classes, through_files
from detector.run_folder import run_folder
from detector.structures import Detections

logger = logging.getLogger("evaluate")


def main(config: dict) -> None:
    if (config["checkpoint"] is None) == (config["detections"] is None):
        raise InputError("give either checkpoint=FILE or detections=FOLDER")
    validate_metric(config["metric"])
    folder = Path(config["out"]) if config["out"] else None
    if config["checkpoint"] is not None:
        path = Path(config["checkpoint"]).resolve()
        folder = folder or (path.parents[1] if path.parent.name == "checkpoints" else run_folder(None))
        reader, detections, losses = detect(config, load_checkpoint(path), folder)
    else:
        folder = folder or run_folder(None)
        reader, detections, losses = *read_detections(config), None
    truths = [reader.ground_truth(index) for index in range(len(reader))]
    metrics = write_report(folder, truths, detections, reader.classes, **config["metric"], losses=losses)
    print(ap_table(metrics["voc"]))
    logger.info("%d images of %s; numbers and curves are in %s", len(reader), reader.name, folder)


def detect(config: dict, checkpoint: dict, folder: Path) -> tuple[Reader, list[Detections], dict[str, float]]:
    """Run the network over the validation split: the data set, its detections and the losses."""
    config = with_training_settings(config, checkpoint["config"])
    validate(config)
    classes = tuple(checkpoint["classes"])
    reader = build(config["data"]["val"]).with_classes(classes)
    model = compose.make_model(config, len(classes))
    model.load_state_dict(checkpoint["model"])
    compute = compose.make_compute(config)
    compute.place(model)
    batches = eval_loader(compose.make_samples(config, reader, "val"), config["workers"])
    detections, losses = evaluate(model, batches, compose.make_recipe(config), compute)
    return reader, through_files(folder / "detections", detections, classes, config["metric"]["devkit"]), losses


def with_training_settings(config: dict, trained: dict) -> dict:
    """The settings that were left open, as they were in training; all of `data` unless a data set was chosen."""
    merged = trained | {key: value for key, value in config.items() if value is not None}
    for group in ("data", "detect", "proposals"):
        merged[group] = trained[group] | {key: value for key, value in config[group].items() if value is not None}
    return merged


def read_detections(config: dict) -> tuple[Reader, list[Detections]]:
    """The data set and the detections of result files; a class that has only a file is scored too."""
    if "val" not in config["data"]:
        raise InputError("detections=FOLDER needs a data set to score it on: data=voc data.root=DIR")
    reader, folder = build(config["data"]["val"]), Path(config["detections"])
    classes = config["data"]["classes"] or sorted({*reader.classes, *result_classes(folder)})
    reader = reader.with_classes(classes)
    return reader, read_result_files(folder, reader.image_ids, reader.classes)


if __name__ == "__main__":
    run_program(main, "evaluate")
