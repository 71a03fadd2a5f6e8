"""What the programs share on the outside: settings from the command line, logging, and how they end."""

import difflib
import logging
import re
import sys
from collections.abc import Callable
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import NoReturn

import hydra
import torch.distributed as dist
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.distributed.elastic.multiprocessing.errors import record

from detector.config import flatten
from detector.distributed import is_main
from detector.errors import InputError, RunFailure
from detector.signals import Stopped

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130
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
    traceback), 130 after Ctrl-C, 143 after SIGTERM, and 1, with a traceback, for anything else.
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
                raise InputError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
            record(main)(settings)  # type: ignore[arg-type]  # torchrun reports what went wrong
        except InputError as error:
            _wrong_input(error)
        except RunFailure as error:
            _end(str(error), FAILED)
        except Stopped as stopped:
            sys.exit(128 + stopped.signal)
        except KeyboardInterrupt:
            _end("interrupted; what was saved before is kept", INTERRUPTED)

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


def check_overrides(config_name: str, arguments: list[str]) -> None:
    """Raise InputError, in one line with the nearest name, for settings that are not there; Hydra says it in many."""
    if any(argument.startswith("-") for argument in arguments):  # --help, --multirun and others are Hydra's own
        return
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            hydra.compose(config_name, arguments)
        except (HydraException, OmegaConfBaseException) as error:
            text = str(error)
            unknown = re.search(r"Could not override '([^']+)'", text)
            if unknown is None:
                raise InputError(" ".join(text.split())) from None
            key, known = unknown[1], flatten(_to_plain(hydra.compose(config_name)))
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise InputError(f"{key}: no such setting{hint} --help lists all") from None


def _to_plain(config: DictConfig) -> dict:
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return plain
