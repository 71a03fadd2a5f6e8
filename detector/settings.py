"""The schema of the settings: which classes a config may name, and which values are valid."""

import difflib
import importlib
import inspect
import math
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

from detector.errors import InputError

# A config may be untrusted, inside a checkpoint too: only classes of these packages are instantiated from one.
ALLOWED = ("detector.", "torch.optim.", "albumentations.")


def build(settings: Mapping, packages: tuple[str, ...] = ALLOWED, /, **more: Any) -> Any:
    """Instantiate the class that `_target_` names, with the other settings and `more` as its arguments.

    `packages`: where the class may come from, as narrow as the use allows. Raises InputError for anything but a class
    of these packages, and if the class does not accept the settings.
    """
    arguments = {key: value for key, value in settings.items() if key != "_target_"}
    target = str(settings.get("_target_"))
    cls = find_class(target, packages)
    try:
        for name, parameter in inspect.signature(cls).parameters.items():
            if isinstance(parameter.default, bool) and not isinstance(arguments.get(name, True), bool):
                raise ValueError(f"{name}={arguments[name]} must be true or false")
        with warnings.catch_warnings():
            warnings.filterwarnings("error", r"Argument\(s\) .* not valid")  # albumentations ignores them
            return cls(**arguments, **more)
    except (TypeError, ValueError, RuntimeError, AttributeError, UserWarning) as error:
        raise InputError(f"{target} does not take {arguments}: {error}") from None


def find_class(target: str, packages: tuple[str, ...]) -> type:
    """The class of this name. Raises InputError for anything but a class defined in one of these packages."""
    module, _, name = target.rpartition(".")
    if target.startswith(packages):
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError:
            found = None
        # The defining module counts too: modules expose what they import, such as detector.runtime.files.os.
        if isinstance(found, type) and f"{found.__module__}.".startswith(packages):
            return found
    raise InputError(f"_target_: {target}: not a class of {', '.join(name.rstrip('.') for name in packages)}")


def flatten(settings: Mapping, prefix: str = "") -> dict[str, str | int | float | bool]:
    """Settings by dotted name; values other than numbers, strings and booleans are converted to strings."""
    flat: dict[str, str | int | float | bool] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str | int | float) else str(value)
    return flat


# Settings of earlier versions, and what replaces them.
GONE = {
    "metric.overlaps": "it is metric.iou_thresholds now",
    "channels_last": "leave it out: images and features always have this memory format",
}


def no_such_setting(key: str, known: Collection[str]) -> InputError:
    """The error for an unknown setting, with its new name or the most similar known one."""
    if key in GONE:
        return InputError(f"{key}: no such setting; {GONE[key]}")
    near = difflib.get_close_matches(key, known, n=1)
    return InputError(f"{key}: no such setting{f'; did you mean {near[0]}?' if near else '.'} --help lists all")


Rule = tuple[Callable[[Any], bool], str]  # a test of a value, and a description of the valid values


def _is(kind: type | tuple[type, ...], test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind) and not isinstance(value, bool) and test(value)


def _integer(low: int, high: int, wanted: str) -> Rule:
    return _is(int, lambda value: low <= value <= high), wanted


_positive = _integer(1, 2**31, "an integer above 0")
_not_negative = _integer(0, 2**63 - 1, "an integer, 0 or more")
_side = _integer(1, 20_000, "an integer from 1 to 20000")  # a checkpoint may be untrusted: limits memory
_ratio = (_is((int, float), lambda value: 0 <= value <= 1), "a number from 0 to 1")
_above_zero = (_is((int, float), lambda value: 0 < value < math.inf), "a number above 0")
_flag = (lambda value: isinstance(value, bool), "true or false")
_string = (lambda value: isinstance(value, str) and value != "" and "\0" not in value, "a string")


def _one_of(*choices: str) -> Rule:
    return (lambda value: isinstance(value, str) and value in choices), " or ".join(choices)


def _or_null(rule: Rule) -> Rule:
    is_valid, wanted = rule
    return (lambda value: value is None or is_valid(value)), f"null or {wanted}"


def _list_of(rule: Rule, wanted: str, lengths: range = range(10_000)) -> Rule:
    return (lambda value: isinstance(value, list) and len(value) in lengths and all(map(rule[0], value))), wanted


_settings = (lambda value: isinstance(value, Mapping), "a group of settings")
_files_of_parts = _list_of(_or_null(_string), "a list of files, or null, one for each data set that is joined")
_proposals = (
    lambda value: value is None or _string[0](value) or _files_of_parts[0](value),
    f"null, the name of a file, or {_files_of_parts[1]}",
)
_part = (
    lambda value: isinstance(value, dict) and all(v is None or _flag[0](v) or _string[0](v) for v in value.values()),
    "a data set",
)

TRAINING_RULES: dict[str, Rule] = {
    "resume": (lambda value: value is None or isinstance(value, str), "null, auto or a file RUN/checkpoints/*.pt"),
    "run": _settings,
    "distributed.timeout_s": _positive,
    "optimizer": _settings,
    "schedule": _settings,
    "augment.transforms": _list_of(_settings, "a list of transforms, each with its _target_"),
    "optimizer.lr": _or_null(_above_zero),
    "optimizer.max_grad_norm": _or_null(_above_zero),
    "optimizer.bias_lr_factor": _above_zero,
    "schedule.warmup_iterations": _not_negative,
    "schedule.warmup_factor": _ratio,
    "optimizer.weight_decay": (_is((int, float), lambda value: 0 <= value < 1e30), "a number, 0 or more"),
    "train.iterations": _positive,
    "train.images_per_batch": _positive,
    "train.eval_every": _positive,
    "train.checkpoint_every": _positive,
    "train.log_every": _positive,
    "train.ema": _or_null((_is((int, float), lambda value: 0 < value < 1), "a number between 0 and 1")),
}
OPTIMIZER_RULES: dict[str, Rule] = {
    "optimizer.momentum": (_is((int, float), lambda value: 0 <= value < 1), "a number from 0 to below 1"),
    "optimizer.betas": _list_of(
        (_is((int, float), lambda value: 0 <= value < 1), ""), "two numbers from 0 to below 1", range(2, 3)
    ),
    "optimizer.fused": _or_null(_flag),
}
# Which of these a data set has depends on its reader, see builders.READER_ARGUMENTS.
READER_SETTINGS = ("train_split", "val_split", "train_json", "val_json", "train_images", "val_images")
RULES: dict[str, Rule] = {
    "seed": _integer(0, 2**63 - 1, "an integer from 0 to 2^63 - 1"),
    "precision": _one_of("auto", "bfloat16", "float32"),
    "workers": _integer(0, 1000, "an integer from 0 to 1000"),
    "data.reader": (_string[0], "a data set's class: give data=voc data.root=DIR"),
    "data.root": _string,
    "data.classes": _or_null(_list_of(_string, "a list of names, such as [cat,dog]", range(1, 10_000))),
    "data.short_side_px": _side,
    "data.max_side_px": _side,
    "data.train_max_proposals": _positive,
    "data.val_max_proposals": _positive,
    "data.max_images": _or_null(_positive),
    "data.exclude_classes": _or_null(_list_of(_string, "a list of names, such as [cat,dog]")),
    "data.parts": _or_null(_list_of(_part, "a list of data sets, such as [{root: /data/a}, {root: /data/b}]")),
    "data.drop_empty_boxes": _or_null(_flag),
    "data.train_proposals": _proposals,
    "data.val_proposals": _proposals,
    "data.proposals_by_score": _flag,
    "data.min_proposal_px": (_is((int, float), lambda value: 0 <= value < math.inf), "a number of pixels, 0 or more"),
    "data.unique_proposals": _flag,
    "data.use_difficult": _flag,
    "data.exif": _one_of("apply", "ignore"),
    "data.max_image_pixels": _positive,
    "data.max_bad_fraction": _ratio,
    "proposals.folder": _string,
    "proposals.mode": _one_of("single", "fast", "quality"),
    "model.backbone": _one_of("vgg16", "resnet18", "resnet50"),
    "model.head": _one_of("fc", "res5"),
    "model.weights": _or_null((_string[0], "imagenet, or the name of a file")),
    "model.pool_size": _integer(1, 100, "an integer from 1 to 100"),
    "model.hidden": _integer(1, 1_000_000, "an integer from 1 to 1000000"),
    "model.dropout": _ratio,
    "model.frozen_stages": _or_null(_not_negative),
    "roi.delta_std": _list_of(_above_zero, "four numbers above 0", range(4, 5)),
    "device": (lambda value: isinstance(value, str), "auto, cpu, cuda or cuda:N"),
    "run.dir": _or_null((_string[0], "the name of a folder")),
    "roi.rois_per_image": _positive,
    "roi.foreground_fraction": _ratio,
    "roi.foreground_iou": _ratio,
    "roi.background_iou_low": _ratio,
    "roi.background_iou_high": _ratio,
    "detect.score_threshold": _ratio,
    "detect.nms_iou": _ratio,
    "detect.max_detections": _positive,
}


def validate(config: Mapping) -> None:
    """Raise InputError for the first setting with an invalid value, before anything is read or computed."""
    for key, rule in RULES.items():
        _check(config, key, rule)
    for group in ("model", "roi", "detect"):  # the components built from these take no others
        unknown = [key for key in config[group] if f"{group}.{key}" not in RULES]
        if unknown:
            raise InputError(f"{group}: there is no setting {unknown[0]!r}")
    roi = config["roi"]
    if not roi["background_iou_low"] < roi["background_iou_high"] <= roi["foreground_iou"]:
        raise InputError(
            f"roi: needs background_iou_low < background_iou_high <= foreground_iou, has {roi['background_iou_low']}, "
            f"{roi['background_iou_high']}, {roi['foreground_iou']}"
        )
    validate_metric(config.get("metric"))


def validate_training(config: Mapping, processes: int) -> None:
    """Raise InputError as `validate` does, also for settings that only training has."""
    validate(config)
    for key, rule in TRAINING_RULES.items():
        _check(config, key, rule)
    for key, rule in OPTIMIZER_RULES.items():  # which of these an optimizer has depends on its class
        if key.partition(".")[2] in config["optimizer"]:
            _check(config, key, rule)
    steps = config["schedule"].get("steps", [])
    if not (isinstance(steps, list) and all(map(_ratio[0], steps))):
        raise InputError(f"schedule.steps={steps}: must be a list of fractions of the run, such as [0.75]")
    _require_known(config)
    images = config["train"]["images_per_batch"]
    if images % processes:
        raise InputError(f"train.images_per_batch={images}: must be a multiple of the number of processes, {processes}")


def _require_known(config: Mapping) -> None:
    """Raise InputError for an unknown setting, such as a typo in a file, which Hydra accepts.

    Not used in evaluation: a checkpoint may come from a version with more settings.
    """
    if "experiment" in config:
        raise InputError(
            "experiment: its file must begin with the line `# @package _global_`, because its settings are global"
        )
    known = {*RULES, *TRAINING_RULES, *OPTIMIZER_RULES, *(f"data.{key}" for key in READER_SETTINGS), "metric"}
    known |= {key.partition(".")[0] for key in known}
    groups = ("train", "run", "proposals", "distributed", "data", "augment")  # the others are checked by their classes
    for key in [*config, *(f"{group}.{key}" for group in groups for key in config[group])]:
        if key not in known:
            raise no_such_setting(str(key), known)


def validate_processes(config: Mapping) -> None:
    """Raise InputError for an invalid setting of `distributed`."""
    _check(config, "distributed.timeout_s", TRAINING_RULES["distributed.timeout_s"])


def validate_given(config: Mapping, group: str) -> None:
    """Raise InputError for an invalid value among the settings of the group that are not null."""
    for key, value in config[group].items():
        if value is not None and f"{group}.{key}" in RULES:
            _check(config, f"{group}.{key}", RULES[f"{group}.{key}"])


def _check(config: Mapping, key: str, rule: Rule) -> None:
    is_valid, wanted = rule
    group, _, name = key.rpartition(".")
    settings = config.get(group) if group else config
    if not isinstance(settings, Mapping):
        raise InputError(f"{group}={settings}: must be a group of settings, {key} among them")
    value = settings.get(name)
    if not is_valid(value):
        given = f"{key}={value}" if name in settings else f"{key} is not given"
        raise InputError(f"{given}: must be {wanted}")


def validate_metric(metric: Any) -> None:
    """Raise InputError for invalid settings of `metric`."""
    if not isinstance(metric, Mapping) or metric.keys() != {"iou_thresholds", "main", "devkit", "coco"}:
        raise InputError(f"metric={metric}: must have `iou_thresholds`, `main`, `devkit` and `coco`, and nothing else")
    thresholds = metric["iou_thresholds"]
    if not (isinstance(thresholds, list) and thresholds and all(_above_zero[0](x) and x <= 1 for x in thresholds)):
        raise InputError(
            f"metric.iou_thresholds={thresholds}: must be a list of numbers above 0 and up to 1, such as [0.5,0.7]"
        )
    if len({round(value * 100) for value in thresholds}) < len(thresholds) or any(round(x, 2) != x for x in thresholds):
        raise InputError(f"metric.iou_thresholds={thresholds}: must differ, and have two decimals at most")
    for flag in ("devkit", "coco"):
        if not isinstance(metric[flag], bool):
            raise InputError(f"metric.{flag}={metric[flag]}: must be true or false")
    columns = [*(f"{threshold:.2f}" for threshold in thresholds), "0.50:0.95"]
    names = [f"{name}@{column}" for column in columns for name in ("11point", "area")]
    if metric["main"] not in (None, *names, *(["coco"] if metric["coco"] else [])):
        raise InputError(
            f"metric.main={metric['main']}: must be one of {', '.join(names)}, or coco with metric.coco=true"
        )
