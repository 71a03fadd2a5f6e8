"""How train.py and evaluate.py start: from the command line to typed settings, then to the program, or to a sweep.

Settings are composed with Hydra's Compose API, which instantiates nothing that a file names, and validated before
torch is imported. Only a sweep (-m) is run by Hydra itself, after all its choices have been composed and validated.
"""

import itertools
import math
import os
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from detector.compose import CONFIGS, choosable_groups, compose, in_words, plain, quoted, search_path
from detector.errors import InputError
from detector.restore import of_chosen_groups, require_unchanged, restored, run_to_restore
from detector.runtime.exits import FAILED, WRONG_INPUT, exit_status, stdout_closed
from detector.runtime.logs import set_up_logging
from detector.schema import Settings, defaults, describe, missing_keys, parse
from detector.settings import TrainSettings

KEPT = "what was saved before is kept"
OF_HYDRA = re.compile(r"[+~]*hydra[./@]")

Schema = TypeVar("Schema", bound=Settings)
Program = Callable[[Schema], float | None]


def run_program(program: Program, name: str, schema: type[Schema]) -> None:
    """Run `program` with the settings of configs/`name`.yaml and the command line, and end the process.

    Its result, a score, is what a sweeper of Hydra's may optimize. The exit status is that of `exit_status`.
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
        return _sweep(program, name, schema, arguments)
    overrides = [quoted(override) for override in arguments.overrides]
    if of_hydra := [override for override in overrides if OF_HYDRA.match(override)]:
        raise InputError(f"{of_hydra[0]}: Hydra's own settings apply to sweeps only: python {name}.py -m ...")
    folder = run_to_restore(overrides) if schema is TrainSettings else None
    config = compose(schema, arguments, overrides if folder is None else of_chosen_groups(overrides), name)
    if folder is not None:
        config = restored(folder, overrides, plain(config))
    if arguments.help:
        _parser(name).print_help()
        print(f"\nSettings:\n{describe(schema, OmegaConf.to_container(config))}")
        return 0
    if arguments.cfg:
        print(OmegaConf.to_yaml(config), end="")
    settings = _typed(schema, config)
    if folder is not None and isinstance(settings, TrainSettings):
        require_unchanged(folder, settings)
    if not arguments.cfg:  # which validates too: a check before a long run
        _run(program, settings)
    return 0


def compose_settings(name: str, schema: type[Schema], overrides: list[str]) -> Schema:
    """The settings of configs/`name`.yaml with these overrides, for scripts. Raises InputError for invalid ones."""
    ConfigStore.instance().store(f"{name}_settings", defaults(schema))
    return _typed(schema, compose(schema, Namespace(config_dir=None), [quoted(item) for item in overrides], name))


def _typed(schema: type[Schema], config: DictConfig) -> Schema:
    """Validated settings. Raises InputError also if one was removed, as by ~train.iterations."""
    values = plain(config)
    if removed := missing_keys(defaults(schema), values):
        raise InputError(f"{removed[0]} is not given: settings cannot be removed")
    return parse(schema, values)


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


def _sweep(program: Program, name: str, schema: type[Settings], arguments: Namespace) -> int:
    """Compose and validate every run, then let Hydra start them. Returns the exit status of the first failed run."""
    for overrides in _jobs(arguments.overrides):
        _typed(schema, compose(schema, arguments, overrides, name))
    failed: list[int] = []
    started_in = os.getpid()

    def job(config: DictConfig) -> float:
        """One run; if it fails, its score is NaN, and the others continue."""
        scores: list[float | None] = []
        try:
            status = exit_status(lambda: scores.append(_run(program, _typed(schema, config))), KEPT)
        except SystemExit as end:  # of a process other than the first: its error is printed by that one
            status = end.code if isinstance(end.code, int) else FAILED
        # From a process that a launcher started, only the exit status reports the failure.
        if status and (os.getpid() != started_in or status not in (FAILED, WRONG_INPUT)):
            sys.exit(status)
        if status:
            failed.append(status)
        return scores[0] if scores and scores[0] is not None else math.nan

    sys.argv[1:] = ["-m", *search_path(arguments), *arguments.overrides]
    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(job)()
    if failed:
        print(f"error: {len(failed)} run(s) of the sweep failed; see the errors above", file=sys.stderr)
    return failed[0] if failed else 0


def _jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of each run of a sweep; values that only a sweeper chooses, as of an interval, are left out."""
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        choices = [
            [f"{item.get_key_element()}={value}" for value in item.sweep_string_iterator()]
            for item in parsed
            if item.is_choice_sweep() or item.is_range_sweep()
        ]
    except HydraException as error:
        if "ConfigLoader is not set" in str(error):
            raise InputError("glob(...) is not supported: list the choices, KEY=A,B") from None
        wrong = f"{error.override}: " if isinstance(error, OverrideParseException) else ""
        raise InputError(f"{wrong}{in_words(str(error))}") from None
    fixed = [str(item.input_line) for item in parsed if not item.is_sweep_override()]
    return [[*fixed, *combination] for combination in itertools.product(*choices)]
