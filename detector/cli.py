"""What the programs share on the outside: settings from the command line, logging, and how they end."""

import logging
import sys
from collections.abc import Callable
from logging.handlers import MemoryHandler
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detector.errors import InputError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
WRONG_INPUT, INTERRUPTED = 2, 130
FORMAT = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")
# What is logged before there is a file for it, such as what was found in the data.
_early = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)


def log_to_file(path: Path) -> None:
    """What is logged goes to this file too, from the beginning of the program on."""
    handler = logging.FileHandler(path)
    handler.setFormatter(FORMAT)
    _early.setTarget(handler)
    _early.flush()
    logging.getLogger().removeHandler(_early)
    logging.getLogger().addHandler(handler)


def run_program(main: Callable[[dict], None], config_name: str) -> None:
    """Compose configs/`config_name`.yaml with the command line's overrides, and call `main` with the settings.

    Ends the process with status 0 when done, 2 for wrong input (one error on stderr, no traceback) and 1 for
    anything else.
    """
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(FORMAT)
    logging.basicConfig(level=logging.INFO, handlers=[console, _early])
    composed = False

    def guarded(config: DictConfig) -> None:
        nonlocal composed
        composed = True
        try:
            try:
                settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
            except OmegaConfBaseException as error:
                raise InputError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
            main(settings)  # type: ignore[arg-type]
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(WRONG_INPUT)
        except KeyboardInterrupt:
            print("interrupted; what was saved before is kept", file=sys.stderr)
            sys.exit(INTERRUPTED)

    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(guarded)()
    except SystemExit as end:
        # Hydra has printed what is wrong with an override, but ends with 1 for it as for every failure.
        if end.code == 1 and not composed:
            sys.exit(WRONG_INPUT)
        raise
