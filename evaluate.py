"""Score a checkpoint, or detections from files: python evaluate.py checkpoint=RUN/checkpoints/best.pt [KEY=VALUE ...]

configs/evaluate.yaml lists the settings.
"""

import logging
from pathlib import Path

from detector import compose
from detector.checkpoint import load_checkpoint
from detector.cli import run_program
from detector.config import validate, validate_metric
from detector.data.check import Checked, require_readable
from detector.data.generate import store_path
from detector.data.loader import Reader, eval_loader
from detector.engine import evaluate
from detector.errors import InputError
from detector.evaluation.report import write_report
from detector.evaluation.results import ap_table, read_result_files, result_classes, through_files
from detector.run_folder import make_run_folder, require_writable
from detector.structures import Detections

logger = logging.getLogger("evaluate")


AS_IN_TRAINING = ("short_side_px", "max_side_px", "val_max_proposals")  # unless given, whatever the data set


def main(config: dict) -> None:
    if (config["checkpoint"] is None) == (config["detections"] is None):
        raise InputError("give either checkpoint=FILE or detections=FOLDER")
    validate_metric(config["metric"])
    if config["out"]:
        require_writable("out", Path(config["out"]))
    if config["checkpoint"] is not None:
        checkpoint = load_checkpoint(Path(config["checkpoint"]))
        trained = checkpoint["config"]
        config = with_training_settings(config, trained)
        validate(config)
        reader = compose.make_reader(config, "val").with_classes(checkpoint["classes"])
        folder = output_folder(config, trained, reader)
        checked = compose.check(config, reader, "val")
        if config["data"].get("val_proposals") is None:  # those made in training are read there, and new ones kept here
            kept = store_path(Path(trained["proposals"].get("folder") or ""), reader, config["proposals"]["mode"])
            config["data"]["val_proposals"] = str(kept) if kept.is_file() else None
        detections, losses = detect(config, checkpoint, checked)
        detections = through_files(folder / "detections", detections, reader.classes, config["metric"]["devkit"])
        source = {"checkpoint": config["checkpoint"], "iteration": checkpoint["iteration"]}
    else:
        reader, detections = read_detections(config)
        require_readable(reader)
        folder, losses = Path(config["out"]) if config["out"] else make_run_folder(None), None
        source = {"detections": config["detections"]}
    truths = [reader.ground_truth(index) for index in range(len(reader))]
    source |= {"data": reader.name, "images": len(reader)}
    metrics = write_report(folder, truths, detections, reader.classes, **config["metric"], losses=losses, source=source)
    print(ap_table(metrics["voc"]))
    logger.info("%d images of %s; numbers and curves are in %s", len(reader), reader.name, folder)


def with_training_settings(config: dict, trained: dict) -> dict:
    """The settings that were left open, as they were in training.

    A checkpoint may be a stranger's: it can say what to read, but never a place to write to.
    """
    root = trained["data"].get("root")
    if config["data"]["root"] is None and not (isinstance(root, str) and root and Path(root).is_dir()):
        raise InputError(
            f"{config['checkpoint']}: was trained on data.root={root}, which is not here "
            f"({Path.cwd()}): name a data set with data=voc data.root=DIR"
        )
    merged = config | trained | {key: value for key, value in config.items() if value is not None}
    for group in ("detect", "proposals"):
        merged[group] = trained[group] | {key: value for key, value in config[group].items() if value is not None}
    data = {key: value for key, value in config["data"].items() if value is not None or key not in AS_IN_TRAINING}
    if config["data"]["reader"] is None:  # the data set of training, perhaps another folder or split of it
        data = {key: value for key, value in data.items() if value is not None}
        if data.keys() & {"root", "val_split"}:
            data = {"val_proposals": None} | data  # those of training are of other images
        merged["data"] = trained["data"] | data
    else:
        merged["data"] = {key: trained["data"][key] for key in AS_IN_TRAINING} | data
    return merged


def output_folder(config: dict, trained: dict, reader: Reader) -> Path:
    """`out`, or the run's folder for the data of training, or a folder in that for other data."""
    if config["out"]:
        return Path(config["out"])
    path = Path(config["checkpoint"]).resolve()
    if path.parent.name != "checkpoints":
        return make_run_folder(None)
    same = all(config["data"][key] == trained["data"][key] for key in ("reader", "root", "val_split"))
    return path.parents[1] if same else path.parents[1] / f"evaluate-{reader.name}"


def detect(config: dict, checkpoint: dict, checked: Checked) -> tuple[list[Detections], dict[str, float]]:
    """Run the network over the data set: its detections and the losses."""
    model = compose.make_trained_model(config, checkpoint["model"], len(checked.reader.classes))
    compute = compose.make_compute(config)
    compute.place(model)
    batches = eval_loader(compose.make_samples(config, checked, "val"), config["workers"])
    return evaluate(model, batches, compose.make_recipe(config), compute)


def read_detections(config: dict) -> tuple[Reader, list[Detections]]:
    """The data set and the detections of result files; a class that has only a file is scored too."""
    if config["data"]["reader"] is None:
        raise InputError("detections=FOLDER needs a data set to score it on: data=voc data.root=DIR")
    reader, folder = compose.make_reader(config, "val"), Path(config["detections"])
    with_file = result_classes(folder)
    if not {*reader.classes} & {*with_file}:
        raise InputError(
            f"detections: {folder} has files of {', '.join(with_file)}, "
            f"but the data set has {', '.join(reader.classes)}"
        )
    reader = reader.with_classes(config["data"]["classes"] or sorted({*reader.classes, *with_file}))
    without = sorted({*reader.classes} - {*with_file})
    if without:
        logger.warning("no result file, so no detection, of %s", ", ".join(without))
    return reader, read_result_files(folder, reader.image_ids, reader.classes)


if __name__ == "__main__":
    run_program(main, "evaluate")
