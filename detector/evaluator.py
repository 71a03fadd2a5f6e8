"""Score a checkpoint or saved detections on a dataset, and write the report: what evaluate.py does."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from detector.builders import datasets
from detector.builders.network import build_compute, build_detector_config, build_trained_model
from detector.builders.training import build_training_config, with_delta_std
from detector.data.check import require_readable
from detector.data.dataset import DetectionDataset
from detector.data.loader import eval_loader, explain_workers
from detector.errors import InputError
from detector.evaluation.report import score_detections, write_report
from detector.evaluation.results import (
    read_coco_results,
    read_result_files,
    result_classes,
    round_trip_results,
    write_coco_results,
    write_result_files,
)
from detector.evaluation.tables import summary
from detector.inference.postprocess import postprocess_again
from detector.inference.predict import evaluate
from detector.models.heads import FcHead
from detector.runtime.distributed import shared_errors
from detector.runtime.files import require_writable, write_atomically
from detector.runtime.ranks import is_main, rank_info
from detector.schema import AS_TRAINED, LAYOUT, Settings, parse
from detector.settings import CommonSettings, Data, EvaluateSettings
from detector.structures import Detections
from detector.training.checkpoint import load_checkpoint, trained_settings
from detector.training.run_folder import make_new_folder, make_run_folder

logger = logging.getLogger(__name__)

# Settings of an evaluation that default to the values of training for any dataset, and those that select images.
AS_IN_TRAINING = {name for name, field in Data.model_fields.items() if AS_TRAINED in field.metadata}
OF_LAYOUTS = {name for name, field in Data.model_fields.items() if LAYOUT in field.metadata}
NEW_PROPOSALS = EvaluateSettings().proposals.folder
WHICH_IMAGES = {"root", "val_split", "val_json", "val_images"}


def score_checkpoint(given: EvaluateSettings) -> float | None:
    """Run the network over the dataset, each process on its share of the images, and write the report."""
    assert given.checkpoint is not None
    with shared_errors():
        checkpoint = load_checkpoint(Path(given.checkpoint))
        trained = trained_settings(checkpoint)
        _require_trained_classes(given, checkpoint["classes"])
        settings = with_training_settings(given, trained)
        unlabelled = datasets.build_unlabelled(settings.data, checkpoint["classes"], given.submission)
        dataset = unlabelled or _annotated(settings.data, trained.data, checkpoint["classes"])
        if given.out is None:
            require_writable("out", _run_of(given.checkpoint))
        checked = datasets.check(settings.data, dataset, "val")
        if settings.data.val_proposals is None:  # reads those made in training, saves new ones here
            folder = Path(trained.proposals.folder or "")
            kept = datasets.kept_proposals(settings.data, dataset, folder, settings.proposals.mode)
            data = settings.data.plain() | {"val_proposals": kept if any(kept) else None}
            settings = settings.with_values(data=data)
        model = build_trained_model(settings.model, checkpoint["model"], len(dataset.classes))
        if given.svd_ranks is not None:
            if not isinstance(model.head, FcHead):
                raise InputError(
                    f"svd_ranks: model.head={settings.model.head} has no fc6 and fc7, which model.head=fc has"
                )
            model.head.compress(given.svd_ranks)
        compute = build_compute(settings)
        samples = datasets.build_transformed_dataset(settings, checked, "val")
        training = with_delta_std(build_training_config(settings, dataset.classes), model)
    batches = eval_loader(samples, settings.workers, rank_info().rank, rank_info().world_size)
    begin = time.perf_counter()
    with explain_workers([]):
        detections, losses = evaluate(
            model, batches, build_detector_config(settings), compute, training.sample_targets, training.loss_of
        )
    if not is_main():
        return None
    seconds = time.perf_counter() - begin
    logger.info("%d images in %.1f s: %.4f s per image", len(dataset), seconds, seconds / len(dataset))
    if given.out:
        folder = Path(given.out)
    else:
        folder = make_new_folder(_run_of(given.checkpoint), f"evaluate-{dataset.name}")
    write_coco_results(folder / "detections.json", detections, dataset.classes, category_ids(dataset, dataset.classes))
    _write_settings(folder, given.plain() | settings.plain())
    if unlabelled is not None:
        _write_submission(folder, Path(settings.data.root or "").resolve().name, dataset, detections)
        return None
    detections = round_trip_results(folder / "detections", detections, dataset.classes, settings.metric.devkit)
    source = {"checkpoint": given.checkpoint, "iteration": checkpoint["iteration"]}
    return _report(folder, dataset, detections, given, {"loss": losses, "source": source})


def _annotated(data: Data, trained: Data, classes: Sequence[str]) -> DetectionDataset:
    """The dataset with its ground truth, of the classes of the network."""
    dataset = datasets.build_dataset(data, "val")
    datasets.require_known_exclusions(data, dataset, more=[*classes, *(trained.exclude_classes or ())])
    return dataset.with_classes(classes)


def _write_submission(folder: Path, devkit_name: str, dataset: DetectionDataset, detections: list[Detections]) -> None:
    """Write the files of VOC's evaluation server: results/VOC2012/Main/comp4_det_test_CLASS.txt."""
    write_result_files(folder / "results" / devkit_name / "Main", detections, dataset.classes, devkit=False)
    print(
        f"no mAP: {dataset.name} is scored without annotations by an evaluation server. Its files "
        f"comp4_det_test_CLASS.txt are in {folder}/results; to pack them: tar -C {folder} -czf results.tar.gz results"
    )


def score_saved(given: EvaluateSettings) -> float | None:
    """Score saved detections and write the report."""
    if given.out is None:
        require_writable("out", Path("runs"))
    dataset, detections = read_detections(given)
    require_readable(dataset)
    folder = Path(given.out) if given.out else make_run_folder(None)
    _write_settings(folder, given.plain())
    return _report(folder, dataset, detections, given, {"source": {"detections": given.detections}})


def _write_settings(folder: Path, settings: dict) -> None:
    write_atomically(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False).encode())


def _report(
    folder: Path,
    dataset: DetectionDataset,
    detections: Sequence[Detections],
    given: EvaluateSettings,
    origin: dict[str, dict],
) -> float | None:
    """Write the report and print its summary. Returns the main metric."""
    metrics = write_report(folder, dataset, score_detections(dataset, detections, given.metric), origin)
    print(summary(metrics))
    logger.info("%d images of %s; the report is in %s", len(dataset), dataset.name, folder / "report.html")
    return metrics["main"]["value"]


def with_training_settings(given: EvaluateSettings, trained: CommonSettings) -> CommonSettings:
    """The settings of training, with those given for this evaluation.

    A checkpoint may be untrusted: it can name what to read, but never where to write.
    """
    root, data = trained.data.root, _given(given.data)
    if "root" not in data and not (root and Path(root).is_dir()):
        lacks = f"was trained on data.root={root}, which is not here ({Path.cwd()})" if root else "names no dataset"
        raise InputError(f"{given.checkpoint}: {lacks}: name one with data=voc data.root=DIR")
    if "reader" not in data:  # the dataset of training, perhaps another folder or split of it
        _require_selectable(data, trained.data)
        for part in data.get("parts") or trained.data.parts or ():
            place = Path(data.get("root") or root or "", str(part.get("root") or ""))
            if not place.is_dir():
                raise InputError(f"{given.checkpoint}: was trained on {place} too, which is not here ({Path.cwd()})")
        if data.keys() & WHICH_IMAGES:
            data = {"val_proposals": None} | data  # the proposals of training are for other images
        keys = [key for key in data if key in OF_LAYOUTS]
        data = trained.data.plain() | data
        datasets.require_taken(parse(Data, data), keys)
    else:
        others = set() if data["reader"] == trained.data.reader else OF_LAYOUTS
        as_trained = {key: value for key, value in trained.data.plain().items() if key in AS_IN_TRAINING - others}
        data = {"root": None} | as_trained | data
    return trained.with_values(
        data=data,
        device=given.device,
        precision=given.precision or trained.precision,
        workers=given.workers,
        metric=given.metric.plain(),
        detect=trained.detect.plain() | _given(given.detect),
        proposals=trained.proposals.plain() | {"folder": NEW_PROPOSALS} | _given(given.proposals),
    )


def _given(group: Settings) -> dict:
    """The settings that are not null."""
    return {key: value for key, value in group.plain().items() if value is not None}


def _require_selectable(data: dict, trained: Data) -> None:
    """Raise InputError for a selection of images that is not possible with the dataset of training."""
    parts = trained.parts or ()
    for key in data.keys() & WHICH_IMAGES - {"root"}:
        if parts and all(key in part for part in parts):
            raise InputError(
                f"data.{key}: the dataset of training is joined from {len(parts)}, each with its own; name all "
                "again with data.parts=[...], or one with data=voc or coco"
            )


def _require_trained_classes(given: EvaluateSettings, trained: Sequence[str]) -> None:
    classes, excluded = given.data.classes, {*(given.data.exclude_classes or ())}
    if classes and {*classes} - excluded != {*trained} - excluded:
        raise InputError(
            f"data.classes={[*classes]}: {given.checkpoint} finds {', '.join(trained)}, and is scored on all of them: "
            "leave data.classes out"
        )


def _run_of(checkpoint: str) -> Path:
    """The folder of the checkpoint's run, or `runs`."""
    path = Path(checkpoint).resolve()
    return path.parents[1] if path.parent.name == "checkpoints" else Path("runs")


def read_detections(given: EvaluateSettings) -> tuple[DetectionDataset, list[Detections]]:
    """Read the dataset and saved detections, and repeat the post-processing steps that `detect` sets.

    Detections are COCO results, or a folder of result files; then a class that has a file but no object is scored too.
    """
    assert given.detections is not None
    if given.data.reader is None:
        raise InputError("detections=FOLDER needs a dataset to score it on: data=voc data.root=DIR")
    _require_effect(given)
    data = parse(Data, {"root": None} | _given(given.data))
    whole, path = datasets.read_dataset(data, "val"), Path(given.detections)
    known_ids = whole.image_ids  # data.max_images removes images, not their detections
    dataset = datasets.restricted(whole, data)
    if path.suffix == ".json":
        classes = datasets.resolve_classes(data, dataset)
        every = data.classes or sorted({*dataset.classes, *(data.exclude_classes or ())})
        ids = category_ids(dataset, every)  # excluding a class does not renumber the others
        dataset = dataset.with_classes(classes)
        detections = read_coco_results(path, dataset.image_ids, dataset.classes, ids, known_ids)
    else:
        dataset = _with_classes_of_files(data, dataset, path)
        detections = read_result_files(path, dataset.image_ids, dataset.classes, known_ids)
    if _given(given.detect):
        detections = [postprocess_again(item, given.detect) for item in detections]
    return dataset, detections


def _require_effect(given: EvaluateSettings) -> None:
    """Raise InputError for a setting without effect on saved detections."""
    of_networks: dict[str, object] = {"submission": given.submission or None, "svd_ranks": given.svd_ranks}
    for key in ("regress_boxes", "flip", "pyramid_px", "average_per_class"):
        of_networks[f"detect.{key}"] = getattr(given.detect, key)
    for key, value in of_networks.items():
        if value is not None:
            raise InputError(f"{key}: applies to a network, and detections= has none; remove it")
    if given.detect.nms == "hard" and given.detect.nms_iou is None:
        raise InputError("detect.nms=hard: needs detect.nms_iou")
    if given.detect.nms == "soft" and given.detect.nms_iou is not None:
        raise InputError("detect.nms_iou: has no effect with detect.nms=soft; leave one of them out")
    if given.detect.soft_nms_sigma is not None and given.detect.nms != "soft":
        raise InputError("detect.soft_nms_sigma: needs detect.nms=soft")


def _with_classes_of_files(data: Data, dataset: DetectionDataset, folder: Path) -> DetectionDataset:
    """The dataset with the requested classes, or all that have objects or a result file."""
    with_file = result_classes(folder)
    if not {*dataset.classes} & {*with_file}:
        raise InputError(
            f"detections: {folder} has files of {', '.join(with_file)}, "
            f"but the dataset has {', '.join(dataset.classes)}"
        )
    dataset = dataset.with_classes(datasets.resolve_classes(data, dataset, more=with_file))
    without = sorted({*dataset.classes} - {*with_file})
    if without:
        logger.warning("no result file, so no detection, of %s", ", ".join(without))
    return dataset


def category_ids(dataset: DetectionDataset, classes: Sequence[str]) -> dict[str, int]:
    """Category ids for COCO results: those of a COCO dataset; other classes are numbered after these, from 1."""
    own = dataset.category_ids
    others = [name for name in classes if name not in own]
    return {**own} | {name: number for number, name in enumerate(others, start=max(own.values(), default=0) + 1)}
