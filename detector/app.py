"""The outer part of the programs: settings from the command line, logging, errors and exit statuses."""

import logging
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, NoReturn

import hydra
import hydra._internal.hydra
import torch.distributed as dist
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from torch.distributed.elastic.multiprocessing.errors import record

from detector.errors import FAILED, INTERRUPTED, WRONG_INPUT, InputError, ending, stdout_closed
from detector.runtime.distributed import is_main
from detector.runtime.signals import Stopped
from detector.settings import flatten, no_such_setting

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# Hydra's own settings that the command line may set; a file may set none.
COMMAND_LINE_KEYS = re.compile(r"hydra[./](launcher|sweeper|run|sweep|mode|verbose|output_subdir)\b")
FORMAT = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")
# Holds records logged before there is a log file, such as findings in the data.
_early = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)

logger = logging.getLogger(__name__)


def log_to_file(path: Path) -> None:
    """Log the first process to this file too, including the records since the start of the program."""
    if not is_main():
        return
    handler = logging.FileHandler(path)
    handler.setFormatter(FORMAT)
    _early.setTarget(handler)
    _early.flush()
    logging.getLogger().removeHandler(_early)
    logging.getLogger().addHandler(handler)


def run_program(main: Callable[[dict], None], config_name: str) -> None:
    """Compose configs/`config_name`.yaml with the command line's overrides, and call `main` with the settings.

    Ends the process with status 0 when done, 2 for wrong input and 1 when a run failed (one error on stderr, no
    traceback), 130 after Ctrl-C, 143 after SIGTERM, 138 after SIGUSR1, and 1, with a traceback, for anything else.
    """

    def guarded(config: DictConfig) -> None:
        _set_up_logging()  # here, because a launcher of Hydra's may call this in a new process
        try:
            try:
                settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
            except MissingMandatoryValue as error:
                raise InputError(f"{error.full_key}: must be given: {error.full_key}=...") from None
            except OmegaConfBaseException as error:
                raise InputError(f"{error.full_key}: {_in_words(str(error).splitlines()[0])}") from None
            record(main)(settings)  # type: ignore[arg-type]  # lets torchrun report the error
        except Stopped as stopped:
            sys.exit(128 + stopped.signal)
        except KeyboardInterrupt:
            _end("interrupted; what was saved before is kept", INTERRUPTED)
        except Exception as error:
            if isinstance(error, BrokenPipeError) and stdout_closed():
                return  # the results are in the files
            if (told := ending(error)) is None:
                raise
            message, status = told
            if status == WRONG_INPUT:
                _wrong_input(message)
            _end(message, status)
        finally:
            stdout_closed()

    failed: list[int] = []
    started_in = os.getpid()

    def job(config: DictConfig) -> None:
        """One run; in a sweep, a failed run does not end the others."""
        try:
            guarded(config)
        except SystemExit as end:
            in_sweep = not OmegaConf.is_missing(HydraConfig.get().job, "num")
            # In a separate process, which a launcher may have started, only the exit status reports the failure.
            if not in_sweep or os.getpid() != started_in or end.code not in (FAILED, WRONG_INPUT):
                raise
            failed.append(end.code)

    hydra._internal.hydra.ConfigLoaderImpl = partial(CheckedLoader, config_name)  # type: ignore[misc, assignment]
    sys.argv[1:] = map(_quoted, sys.argv[1:])
    _check_options(sys.argv[1:])
    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)()
    if failed:
        print(f"error: {len(failed)} runs of the sweep failed; what each said is above", file=sys.stderr)
        sys.exit(failed[0])


def _set_up_logging() -> None:
    global _early
    _early = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(FORMAT)
    # Of several processes, only the first logs, except errors.
    level = logging.INFO if is_main() else logging.ERROR
    logging.basicConfig(level=level, handlers=[console, _early], force=True)  # drops those of a sweep's last run
    logging.Handler.handleError = _ignore_closed_stdout  # type: ignore[method-assign,assignment]


_default_handle_error = logging.Handler.handleError


def _ignore_closed_stdout(handler: logging.Handler, record: logging.LogRecord) -> None:
    """Replaces every handler's method: `train.py | head` does not end the run or print a traceback for each line."""
    if not (isinstance(sys.exception(), BrokenPipeError) and stdout_closed()):
        _default_handle_error(handler, record)


def _wrong_input(message: str) -> NoReturn:
    if is_main() or dist.is_initialized():  # before they are connected, all processes find the same error
        _end(message, WRONG_INPUT)
    sys.exit(WRONG_INPUT)


def _end(message: str, status: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):  # the run's own log
            handler.emit(logging.makeLogRecord({"msg": f"error: {message}", "levelno": logging.ERROR}))
    sys.exit(status)


def _check_options(arguments: list[str]) -> None:
    """End the process for options that Hydra rejects without a clear message."""
    options, unknown = get_args_parser().parse_known_args(arguments)
    if unknown:
        first = next((argument for argument in unknown if argument.startswith("-")), unknown[0])
        _wrong_input(f"{first}: not understood here; options such as --config-dir stand before all settings")
    if options.experimental_rerun is not None:
        _wrong_input("--experimental-rerun: reads a pickle, which can run any code; give the settings themselves")
    if options.config_dir is not None and not Path(options.config_dir).is_dir():
        _wrong_input(f"--config-dir: {options.config_dir}: no such folder")


def _quoted(argument: str) -> str:
    """Quote the value of a setting if Hydra's grammar requires it, as in data.root=/data/josé."""
    key, is_setting, value = argument.partition("=")
    if not is_setting or argument.startswith("-") or value.startswith(("[", "{")):
        return argument
    quoted = "{}='{}'".format(key, value.replace("'", "\\'"))
    parse = OverridesParser.create().parse_override
    try:
        parse(argument)
    except HydraException:
        with suppress(HydraException):
            parse(quoted)
            return quoted
    return argument


class CheckedLoader(ConfigLoaderImpl):
    """Composes the config for Hydra. Ends the process, before Hydra acts on the config, if it cannot be composed (one
    line where Hydra prints many), or if a file sets any of Hydra's own settings.

    A file may be untrusted, and Hydra instantiates whatever its callbacks, launcher, sweeper and logging name.
    Everything that Hydra reads passes through here: for a run, each run of a sweep, --help and the others.
    """

    def __init__(self, own_name: str, config_search_path: Any) -> None:
        super().__init__(config_search_path)
        self.own_name = own_name

    def load_configuration(
        self, config_name: str | None, overrides: list[str], *args: Any, **kwargs: Any
    ) -> DictConfig:
        OmegaConf.clear_resolver("oc.env")  # settings are saved and shared; the environment must not be
        own = ConfigLoaderImpl(create_config_search_path(str(CONFIGS)))
        try:
            config = super().load_configuration(config_name, overrides, *args, **kwargs)
        except (HydraException, yaml.YAMLError, ValueError, RecursionError, OSError) as error:
            message = _in_words(f"{error} {error.__cause__ or ''}")
            if isinstance(error, UnicodeDecodeError):
                message = f"a file of settings is not in UTF-8: {message}"
            if unknown := re.match(r"Could not override '([^']+)'", message):
                known = flatten(_to_plain(own.load_configuration(self.own_name, [], *args, **kwargs)))
                message = str(no_such_setting(unknown[1], known))
            _wrong_input(message)
        given = [
            text
            for text, parsed in zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True)
            if COMMAND_LINE_KEYS.match(parsed.key_or_group) and "_target_" not in text
        ]
        try:
            expected = _of_hydra(own.load_configuration(config_name and self.own_name, given, *args, **kwargs))
        except HydraException as error:  # such as a launcher that an untrusted file adds
            _wrong_input(_in_words(str(error)))
        for key, value in _of_hydra(config).items():
            if value != expected.get(key):
                _wrong_input(
                    f"hydra.{key}: must not be set, as Hydra runs code that its settings name: remove it from files; "
                    "the command line can set hydra.launcher, sweeper, run, sweep, mode, verbose and output_subdir"
                )
        return config


def _of_hydra(config: DictConfig) -> dict:
    """Hydra's own settings, without those it writes itself and the search path, which only names files."""
    settings = _to_plain(config.hydra)
    for key in ("runtime", "overrides", "searchpath"):
        settings.pop(key, None)
    for key in ("override_dirname", "config_name"):
        settings["job"].pop(key, None)
    return settings


def _in_words(error: str) -> str:
    """The error on one line, without the list of searched paths."""
    text = " ".join(re.split(r"(?:Config s|S)earch path:", error)[0].split())
    if "LexerNoViableAlt" in text:
        text += ": put names with other letters in quotes, as in 'data.classes=[\"größe\",dog]'"
    if "oc.env" in text:
        text += ": settings do not read the environment; let the shell fill it in, key=$NAME"
    return text


def _to_plain(config: DictConfig) -> dict:
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return plain
