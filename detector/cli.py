"""What the programs share on the outside: settings from the command line, logging, and how they end."""

import errno
import logging
import re
import sys
from collections.abc import Callable
from functools import partial
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, NoReturn

import hydra
import hydra._internal.hydra
import torch.distributed as dist
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.distributed.elastic.multiprocessing.errors import record

from detector.config import flatten, no_such_setting
from detector.distributed import is_main
from detector.errors import InputError, RunFailure
from detector.signals import Stopped

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130
# What the command line may set of Hydra's own; a file may set none of it.
OF_COMMAND_LINE = re.compile(r"hydra[./](launcher|sweeper|run|sweep|mode|verbose|output_subdir)\b")
FORMAT = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")
# What is logged before there is a file for it, such as what was found in the data.
_early = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)

logger = logging.getLogger(__name__)


def log_to_file(path: Path) -> None:
    """What the first process logs goes to this file too, from the beginning of the program on."""
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
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(FORMAT)
    # Of several processes the first one speaks for all, except of errors.
    logging.basicConfig(level=logging.INFO if is_main() else logging.ERROR, handlers=[console, _early])

    def guarded(config: DictConfig) -> None:
        try:
            try:
                settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
            except OmegaConfBaseException as error:
                raise InputError(f"{error.full_key}: {_in_words(str(error).splitlines()[0])}") from None
            record(main)(settings)  # type: ignore[arg-type]  # torchrun reports what went wrong
        except InputError as error:
            _wrong_input(error)
        except RunFailure as error:
            _end(str(error), FAILED)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _end(f"the disk is full: {error}", FAILED)
        except Stopped as stopped:
            sys.exit(128 + stopped.signal)
        except KeyboardInterrupt:
            _end("interrupted; what was saved before is kept", INTERRUPTED)

    hydra._internal.hydra.ConfigLoaderImpl = partial(CheckedLoader, config_name)  # type: ignore[misc, assignment]
    try:
        check_overrides(config_name, sys.argv[1:])
    except InputError as error:
        _wrong_input(error)
    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(guarded)()


def _wrong_input(error: InputError) -> NoReturn:
    if is_main() or dist.is_initialized():  # before they are connected all processes find the same
        _end(str(error), WRONG_INPUT)
    sys.exit(WRONG_INPUT)


def _end(message: str, status: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):  # the run's own log
            handler.emit(logging.makeLogRecord({"msg": f"error: {message}", "levelno": logging.ERROR}))
    sys.exit(status)


class CheckedLoader(ConfigLoaderImpl):
    """Composes what Hydra asks for; ends the process, before Hydra acts on it, if a file set anything of Hydra's own.

    A file may come from a stranger, and Hydra makes whatever object its callbacks, launcher, sweeper and logging name.
    This is where all that Hydra reads passes: for a run, each one of a sweep, --help and the others.
    """

    def __init__(self, own_name: str, config_search_path: Any) -> None:
        super().__init__(config_search_path)
        self.own_name = own_name

    def load_configuration(
        self, config_name: str | None, overrides: list[str], *args: Any, **kwargs: Any
    ) -> DictConfig:
        OmegaConf.clear_resolver("oc.env")  # settings are saved and shared; what is in the environment is not to be
        config = super().load_configuration(config_name, overrides, *args, **kwargs)
        given = [
            text
            for text, parsed in zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True)
            if OF_COMMAND_LINE.match(parsed.key_or_group) and "_target_" not in text
        ]
        own = ConfigLoaderImpl(create_config_search_path(str(CONFIGS)))
        try:
            expected = _of_hydra(own.load_configuration(config_name and self.own_name, given, *args, **kwargs))
        except HydraException as error:  # a launcher of the stranger's, for one
            _wrong_input(InputError(_in_words(str(error))))
        for key, value in _of_hydra(config).items():
            if value != expected.get(key):
                _wrong_input(InputError(
                    f"hydra.{key}: is not to be set, as Hydra runs code that its settings name: leave it out of files; "
                    "the command line can set hydra.launcher, sweeper, run, sweep, mode, verbose and output_subdir"
                ))  # fmt: skip
        return config


def _of_hydra(config: DictConfig) -> dict:
    """Hydra's own settings, without what it notes there itself, and the search path, which only names files."""
    settings = _to_plain(config.hydra)
    for key in ("runtime", "overrides", "searchpath"):
        settings.pop(key, None)
    for key in ("override_dirname", "config_name"):
        settings["job"].pop(key, None)
    return settings


def check_overrides(config_name: str, arguments: list[str]) -> None:
    """Raise InputError, in one line with the nearest name, for settings that are not there; Hydra says it in many."""
    if get_args_parser().parse_args(arguments).experimental_rerun is not None:
        raise InputError("--experimental-rerun: reads a pickle, which can run any code; give the settings themselves")
    if any(argument.startswith("-") for argument in arguments):  # --help, --multirun and others are Hydra's own
        return
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            hydra.compose(config_name, arguments)
        except (HydraException, OmegaConfBaseException) as error:
            unknown = re.search(r"Could not override '([^']+)'", str(error))
            if unknown is None:
                raise InputError(_in_words(str(error))) from None
            raise no_such_setting(unknown[1], flatten(_to_plain(hydra.compose(config_name)))) from None


def _in_words(error: str) -> str:
    text = " ".join(error.split())
    if "oc.env" in text:
        text += ": settings do not read the environment; let the shell fill it in, key=$NAME"
    return text


def _to_plain(config: DictConfig) -> dict:
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return plain
