"""How train.py and evaluate.py start: from the command line to typed settings, then to the program, or to a sweep.

Settings are composed with Hydra's Compose API, which instantiates nothing that a file names, and validated before torch
is imported. Only a sweep (-m) is run by Hydra itself, after all its combinations have been composed and validated.
"""

import re
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from detector.app.compose import CONFIGS, Schema, choosable_groups, compose, plain, quoted, typed_settings
from detector.app.restore import of_chosen_groups, require_unchanged, restored, run_to_restore
from detector.app.sweep import sweep
from detector.errors import InputError
from detector.runtime.exits import KEPT, exit_status, stdout_closed
from detector.runtime.logs import set_up_logging
from detector.schema import Settings, defaults, describe
from detector.settings import TrainSettings

OF_HYDRA = re.compile(r"[+~]*hydra[./@]")
Program = Callable[[Schema], float | None]


def run_program(program: Program, name: str, schema: type[Schema]) -> None:
    """Run `program` with the settings of configs/`name`.yaml and the command line, and end the process.

    Its result, a score, can be optimized by a Hydra sweeper. The exit status is that of `exit_status`.
    """
    status = exit_status(lambda: _start(program, name, schema), KEPT)
    if status:
        sys.exit(status)


def _start(program: Program, name: str, schema: type[Schema]) -> int:
    ConfigStore.instance().store(f"{name}_settings", defaults(schema))
    arguments = _parser(name).parse_intermixed_args()
    if arguments.multirun:
        if arguments.help or arguments.cfg:
            raise InputError("--multirun cannot be combined with --help or --cfg")
        return sweep(partial(_run, program), name, schema, arguments.config_dir, arguments.overrides)
    overrides = [quoted(override) for override in arguments.overrides]
    if of_hydra := [override for override in overrides if OF_HYDRA.match(override)]:
        raise InputError(f"{of_hydra[0]}: Hydra's own settings apply to sweeps only: python {name}.py -m ...")
    folder = run_to_restore(overrides) if schema is TrainSettings else None
    config = compose(schema, arguments.config_dir, overrides if folder is None else of_chosen_groups(overrides), name)
    if folder is not None:
        config = restored(folder, overrides, plain(config))
    if arguments.help:
        _parser(name).print_help()
        print(f"\nSettings:\n{describe(schema, OmegaConf.to_container(config))}")
        return 0
    if arguments.cfg:
        print(OmegaConf.to_yaml(config), end="")
    settings = typed_settings(schema, config)
    if folder is not None and isinstance(settings, TrainSettings):
        require_unchanged(folder, settings)
    if not arguments.cfg:  # which validates too: a check before a long run
        _run(program, settings)
    return 0


def _parser(name: str) -> ArgumentParser:
    groups = choosable_groups(name)
    choices = [f"{group}={'|'.join(sorted(path.stem for path in (CONFIGS / group).iterdir()))}" for group in groups]
    parser = _Parser(
        Path(sys.argv[0]).name, "%(prog)s [OPTION ...] [GROUP=CHOICE ...] [SETTING=VALUE ...]", add_help=False,
        epilog="  ".join(choices),
    )  # fmt: skip
    parser.add_argument("overrides", nargs="*", metavar="GROUP=CHOICE, SETTING=VALUE")
    parser.add_argument("-h", "--help", action="store_true", help="list all settings, with the values given")
    parser.add_argument("--cfg", "-c", choices=["job"], help="print the settings as yaml, and exit")
    parser.add_argument("-m", "--multirun", action="store_true", help="a sweep: one run for each choice of A=x,y")
    parser.add_argument("--config-dir", "-cd", help="folder with further files of settings, such as experiment/X.yaml")
    return parser


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def _run(program: Program, settings: Settings) -> float | None:
    from torch.distributed.elastic.multiprocessing.errors import record  # not before the settings are validated

    set_up_logging()
    try:
        return record(program)(settings)  # lets torchrun report the error
    except BrokenPipeError:
        if not stdout_closed():
            raise
        return None  # the results are in files
