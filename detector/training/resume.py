"""Resume a run: find its checkpoint, and verify that it is still the same run."""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

from detector.errors import InputError
from detector.runtime.distributed import barrier, broadcast_from_main, shared_errors
from detector.runtime.files import UNFINISHED, numbered, replace, write_atomically
from detector.runtime.logs import log_to_file
from detector.runtime.ranks import is_main
from detector.schema import FIXED, change_table, changed, parse
from detector.settings import Training, TrainSettings
from detector.training.checkpoint import NEWEST_FIRST, load_checkpoint, load_to_resume, newest_valid, verify_integrity
from detector.training.run_folder import FolderLock, check_run_folder, is_empty, make_run_folder, require_run

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A run that begins, or is resumed."""

    lock: FolderLock
    folder: Path | None  # None until `prepare_folder`, for a run that begins
    path: Path | None  # the checkpoint that is resumed
    checkpoint: dict | None  # its content

    @property
    def start(self) -> int:
        """The iteration after which training starts."""
        return self.checkpoint["iteration"] if self.checkpoint else 0

    @shared_errors()
    def is_complete(self, settings: TrainSettings) -> bool:
        """Whether nothing is left to do. Raises InputError if the settings are those of another run."""
        checkpoint = self.checkpoint
        if checkpoint is None or lacks_evaluation(checkpoint, settings.train):
            return False
        best_at = checkpoint.get("best_at", self.start)
        if self.start < settings.train.iterations and not is_out_of_patience(settings.train, self.start, best_at):
            return False
        check_same_run(checkpoint, settings, tuple(checkpoint["classes"]), checkpoint["fingerprints"])
        logger.info("already complete: %d of %d iterations in %s", self.start, settings.train.iterations, self.path)
        return True

    def prepare_folder(self, settings: TrainSettings) -> None:
        """Create the folder of a new run, or restore that of a resumed one to its state at the checkpoint."""
        if self.folder is None:
            self.folder = broadcast_from_main(lambda: self._make_folder(settings.run.dir))
            log_to_file(self.folder / "train.log")
        if is_main():
            if self.path is not None and settings.resume != "auto":
                promote_checkpoint(self.path, self.start)
            clean_up(self.folder, self.start)
        barrier()

    def _make_folder(self, run_dir: str | None) -> Path:
        folder = self.lock.take(make_run_folder(run_dir))
        check_run_folder(run_dir)  # again, with the lock: another run may have been faster
        return folder


@contextmanager
def open_run(settings: TrainSettings) -> Iterator[Run]:
    """The run that the settings select; its folder is locked against other processes until the context ends."""
    with FolderLock() as lock:
        folder, path = broadcast_from_main(lambda: _find_run_or_history(settings, lock))
        if folder is not None:
            log_to_file(folder / "train.log")
        with shared_errors():
            checkpoint = load_to_resume(path) if path else None
        yield Run(lock, folder, path, checkpoint)


def find_run(resume: str | None, run_dir: str | None, lock: FolderLock) -> tuple[Path | None, Path | None]:
    """The folder of the run to resume, locked, and its checkpoint; None for a new folder or without a checkpoint.

    `resume` is null, `auto` (the newest intact checkpoint of `run_dir`, if there is one) or a file. Raises InputError
    for a file that is missing or damaged, for a folder that is not that of a run, and if another run is writing to it.
    """
    if resume is None:
        check_run_folder(run_dir)
        return None, None
    if resume != "auto":
        path = Path(resume)
        if path.is_dir():
            raise InputError(f"resume: {path} is a folder: in a sweep, resume=auto run.dir={path}, or resume=FILE")
        if not path.exists():
            raise InputError(
                f"resume={resume}: no such file; it is auto, null, the folder of a run, or RUN/checkpoints/*.pt"
            )
        if damage := verify_integrity(path):  # before the log is written
            raise InputError(f"resume: {path} cannot be read: {damage}")
        folder = path.resolve().parent.parent  # of /last.pt, which has one parent, too
        if path.resolve().parent.name != "checkpoints" or (run_dir and Path(run_dir).resolve() != folder):
            raise InputError(f"resume: {path} is not in {run_dir or 'RUN'}/checkpoints")
        require_run(folder)
        lock.take(folder)
        return folder, path
    if run_dir is None:
        raise InputError("resume=auto needs run.dir=FOLDER, the folder of the run to resume")
    folder = Path(run_dir)
    if is_empty(folder):
        check_run_folder(run_dir)
        logger.info("nothing to resume in %s: a new run begins", folder)
        return None, None
    require_run(folder)
    lock.take(folder)
    newest = newest_valid(folder / "checkpoints")
    if newest is None:
        logger.info("no checkpoint in %s yet: the run starts from iteration 0", folder)
    return folder, newest


def _find_run_or_history(settings: TrainSettings, lock: FolderLock) -> tuple[Path | None, Path | None]:
    """As `find_run`. Raises InputError for a run that had a checkpoint and has none now: it would be overwritten."""
    folder, path = find_run(settings.resume, settings.run.dir, lock)
    if folder is not None and path is None:
        done = max((n for n in map(_iteration_of, _history(folder)) if n != math.inf), default=0)
        was_evaluated = (folder / "metrics.json").is_file() or any('"loss/val"' in line for line in _history(folder))
        if done > settings.train.checkpoint_every or was_evaluated:
            raise InputError(
                f"resume: {folder} has results up to iteration {done}, but no checkpoint: they were deleted or moved. "
                "Put them back, or begin a new run with another run.dir"
            )
    return folder, path


def promote_checkpoint(path: Path, iteration: int) -> None:
    """Copy a checkpoint, of this iteration, to `last.pt`, from which `resume=auto` then resumes too.

    The previous `last.pt`, and checkpoints of later iterations, are renamed to NAME-of-ITERATION.pt.
    """
    if path.name == "last.pt":
        return
    copy = path.with_name(".last.pt.unfinished")
    write_atomically(copy, path.read_bytes())
    for other in (path.with_name(name) for name in NEWEST_FIRST if name != path.name):
        if other.exists():
            _archive(other, iteration)
    replace(copy, path.with_name("last.pt"))


def _archive(path: Path, iteration: int) -> None:
    """Rename a checkpoint of the run if it is of a later iteration, or `last.pt`."""
    try:
        found = load_checkpoint(path)["iteration"]
    except InputError:
        found = "unknown"
    if path.name == "last.pt" or found == "unknown" or found > iteration:
        wanted = path.with_name(f"{path.stem}-of-{found}.pt")
        aside = next(name for name in numbered(wanted, ".pt") if not name.exists())
        replace(path, aside)
        logger.warning("%s is now %s: the run goes back to iteration %d", path, aside.name, iteration)


def clean_up(folder: Path, iteration: int) -> None:
    """Restore a run's folder to its state at the checkpoint of this iteration.

    Removes partial files and the lines of metrics.jsonl after the checkpoint, whose steps are repeated. For a run that
    restarts from iteration 0, that file is kept under another name, metrics-2.jsonl.
    """
    for path in folder.rglob(UNFINISHED):
        logger.info("removed %s, which was not finished", path)
        path.unlink()
    path, lines = folder / "metrics.jsonl", _history(folder)
    if iteration == 0 and lines:
        aside = next(name for name in numbered(path, ".jsonl") if not name.exists())
        replace(path, aside)
        logger.info("the run restarts; its metrics so far are kept as %s", aside.name)
        return
    kept = [line for line in lines if _iteration_of(line) <= iteration]
    if len(kept) < len(lines):
        logger.info("removed %d lines of metrics.jsonl, whose steps are repeated", len(lines) - len(kept))
        write_atomically(path, "".join(kept).encode())


def _history(folder: Path) -> list[str]:
    """The lines of metrics.jsonl, if there is one."""
    path = folder / "metrics.jsonl"
    return path.read_text("utf-8", "replace").splitlines(keepends=True) if path.is_file() else []


def _iteration_of(line: str) -> float:
    try:
        return int(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):  # truncated when the run was killed
        return math.inf


def check_same_run(
    checkpoint: Mapping, settings: TrainSettings, classes: tuple[str, ...], fingerprints: dict[str, str]
) -> None:
    """Raise InputError if the run of the checkpoint differs in anything that is fixed; log the other differences.

    Data and proposals are compared by content: `fingerprints` are their digests, by name.
    """
    problems = []
    if list(classes) != checkpoint["classes"]:
        problems.append(f"classes: {', '.join(checkpoint['classes'])} -> {', '.join(classes)}")
    trained = parse(TrainSettings, checkpoint["config"], "the settings of the checkpoint")
    changes = changed(trained, settings)
    if fixed := [change for change in changes if FIXED in change.policies]:
        problems.append(f"settings that are fixed:\n{indent(change_table(fixed), '  ')}")
    problems += [
        f"the {name}: fingerprint {checkpoint['fingerprints'].get(name, '')[:12]} -> {value[:12]}"
        for name, value in fingerprints.items()
        if checkpoint["fingerprints"].get(name) != value
    ]
    if problems:
        raise InputError(
            "resume: this is not the run of the checkpoint:\n  " + "\n  ".join(problems) + "\n"
            "Restore them, or begin a new run from its weights: model.weights=CHECKPOINT run.dir=ANOTHER"
        )
    if changes:
        logger.warning("settings that changed since the checkpoint:\n%s", change_table(changes))


def is_due(what: str, iteration: int, train: Training) -> bool:
    """Whether `log`, `eval` or `checkpoint` is due after this iteration."""
    every = {"log": train.log_every, "eval": train.eval_every, "checkpoint": train.checkpoint_every}[what]
    return iteration == train.iterations or iteration % every == 0


def is_out_of_patience(train: Training, iteration: int, best_at: int) -> bool:
    """Whether a run ends after this iteration because its evaluations are no longer better than at `best_at`."""
    return train.patience is not None and iteration - best_at >= train.patience * train.eval_every


def lacks_evaluation(checkpoint: Mapping, train: Training) -> bool:
    """Whether the run was stopped before completing the evaluation due at the checkpoint."""
    return is_due("eval", checkpoint["iteration"], train) and checkpoint["evaluated"] < checkpoint["iteration"]
