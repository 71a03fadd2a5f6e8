"""Checkpoints: one file with the weights and everything needed to build the network and to resume training.

A run keeps three: `last.pt`, `previous.pt` and `best.pt`. A new one is written beside them under another name, synced,
read back and compared with its digest; only then is `last.pt` renamed and replaced by it. Whenever a run is killed, one
of the first two is therefore intact. The digest is inside the zip archive that torch.save writes, because a separate
file could not be replaced together with it.

For sharing, sharing.py writes a `.safetensors` file with a `.json` file of the same name beside it. Both forms may be
untrusted: neither can contain code, and their contents are validated before use.
"""

import hashlib
import io
import logging
import math
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from detector.data.classes import check_classes
from detector.errors import InputError, RunFailure
from detector.models.weights import read_state
from detector.runtime.files import reading, replace, write_atomically
from detector.schema import parse
from detector.settings import CommonSettings
from detector.training.sharing import read_description

logger = logging.getLogger(__name__)

FORMAT = 2  # version of checkpoints and their settings; earlier ones are not supported
TO_EVALUATE = {"model", "config", "classes", "iteration"}
TO_RESUME = TO_EVALUATE | {"optimizer", "evaluated", "best", "fingerprints", "processes"}
KINDS_TO_RESUME = {"optimizer": dict, "evaluated": int, "best": int | float, "fingerprints": dict, "processes": int}
MAX_FAILED = 3  # failed writes in a row
SEAL = b"sha256 "
SEAL_BYTES = len(SEAL) + 64
NEWEST_FIRST = ("last.pt", "previous.pt", "best.pt")


class Checkpoints:
    """The checkpoints of a run, in one folder.

    A failed write leaves the existing checkpoints as they are and is logged as an error. Raises RunFailure at the third
    failure in a row, and if the run's final checkpoint fails. `failed` counts the current failures in a row.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failed = 0

    def save_last(self, content: dict, final: bool = False) -> None:
        """Write `last.pt`; the former `last.pt` becomes `previous.pt`."""
        last = self.folder / "last.pt"
        with self.tolerate_write_errors(f"the checkpoint of iteration {content['iteration']}", final):
            staged = _stage(self.folder, content)
            if last.exists():
                replace(last, self.folder / "previous.pt")
            replace(staged, last)
            self.failed = 0

    def save_best(self, content: dict, final: bool = False) -> None:
        """Write `best.pt`."""
        with self.tolerate_write_errors(f"the checkpoint of iteration {content['iteration']}", final):
            replace(_stage(self.folder, content), self.folder / "best.pt")
            self.failed = 0

    def best(self) -> tuple[float, int]:
        """Score and iteration of `best.pt`; -inf and 0 if it is missing or damaged."""
        try:
            content = load_to_resume(self.folder / "best.pt")
        except InputError:
            return -math.inf, 0
        return content["best"], content["iteration"]

    @contextmanager
    def tolerate_write_errors(self, what: str, final: bool) -> Iterator[None]:
        """Log a failed write to the run's folder inside this context, or raise RunFailure, as above."""
        try:
            yield
        except OSError as error:
            self.failed += 1
            message = f"{what} could NOT be written: {error}. The earlier checkpoints are intact"
            if final or self.failed == MAX_FAILED:
                raise RunFailure(message) from error
            logger.error(message)


def _stage(folder: Path, content: dict) -> Path:
    """Write the content to a new file and verify it."""
    data = io.BytesIO()
    torch.save({"format": FORMAT, **content}, data)
    _seal(data)
    staged = folder / ".next.pt.unfinished"
    with data.getbuffer() as view:  # released here: Python 3.12.1 crashes if an error keeps it alive
        write_atomically(staged, view)
    if damage := verify_integrity(staged):
        staged.unlink()
        raise OSError(f"{folder}: the written file failed verification: {damage}")
    return staged


def _seal(data: io.BytesIO) -> None:
    """Append a digest of a zip file as its comment: the zip's own checksums do not cover names, sizes and types."""
    digest = SEAL + hashlib.sha256(data.getbuffer()).hexdigest().encode()
    data.seek(-2, io.SEEK_END)  # the length of the comment, the last thing in a zip file
    data.write(len(digest).to_bytes(2, "little") + digest)


def _seal_of(path: Path) -> str | None:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - SEAL_BYTES))
        last = file.read()
    return last.removeprefix(SEAL).decode("latin-1") if last.startswith(SEAL) else None


def _digest(path: Path) -> str:
    """The digest of the file as it was before `_seal`."""
    digest, left = hashlib.sha256(), path.stat().st_size - SEAL_BYTES - 2
    with open(path, "rb") as file:
        while left > 0:
            piece = file.read(min(left, 2**20))
            digest.update(piece)
            left -= len(piece) or left
    digest.update(bytes(2))  # the length of the comment, which was 0
    return digest.hexdigest()


def verify_integrity(path: Path) -> str | None:
    """Describe the damage of a file, None if it is intact. Detects truncated and empty files and changed bytes.

    For a file that `Checkpoints` did not write, it finds only what the zip's own checksums cover.
    """
    try:
        with reading(path, "damaged", sys.maxsize):
            if seal := _seal_of(path):
                return None if seal == _digest(path) else "its bytes are not those that were written"
            with zipfile.ZipFile(path) as archive:
                changed = archive.testzip()
            return f"checksum of {changed} does not match" if changed else None
    except InputError as error:
        return str(error).removeprefix(f"{path}: ")


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint to evaluate it, in either form: only tensors and plain values.

    Raises InputError if the file is missing, is damaged, or is not a checkpoint of this program.
    """
    content = read_state(path)
    if path.suffix != ".safetensors" and (damage := verify_integrity(path)):  # torch.load ignores checksums
        raise InputError(f"{path}: damaged: {damage}")
    if path.suffix == ".safetensors":
        content = {"model": content} | read_description(path.with_suffix(".json"))
    if missing := TO_EVALUATE - content.keys():
        raise InputError(f"{path}: not a checkpoint of this program: it has no {', '.join(sorted(missing))}")
    if content.get("format", FORMAT) in range(FORMAT):
        raise InputError(
            f"{path}: made by an earlier version of this program (format {content['format']}, not {FORMAT}): train "
            f"again, or start from its weights: model.weights={path}"
        )
    _check_content(path, content)
    return content


def trained_settings(checkpoint: dict) -> CommonSettings:
    """The settings of a checkpoint. Unknown ones, of another version of the program, are ignored."""
    return parse(CommonSettings, checkpoint["config"], "the settings of the checkpoint", ignore_unknown=True)


def load_to_resume(path: Path) -> dict:
    """Read a checkpoint to resume from it. Raises InputError as above, and for another version."""
    content = load_checkpoint(path)
    if not isinstance(content.get("format", 0), int):
        raise InputError(f"{path}: not a checkpoint of this program: its format is not a number")
    if content.get("format", 0) > FORMAT:
        raise InputError(f"{path}: made by a newer version of this program (format {content['format']}, not {FORMAT})")
    if missing := TO_RESUME - content.keys():
        raise InputError(
            f"{path}: cannot be resumed: it has no {', '.join(sorted(missing))}, perhaps because an older "
            f"version made it. A new run from its weights: model.weights={path} run.dir=ANOTHER"
        )
    for name, kind in KINDS_TO_RESUME.items():
        if not isinstance(content[name], kind):
            raise InputError(
                f"{path}: not a checkpoint of this program: its {name} is a {type(content[name]).__name__}"
            )
    if not all(isinstance(value, str) for value in content["fingerprints"].values()):
        raise InputError(f"{path}: not a checkpoint of this program: its fingerprints are not all strings")
    return content


def load_state(
    checkpoint: dict, model: nn.Module, optimizer: torch.optim.Optimizer, averaged: AveragedModel | None = None
) -> None:
    """Load the model, its average, and the optimizer's state; learning rates and other options are not changed.

    Raises InputError if the shapes do not fit.
    """
    groups = optimizer.state_dict()["param_groups"]
    try:
        model.load_state_dict(checkpoint["model" if averaged is None else "raw_model"])
        if averaged is not None:
            averaged.module.load_state_dict(checkpoint["model"])
            averaged.n_averaged.fill_(checkpoint["iteration"])
        optimizer.load_state_dict({"state": checkpoint["optimizer"], "param_groups": groups})
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if not _fits(value, parameter):
                    raise ValueError(f"{name} {tuple(value.shape)} for a weight {tuple(parameter.shape)}")
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"resume: weights or momentum of the checkpoint do not fit this network: {str(error).splitlines()[-1]}"
        ) from None


def load_scaler(checkpoint: dict, scaler: torch.amp.GradScaler) -> None:
    """Load the state of the loss scaler. A run in another precision has none, and the scaler starts with its default.

    Raises InputError for an invalid state.
    """
    state = checkpoint.get("scaler", {})
    if not scaler.is_enabled() or state == {}:
        return
    own, names = scaler.state_dict(), ("scale", "_growth_tracker")
    values: list[Any] = [state.get(name) for name in names] if isinstance(state, dict) else []
    if [type(value) for value in values] != [float, int] or not 0 < values[0] < math.inf or values[1] < 0:
        raise InputError("resume: the state of the loss scaler in the checkpoint is invalid")
    scaler.load_state_dict(own | dict(zip(names, values, strict=True)))


def _fits(value: Any, parameter: Tensor) -> bool:
    """Whether a part of an optimizer's state fits this weight: a scalar, the same shape, or reduced along some axes."""
    if not isinstance(value, Tensor) or not value.dim():
        return True
    sides = zip(value.shape, parameter.shape, strict=False)
    return value.dim() == parameter.dim() and all(mine in (1, theirs) for mine, theirs in sides)


def newest_valid(folder: Path) -> Path | None:
    """The newest intact checkpoint in the folder, None if there is no checkpoint.

    A damaged file is reported and renamed to NAME.damaged, so that it never replaces an intact one. Raises InputError
    if all are damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for path in (folder / name for name in NEWEST_FIRST):
        if not path.exists():
            continue
        damage = verify_integrity(path)
        if damage is None:
            for bad, reason in damaged:
                aside = bad.with_name(bad.name + ".damaged")
                replace(bad, aside)
                logger.warning("%s is damaged (%s); it is now %s, and %s is used", bad, reason, aside.name, path.name)
            return path
        damaged.append((path, damage))
    if damaged:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in damaged)
        raise InputError(f"resume: every checkpoint in {folder} is damaged: {reasons}. A new run needs another run.dir")
    return None


def _check_content(path: Path, content: dict) -> None:
    """Raise InputError unless every part has its required type."""

    def require(valid: bool, what: str) -> None:
        if not valid:
            raise InputError(f"{path}: not a checkpoint of this program: {what}")

    config, classes = content["config"], content["classes"]
    for part in ("model", "raw_model") if "raw_model" in content else ("model",):
        model = content[part]
        require(isinstance(model, dict) and bool(model), f"`{part}` is not a dict of tensors")
        for name, value in model.items():
            require(isinstance(name, str) and isinstance(value, Tensor), f"`{part}` has {name!r}, not a tensor")
            plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
            # With a stride of 0, a few bytes may claim to be a huge tensor.
            require(
                plain and value.untyped_storage().nbytes() >= value.nbytes, f"`{part}`: {name} is not a plain tensor"
            )
    require(isinstance(config, dict), "`config` is not a dict")
    require(_is_plain(config), "`config` holds more than plain values")
    parse(CommonSettings, config, f"{path}: its settings", ignore_unknown=True)
    require(isinstance(classes, list) and bool(classes), "`classes` is not a list of names")
    check_classes(f"{path}, classes", classes)
    iteration = content["iteration"]
    require(isinstance(iteration, int) and iteration >= 0, "`iteration` is not a number of steps")


def _is_plain(value: Any, depth: int = 10) -> bool:
    """Whether a yaml file could hold this: dicts with string keys, lists, strings, numbers, null."""
    if type(value) is dict:  # torch.load also returns other types, which yaml cannot hold
        return depth > 0 and all(type(key) is str and _is_plain(item, depth - 1) for key, item in value.items())
    if type(value) is list:
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return value is None or type(value) in (str, bool, int, float)
