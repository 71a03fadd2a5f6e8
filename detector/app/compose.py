"""From configs/ and the command line to plain settings, with Hydra's Compose API."""

import functools
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from detector.errors import InputError
from detector.schema import Settings, defaults, fields, missing_keys, no_such_setting, parse

# In a checkout configs/ is beside detector/, in a wheel inside it.
CONFIGS = next(path / "configs" for path in Path(__file__).resolve().parents[1:3] if (path / "configs").is_dir())
MAX_REFERENCES = 20  # in a file of settings: aliases and interpolations
# Hydra's own settings that the command line of a sweep may set; a file may set none.
OF_SWEEPS = re.compile(r"hydra[./](launcher|sweeper|sweep|verbose)\b")

Schema = TypeVar("Schema", bound=Settings)


def compose(schema: type[Settings], config_dir: str | None, overrides: list[str], name: str) -> DictConfig:
    """The composed settings. Raises InputError, also if a file changes Hydra's own settings.

    A file may be untrusted, and in a sweep Hydra instantiates what its own settings name.
    """
    OmegaConf.clear_resolver("oc.env")  # settings are saved and shared; the environment must not be
    of_sweep = [item for item in overrides if OF_SWEEPS.match(item) and "_target_" not in item]
    try:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            search = search_path(config_dir)
            config = hydra.compose(name, search + overrides, return_hydra_config=True)
            expected = _expected(name, tuple(of_sweep), tuple(search))
    except AssertionError:  # Hydra's checks of a list of defaults
        chosen = " ".join(overrides)
        raise InputError(f"{chosen}: a file of settings has an invalid entry in its list `defaults`") from None
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        message = in_words(f"{error} {error.__cause__ or ''}")
        if "Config group override must be" in message:
            named = "|".join(["", *choosable_groups(name)])
            wrong = [item for item in overrides if re.match(rf"({named})=(null$|[^a-zA-Z])", item)]
            message = f"{' '.join(wrong)}: a group takes the name of one of its files; leave it out for its default"
        if isinstance(error, UnicodeDecodeError):
            message = f"a file of settings is not in UTF-8: {message}"
        if unknown := re.match(r"Could not override '([^']+)'", message):
            raise no_such_setting(unknown[1], dict(fields(schema))) from None
        raise InputError(message) from None
    for key, value in _of_hydra(config).items():
        if value != expected.get(key):
            raise InputError(
                f"hydra.{key}: must not be set, as Hydra runs code that its settings name: remove it from files; the "
                "command line of a sweep can set hydra.launcher, sweeper, sweep and verbose"
            )
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return config


@functools.cache
def _expected(name: str, of_sweep: tuple[str, ...], search: tuple[str, ...]) -> dict:
    """Hydra's own settings as the program's files and the command line have them."""
    found = _of_hydra(hydra.compose(name, [*of_sweep], return_hydra_config=True))
    found["searchpath"] = _of_hydra(hydra.compose(name, [*search], return_hydra_config=True))["searchpath"]
    return found


def compose_settings(name: str, schema: type[Schema], overrides: list[str]) -> Schema:
    """The settings of configs/`name`.yaml with these overrides, for scripts. Raises InputError for invalid ones."""
    ConfigStore.instance().store(f"{name}_settings", defaults(schema))
    config = compose(schema, None, [quoted(item) for item in overrides], name)
    return typed_settings(schema, config)


def typed_settings(schema: type[Schema], config: DictConfig) -> Schema:
    """Validated settings. Raises InputError also if one was removed, as by ~train.iterations."""
    values = plain(config)
    if removed := missing_keys(defaults(schema), values):
        raise InputError(f"{removed[0]} is not given: settings cannot be removed")
    return parse(schema, values)


def choosable_groups(name: str) -> list[str]:
    """The groups of settings for which configs/`name`.yaml has a choice."""
    chosen = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))["defaults"]
    return [key for item in chosen if isinstance(item, dict) for key in item if not key.startswith("override")]


def search_path(folder: str | None) -> list[str]:
    """The override that adds --config-dir. Raises InputError if it is no folder or has a file with many references."""
    if folder is None:
        return []
    if not Path(folder).is_dir():
        raise InputError(f"--config-dir: {folder}: no such folder")
    for path in Path(folder).rglob("*.yaml"):
        require_few_references(path)
    return ["hydra.searchpath=['{}']".format(str(Path(folder).resolve()).replace("'", "\\'"))]


def require_few_references(path: Path) -> None:
    """Raise InputError for a YAML file that could expand without end. One that cannot be read is not judged."""
    if path.exists() and not (path.is_file() or path.is_dir()):  # Hydra would read a pipe or a device without end
        raise InputError(f"{path}: not a regular file")
    with suppress(yaml.YAMLError, ValueError, RecursionError, OSError):  # reported if the file is used
        text = path.read_text("utf-8")
        aliases = interpolations = 0
        for event in yaml.parse(text):
            aliases += isinstance(event, yaml.AliasEvent)
            interpolations += event.value.count("${") if isinstance(event, yaml.ScalarEvent) else 0
        if aliases + interpolations > MAX_REFERENCES:
            raise InputError(
                f"{path}: more than {MAX_REFERENCES} of *name and ${{name}} ({aliases} and {interpolations}), which "
                "can expand without end: write the values out"
            )


def _of_hydra(config: DictConfig) -> dict:
    """Hydra's own settings, without those it writes itself."""
    settings = OmegaConf.to_container(config.hydra, resolve=False)
    assert isinstance(settings, dict)
    for key in ("runtime", "overrides"):
        settings.pop(key, None)
    for key in ("override_dirname", "config_name"):
        settings["job"].pop(key, None)
    return settings


def plain(config: DictConfig) -> dict:
    """Nested dicts and lists, interpolations resolved. Raises InputError for a value that is missing or not found."""
    OmegaConf.clear_resolver("oc.env")  # as in `compose`: this may be a process that a launcher started
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise InputError(f"{error.full_key}: must be given: {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key}: {in_words(str(error).splitlines()[0])}") from None
    assert isinstance(values, dict)
    return values


def quoted(argument: str) -> str:
    """Quote the value of a setting if Hydra's grammar requires it, as in data.root=/data/josé; expand a leading ~/."""
    key, is_setting, value = argument.partition("=")
    if value.startswith("~/"):  # no shell expands it after `data.root=`
        value = os.path.expanduser(value)
        argument = f"{key}={value}"
    if not is_setting or value.startswith(("[", "{")):
        return argument
    with_quotes = "{}='{}'".format(key, value.replace("'", "\\'"))
    parse_override = OverridesParser.create().parse_override
    try:
        parse_override(argument)
    except HydraException:
        with suppress(HydraException):
            parse_override(with_quotes)
            return with_quotes
    return argument


def in_words(error: str) -> str:
    """The error on one line, without the list of searched paths."""
    text = " ".join(re.split(r"(?:Config s|S)earch path:", error)[0].split())
    if unknown := re.search(r"Could not find '(.+)/([^/]+)' Available options in '.+': (.*)$", text):
        text = f"{unknown[1]}={unknown[2]}: must be one of {', '.join(unknown[3].split())}"
    if "LexerNoViableAlt" in text:
        text += ": put names with other letters in quotes, as in 'data.classes=[\"größe\",dog]'"
    if "Ambiguous value" in text:
        text = f"{text.partition(' 1. ')[0]}: a list is KEY=[a,b], a value with a comma 'KEY=\"a,b\"', a sweep needs -m"
    if "oc.env" in text:
        text += ": settings do not read the environment; let the shell fill it in, key=$NAME"
    return text
