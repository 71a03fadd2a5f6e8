"""resume=RUN: the settings saved in the run's config.yaml; those of the command line replace them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from detector.app.compose import choosable_groups, require_few_references
from detector.errors import InputError
from detector.runtime.files import reading
from detector.schema import FIXED, change_table, changed, parse
from detector.settings import TrainSettings

SAVED = "config.yaml"


def run_to_restore(overrides: list[str]) -> Path | None:
    """The folder of resume=FOLDER; None for any other value, and for overrides that cannot be parsed."""
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException:
        return None
    given = [item.value() for item in parsed if item.key_or_group == "resume" and not item.is_sweep_override()]
    if not given or not isinstance(given[-1], str) or given[-1] == "auto":
        return None
    return Path(given[-1]) if Path(given[-1]).is_dir() else None


def of_chosen_groups(overrides: list[str]) -> list[str]:
    """The overrides that choose a group, such as optimizer=sgd, and those of settings in these groups."""
    parsed = _parsed(overrides)
    chosen = _groups(parsed)
    return [str(item.input_line) for item in parsed if _path(item)[0] in chosen]


def restored(folder: Path, overrides: list[str], composed: Mapping[str, Any]) -> DictConfig:
    """The settings with which the run in `folder` was last started; given ones replace them.

    `composed` has those of the selected groups, which replace the saved groups. resume and run.dir become those of
    resume=auto. Raises InputError without saved settings, and for overrides that are invalid beside them.
    """
    values = _escaped(_saved(folder).plain())
    parsed = _parsed(overrides)
    chosen = _groups(parsed)
    values |= {group: composed[group] for group in chosen}
    for item in parsed:
        if _path(item)[0] not in chosen | {"resume"}:
            _set(values, item)
        if item.key_or_group == "run.dir" and Path(str(item.value())).resolve() != folder.resolve():
            raise InputError(f"{item.input_line}: the run of resume={folder} continues in its own folder")
    return OmegaConf.create(values | {"resume": "auto", "run": {"dir": str(folder)}})


def require_unchanged(folder: Path, settings: TrainSettings) -> None:
    """Raise InputError, with a table, if a setting that is fixed differs from the saved one."""
    if fixed := [change for change in changed(_saved(folder), settings) if FIXED in change.policies]:
        raise InputError(
            f"resume={folder}: these settings are fixed when a run resumes:\n{change_table(fixed)}\n"
            "Leave them out, or begin a new run from its weights: model.weights=CHECKPOINT run.dir=ANOTHER"
        )


def _saved(folder: Path) -> TrainSettings:
    return parse(TrainSettings, _read(folder / SAVED), str(folder / SAVED))


def _escaped(value: Any) -> Any:
    """The value with a backslash before each `${` in its strings, where OmegaConf would interpolate."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _read(path: Path) -> dict[str, Any]:
    """The content of the file, which may be untrusted: nothing in it is interpolated, instantiated or run."""
    if not path.is_file():
        raise InputError(f"resume={path.parent}: not the folder of a run with settings: it has no {SAVED}")
    require_few_references(path)
    with reading(path, "cannot be read"):
        content = yaml.safe_load(path.read_text("utf-8"))
    if not isinstance(content, dict):
        raise InputError(f"{path}: has no settings")
    return content


def _parsed(overrides: list[str]) -> list[Override]:
    """The overrides. Raises InputError for one that is invalid beside saved settings."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    for item in parsed:
        if item.is_sweep_override():
            raise InputError(f"{item.input_line}: resume=RUN continues one run: give one value")
        if item.is_delete():
            raise InputError(f"{item.input_line}: settings cannot be removed")
        if item.key_or_group == "experiment":
            raise InputError(
                f"{item.input_line}: an experiment cannot be chosen beside resume=RUN: give the settings to change, or "
                "repeat the whole command with resume=auto run.dir=RUN"
            )
    return parsed


def _groups(parsed: list[Override]) -> set[str]:
    return {item.key_or_group for item in parsed} & {*choosable_groups("train")}


def _path(item: Override) -> list[str]:
    return item.key_or_group.split(".")


def _set(values: dict[str, Any], item: Override) -> None:
    """Set the value of an override in nested dicts."""
    *groups, name = _path(item)
    for group in groups:
        below = values.setdefault(group, {})
        if not isinstance(below, dict):
            raise InputError(f"{item.input_line}: {group} is a setting, and has none below it")
        values = below
    value, old = item.value(), values.get(name)
    values[name] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
