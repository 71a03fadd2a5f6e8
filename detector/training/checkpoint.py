"""Checkpoints: one file with the weights and all that is needed to build the network around them, and to go on.

A run keeps three: `last.pt`, `previous.pt` and `best.pt`. A new one is written beside them under another name, synced,
read back and compared with its checksums; only then do `last.pt` and it change names. So whenever a run is killed, one
of the first two is whole. The checksums are those of the zip archive that torch.save writes: a file of their own
could not be replaced together with it.

For sharing there are `.safetensors` with a `.json` of the same name beside it, which `scripts/export.py` writes. Either
form may come from a stranger, and can only be wrong, not dangerous: neither is able to hold code, and what they say is
checked before it is used.
"""

import hashlib
import io
import json
import logging
import math
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from detector.data.classes import check_classes
from detector.errors import InputError, RunFailure
from detector.models.weights import read_state
from detector.runtime.files import ZIP_DAMAGE, replace, write_atomically

logger = logging.getLogger(__name__)

SHARED_FORMAT = "fast-rcnn weights 1"
MAX_JSON_BYTES = 10_000_000
OF_THIS_MACHINE = ("root", "dir", "folder", "resume", "train_proposals", "val_proposals")  # settings, of any group
GROUPS = ("data", "model", "roi", "detect", "proposals")  # of settings that evaluation takes from training

FORMAT = 1  # of what a run is taken up from; a checkpoint without a number is older, and has weights only
TO_EVALUATE = {"model", "config", "classes", "iteration"}
TO_RESUME = TO_EVALUATE | {"optimizer", "evaluated", "best", "fingerprints", "processes"}
KINDS_TO_RESUME = {"optimizer": dict, "evaluated": int, "best": int | float, "fingerprints": dict, "processes": int}
MAX_FAILED = 3  # writes, one after the other
SEAL = b"sha256 "
SEAL_BYTES = len(SEAL) + 64
NEWEST_FIRST = ("last.pt", "previous.pt", "best.pt")


class Checkpoints:
    """The checkpoints of a run, in one folder.

    One that cannot be written leaves those before as they are and is an error in the log. Raises RunFailure at the
    third in a row, and where it was the run's final one. `failed`: how many were so, up to the last one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failed = 0

    def save_last(self, content: dict, final: bool = False) -> None:
        """Write `last.pt`; the one that was `last.pt` becomes `previous.pt`."""
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

    def best_score(self) -> float:
        """That of `best.pt`; without one, or with a damaged one, any is better."""
        try:
            return load_to_resume(self.folder / "best.pt")["best"]
        except InputError:
            return -math.inf

    @contextmanager
    def tolerate_write_errors(self, what: str, final: bool) -> Iterator[None]:
        """Whatever is written here to the run's folder may fail in the same way."""
        try:
            yield
        except OSError as error:
            self.failed += 1
            message = f"{what} could NOT be written: {error}. The checkpoints before are intact"
            if final or self.failed == MAX_FAILED:
                raise RunFailure(message) from error
            logger.error(message)


def _stage(folder: Path, content: dict) -> Path:
    """A new file with the content, known to be whole."""
    data = io.BytesIO()
    torch.save({"format": FORMAT, **content}, data)
    _seal(data)
    staged = folder / ".next.pt.unfinished"
    with data.getbuffer() as view:  # let go here: Python 3.12.1 crashes where it finds one that an error has kept
        write_atomically(staged, view)
    if damage := verify_integrity(staged):
        staged.unlink()
        raise OSError(f"{folder}: what was written did not come back: {damage}")
    return staged


def _seal(data: io.BytesIO) -> None:
    """Append a digest of a zip file as its comment: the zip's own checksums leave out names, sizes and kinds."""
    digest = SEAL + hashlib.sha256(data.getbuffer()).hexdigest().encode()
    data.seek(-2, io.SEEK_END)  # the length of the comment, the last thing in a zip file
    data.write(len(digest).to_bytes(2, "little") + digest)


def _seal_of(path: Path) -> str | None:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - SEAL_BYTES))
        last = file.read()
    return last.removeprefix(SEAL).decode("latin-1") if last.startswith(SEAL) else None


def _digest(path: Path) -> str:
    """That of the file as it was before `_seal`."""
    digest, left = hashlib.sha256(), path.stat().st_size - SEAL_BYTES - 2
    with open(path, "rb") as file:
        while left > 0:
            piece = file.read(min(left, 2**20))
            digest.update(piece)
            left -= len(piece) or left
    digest.update(bytes(2))
    return digest.hexdigest()


def verify_integrity(path: Path) -> str | None:
    """What is wrong with the file, None if it is whole: truncated, empty, and changed bytes are all found.

    Of a file that `Checkpoints` did not write only what its zip's own checksums cover.
    """
    try:
        if seal := _seal_of(path):
            return None if seal == _digest(path) else "its bytes are not those that were written"
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
        return f"checksum of {changed} does not match" if changed else None
    except ZIP_DAMAGE as error:
        return f"{error or type(error).__name__} ({path.stat().st_size} bytes)" if path.is_file() else "no such file"


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint to evaluate it, in either form: tensors and plain values only.

    Raises InputError if the file is not there, is damaged, or is no checkpoint of this program.
    """
    content = read_state(path)
    if path.suffix != ".safetensors" and (damage := verify_integrity(path)):  # torch.load does not look at checksums
        raise InputError(f"{path}: damaged: {damage}")
    if path.suffix == ".safetensors":
        content = {"model": content} | _read_json(path.with_suffix(".json"))
    if missing := TO_EVALUATE - content.keys():
        raise InputError(f"{path}: not a checkpoint of this program: it has no {', '.join(sorted(missing))}")
    _check_content(path, content)
    return content


def load_to_resume(path: Path) -> dict:
    """Read a checkpoint to go on from it. Raises InputError as above, and for one of another version."""
    content = load_checkpoint(path)
    if not isinstance(content.get("format", 0), int):
        raise InputError(f"{path}: not a checkpoint of this program: its format is no number")
    if content.get("format", 0) > FORMAT:
        raise InputError(f"{path}: made by a newer version of this program (format {content['format']}, not {FORMAT})")
    if missing := TO_RESUME - content.keys():
        raise InputError(
            f"{path}: cannot be taken up again: it has no {', '.join(sorted(missing))}, perhaps because an older "
            f"version made it. A new run from its weights: model.weights={path} run.dir=ANOTHER"
        )
    for name, kind in KINDS_TO_RESUME.items():
        if not isinstance(content[name], kind):
            raise InputError(
                f"{path}: not a checkpoint of this program: its {name} is a {type(content[name]).__name__}"
            )
    if not all(isinstance(value, str) for value in content["fingerprints"].values()):
        raise InputError(f"{path}: not a checkpoint of this program: its fingerprints has more than texts")
    return content


def load_state(
    checkpoint: dict, model: nn.Module, optimizer: torch.optim.Optimizer, averaged: AveragedModel | None = None
) -> None:
    """Fill the model, its average, and the optimizer's momentum; its rates and the like are as they are set now.

    Raises InputError if they do not fit.
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


def _fits(value: Any, parameter: Tensor) -> bool:
    """Whether a part of an optimizer's state is of this weight: a number, or as large, or summed along some axes."""
    if not isinstance(value, Tensor) or not value.dim():
        return True
    sides = zip(value.shape, parameter.shape, strict=False)
    return value.dim() == parameter.dim() and all(mine in (1, theirs) for mine, theirs in sides)


def newest_valid(folder: Path) -> Path | None:
    """The newest whole checkpoint in the folder, None if there is none at all; damaged ones are reported and kept.

    A damaged file steps aside, to NAME.damaged, so that it never takes the place of a whole one. Raises InputError if
    every one is damaged.
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
    """Raise InputError unless every part is of the kind that it must be."""

    def require(sound: bool, what: str) -> None:
        if not sound:
            raise InputError(f"{path}: not a checkpoint of this program: {what}")

    config, classes = content["config"], content["classes"]
    for part in ("model", "raw_model") if "raw_model" in content else ("model",):
        model = content[part]
        require(isinstance(model, dict) and bool(model), f"`{part}` is no dict of tensors")
        for name, value in model.items():
            require(isinstance(name, str) and isinstance(value, Tensor), f"`{part}` has {name!r}, which is no tensor")
            plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
            # A few bytes may pose as a huge tensor, by a stride of 0.
            require(plain and value.untyped_storage().nbytes() >= value.nbytes, f"`{part}`: {name} is no plain tensor")
    require(isinstance(config, dict), "`config` is no dict")
    for group in GROUPS:
        require(isinstance(config.get(group), dict), f"`config` has no settings of {group}")
    require(_is_plain(config), "`config` holds more than plain values")
    require(isinstance(classes, list) and bool(classes), "`classes` is no list of names")
    check_classes(f"{path}, classes", classes)
    iteration = content["iteration"]
    require(isinstance(iteration, int) and iteration >= 0, "`iteration` is no number of steps")


def _is_plain(value: Any, depth: int = 10) -> bool:
    """Whether this is as from a yaml file: dicts by name, lists, texts, numbers, null."""
    if type(value) is dict:  # torch's reader makes other kinds too, which no yaml file can hold
        return depth > 0 and all(type(key) is str and _is_plain(item, depth - 1) for key, item in value.items())
    if type(value) is list:
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return value is None or type(value) in (str, bool, int, float)


def save_weights(folder: Path, checkpoint: dict) -> None:
    """Write a checkpoint as `model.safetensors` and `model.json` into `folder`, for sharing.

    Of the settings, those that name a place on this machine become null. Raises InputError if one of the files is
    there already. If the second cannot be written, the first is taken away again.
    """
    weights, description = folder / "model.safetensors", folder / "model.json"
    for path in (weights, description):
        if path.exists():
            raise InputError(f"{path} is there already, and nothing is overwritten: name another folder")
    config = _without_places(checkpoint["config"])
    if checkpoint["config"]["model"]["weights"] is not None:  # whether there were some decides how it was built
        config["model"]["weights"] = Path(checkpoint["config"]["model"]["weights"]).name
    about = {
        "format": SHARED_FORMAT,
        "classes": checkpoint["classes"],
        "iteration": checkpoint["iteration"],
        "config": config,
    }
    tensors = {name: value.contiguous() for name, value in checkpoint["model"].items()}
    write_atomically(weights, save(tensors, {"format": "pt"}))
    try:
        write_atomically(description, (json.dumps(about, indent=1) + "\n").encode())
    except BaseException:
        weights.unlink()
        raise


def _without_places(value: Any, places: Collection[str] = OF_THIS_MACHINE) -> Any:
    """Settings without what names a file or folder of this machine: by its name, or as a text with a separator."""
    if isinstance(value, Mapping):
        return {key: None if key in places else _without_places(item, places) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item, ()) for item in value]  # data sets that are joined lie inside of data.root
    return None if isinstance(value, str) and ("/" in value or "\\" in value) else value


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; weights in .safetensors need it beside them, as scripts/export.py wrote it"
        )
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError(f"{path}: has {path.stat().st_size} bytes, more than any description of a network")
    try:
        about = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: broken JSON: {error}") from None
    if not isinstance(about, dict) or about.get("format") != SHARED_FORMAT:
        raise InputError(
            f"{path}: its format is not '{SHARED_FORMAT}': not written by this program's scripts/export.py"
        )
    return {key: about[key] for key in ("config", "classes", "iteration") if key in about}
