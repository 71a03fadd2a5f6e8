"""Score a checkpoint, or saved detections: python evaluate.py checkpoint=RUN/checkpoints/best.pt [KEY=VALUE ...]

configs/evaluate.yaml lists the settings.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import yaml

from detector import builders
from detector.app import run_program
from detector.data.check import require_readable
from detector.data.loader import DetectionDataset, eval_loader, explain_workers
from detector.errors import InputError
from detector.evaluation.report import write_report
from detector.evaluation.results import (
    read_coco_results,
    read_result_files,
    result_classes,
    round_trip_results,
    write_coco_results,
)
from detector.evaluation.tables import summary
from detector.inference.postprocess import postprocess_again
from detector.inference.predict import evaluate
from detector.runtime.distributed import is_main, process_group, rank_info, shared_errors
from detector.runtime.files import write_atomically
from detector.settings import validate, validate_given, validate_metric, validate_processes
from detector.structures import Detections
from detector.training.checkpoint import load_checkpoint
from detector.training.losses import multi_task_loss
from detector.training.run_folder import make_new_folder, make_run_folder, require_new, require_writable

logger = logging.getLogger("evaluate")


AS_IN_TRAINING = (  # default to the values of training, for any data set
    "short_side_px", "max_side_px", "proposals_by_score", "min_proposal_px", "unique_proposals", "val_max_proposals",
    "exif", "max_image_pixels",
)  # fmt: skip
WHICH_IMAGES = ("root", "val_split", "val_json", "val_images")


def main(config: dict) -> None:
    if (config["checkpoint"] is None) == (config["detections"] is None):
        raise InputError("give either checkpoint=FILE or detections=FOLDER (or a .json file)")
    validate_metric(config["metric"])
    validate_processes(config)
    if config["out"]:
        require_new("out", Path(config["out"]))
    if config["checkpoint"] is not None:
        with process_group(config["distributed"]["timeout_s"]):
            score_checkpoint(config)
    elif is_main():
        score_saved(config)


def score_checkpoint(config: dict) -> None:
    """Run the network over the data set, each process on its share of the images, and write the report."""
    here = rank_info()
    with shared_errors():
        checkpoint = load_checkpoint(Path(config["checkpoint"]))
        trained = checkpoint["config"]
        validate_given(config, "data")
        classes, excluded = config["data"].get("classes"), {*(config["data"].get("exclude_classes") or ())}
        if classes and {*classes} - excluded != {*checkpoint["classes"]} - excluded:
            raise InputError(
                f"data.classes={classes}: {config['checkpoint']} finds {', '.join(checkpoint['classes'])}, and is "
                "scored on all of them: leave data.classes out"
            )
        for group in ("data", "proposals"):
            validate_given(trained, group)
        config = with_training_settings(config, trained)
        validate(config)
        reader = builders.build_dataset(config, "val")
        learned = [*checkpoint["classes"], *(trained["data"].get("exclude_classes") or ())]
        builders.require_known_exclusions(config, reader, more=learned)
        reader = reader.with_classes(checkpoint["classes"])
        if not config["out"]:
            require_writable("out", run_of(config))
        checked = builders.check(config, reader, "val")
        if config["data"].get("val_proposals") is None:  # reads those made in training, saves new ones here
            kept = builders.kept_proposals(
                reader, Path(trained["proposals"].get("folder") or ""), config["proposals"]["mode"]
            )
            config["data"]["val_proposals"] = kept if any(kept) else None
        model = builders.build_trained_model(config, checkpoint["model"], len(reader.classes))
        compute = builders.build_compute(config)
        compute.place(model)
        samples = builders.build_transformed_dataset(config, checked, "val")
    batches = eval_loader(samples, config["workers"], here.rank, here.world_size)
    with explain_workers([]):
        detections, losses = evaluate(
            model, batches, builders.build_detector_config(config), compute,
            builders.build_training_config(config).sample_targets, multi_task_loss,
        )  # fmt: skip
    if not is_main():
        return
    folder = Path(config["out"]) if config["out"] else make_new_folder(run_of(config), f"evaluate-{reader.name}")
    write_coco_results(folder / "detections.json", detections, reader.classes, category_ids(reader, reader.classes))
    detections = round_trip_results(folder / "detections", detections, reader.classes, config["metric"]["devkit"])
    source = {"checkpoint": config["checkpoint"], "iteration": checkpoint["iteration"]}
    report(config, folder, reader, detections, source, losses)


def score_saved(config: dict) -> None:
    """Score saved detections and write the report."""
    reader, detections = read_detections(config)
    require_readable(reader)
    folder = Path(config["out"]) if config["out"] else make_run_folder(None)
    report(config, folder, reader, detections, {"detections": config["detections"]})


def report(
    config: dict,
    folder: Path,
    reader: DetectionDataset,
    detections: Sequence[Detections],
    source: dict,
    losses: dict[str, float] | None = None,
) -> None:
    """Score the detections, one item per image, and write report, metrics and settings to the folder."""
    write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())
    truths = [reader.ground_truth(index) for index in range(len(reader))]
    source = source | {"data": reader.name, "images": len(reader)}
    metrics = write_report(
        folder, truths, detections, reader.classes, **config["metric"], losses=losses, source=source, image=reader.image
    )
    print(summary(metrics))
    logger.info("%d images of %s; the report is in %s", len(reader), reader.name, folder / "report.html")


def with_training_settings(config: dict, trained: dict) -> dict:
    """Fill in the null settings from training.

    A checkpoint may be untrusted: it can name what to read, but never where to write.
    """
    root = trained["data"].get("root")
    if config["data"]["root"] is None and not (isinstance(root, str) and root and Path(root).is_dir()):
        lacks = f"was trained on data.root={root}, which is not here ({Path.cwd()})" if root else "names no data set"
        raise InputError(f"{config['checkpoint']}: {lacks}: name one with data=voc data.root=DIR")
    merged = config | trained | {key: value for key, value in config.items() if value is not None}
    merged |= {key: config[key] for key in ("checkpoint", "detections", "out")}
    for group in ("detect", "proposals"):
        merged[group] = trained[group] | {key: value for key, value in config[group].items() if value is not None}
    data = {key: value for key, value in config["data"].items() if value is not None or key not in AS_IN_TRAINING}
    if config["data"]["reader"] is None:  # the data set of training, perhaps another folder or split of it
        data = {key: value for key, value in data.items() if value is not None}
        for key in data.keys() - trained["data"].keys() - {"exclude_classes", "max_images"}:
            raise InputError(f"data.{key}: the data set of training has no such setting; for another: data=voc or coco")
        parts = trained["data"].get("parts") or []
        for key in data.keys() & {*WHICH_IMAGES} - {"root"}:
            if parts and all(key in part for part in parts):
                raise InputError(
                    f"data.{key}: the data set of training is joined from {len(parts)}, each with its own; name all "
                    "again with data.parts=[...], or one with data=voc or coco"
                )
        if data.keys() & {*WHICH_IMAGES}:
            data = {"val_proposals": None} | data  # the proposals of training are for other images
        merged["data"] = trained["data"] | data
    else:
        merged["data"] = {key: trained["data"].get(key) for key in AS_IN_TRAINING} | data
    return merged


def run_of(config: dict) -> Path:
    """The folder of the checkpoint's run, or `runs`."""
    path = Path(config["checkpoint"]).resolve()
    return path.parents[1] if path.parent.name == "checkpoints" else Path("runs")


def read_detections(config: dict) -> tuple[DetectionDataset, list[Detections]]:
    """Read the data set and saved detections, and repeat the post-processing steps that `detect` sets.

    Detections are a folder of result files, where a class that has only a file is scored too, or COCO results.
    """
    if config["data"]["reader"] is None:
        raise InputError("detections=FOLDER needs a data set to score it on: data=voc data.root=DIR")
    for group in ("data", "detect"):
        validate_given(config, group)
    reader, path = builders.build_dataset(config, "val"), Path(config["detections"])
    known_ids = builders.unwrapped(reader).image_ids  # data.max_images removes images, not their detections
    if path.suffix == ".json":
        classes = builders.resolve_classes(config, reader)
        every = config["data"]["classes"] or sorted({*reader.classes, *(config["data"]["exclude_classes"] or ())})
        ids = category_ids(reader, every)  # excluding a class does not renumber the others
        reader = reader.with_classes(classes)
        detections = read_coco_results(path, reader.image_ids, reader.classes, ids, known_ids)
    else:
        reader = with_classes_of_files(config, reader, path)
        detections = read_result_files(path, reader.image_ids, reader.classes, known_ids)
    if any(value is not None for value in config["detect"].values()):
        detections = [postprocess_again(item, **config["detect"]) for item in detections]
    return reader, detections


def with_classes_of_files(config: dict, reader: DetectionDataset, folder: Path) -> DetectionDataset:
    """The data set with the requested classes, or all that have objects or a result file."""
    with_file = result_classes(folder)
    if not {*reader.classes} & {*with_file}:
        raise InputError(
            f"detections: {folder} has files of {', '.join(with_file)}, "
            f"but the data set has {', '.join(reader.classes)}"
        )
    reader = reader.with_classes(builders.resolve_classes(config, reader, more=with_file))
    without = sorted({*reader.classes} - {*with_file})
    if without:
        logger.warning("no result file, so no detection, of %s", ", ".join(without))
    return reader


def category_ids(reader: DetectionDataset, classes: Sequence[str]) -> dict[str, int]:
    """Category ids for COCO results: those of a COCO data set; other classes are numbered after these, from 1."""
    own = getattr(builders.unwrapped(reader), "category_ids", {})
    others = [name for name in classes if name not in own]
    return own | {name: number for number, name in enumerate(others, start=max(own.values(), default=0) + 1)}


if __name__ == "__main__":
    from evaluate import main  # by the name under which a process that Hydra's launchers start can import it

    run_program(main, "evaluate")
