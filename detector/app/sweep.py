"""A sweep (-m): every run is composed and validated, then Hydra starts them."""

import itertools
import math
import os
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig

from detector.app.compose import CONFIGS, compose, in_words, search_path, typed_settings
from detector.errors import InputError
from detector.runtime.exits import FAILED, KEPT, WRONG_INPUT, exit_status
from detector.schema import Settings, flatten

Run = Callable[[Any], float | None]


def sweep(run: Run, name: str, schema: type[Settings], config_dir: str | None, given: list[str]) -> int:
    """Compose and validate every run, then let Hydra start them. Returns the exit status of the first failed run."""
    runs = [flatten(typed_settings(schema, compose(schema, config_dir, job, name))) for job in _jobs(given)]
    for key in ("run.dir", "out"):
        folders = Counter(run.get(key, "None") for run in runs)
        if shared := [folder for folder, count in folders.items() if folder != "None" and count > 1]:
            raise InputError(f"{key}={shared[0]}: each run of a sweep needs its own folder: leave this out")
    failed: list[int] = []
    started_in = os.getpid()

    def job(config: DictConfig) -> float:
        """One run; if it fails, its score is NaN, and the others continue."""
        scores: list[float | None] = []
        try:
            status = exit_status(lambda: scores.append(run(typed_settings(schema, config))), KEPT)
        except SystemExit as end:  # of a process other than the first: its error is printed by that one
            status = end.code if isinstance(end.code, int) else FAILED
        # From a process that a launcher started, only the exit status reports the failure.
        if status and (os.getpid() != started_in or status not in (FAILED, WRONG_INPUT)):
            sys.exit(status)
        if status:
            failed.append(status)
        return scores[0] if scores and scores[0] is not None else math.nan

    sys.argv[1:] = ["-m", *search_path(config_dir), *given]
    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(job)()
    if failed:
        print(f"error: {len(failed)} run(s) of the sweep failed; see the errors above", file=sys.stderr)
    return failed[0] if failed else 0


def _jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of each run of a sweep, without values that only the sweeper chooses, such as from an interval."""
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
