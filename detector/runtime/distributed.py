"""Several processes as one run: ranks and communication.

torchrun or srun starts the processes. With one process, these functions return at once.
"""

import itertools
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from detector.errors import InputError, RunFailure
from detector.runtime.ranks import RankInfo, is_main, rank_info

T = TypeVar("T")

# The work of one process while the others wait (proposals, scoring, a checkpoint) may take long. A process that dies
# is still noticed at once: its connection breaks. For one that hangs, or whose machine is lost, see `_watch`.
PATIENCE = timedelta(days=1)
_patient: Any = None  # the process group with this timeout


def require_divisible(setting: str, number: int) -> None:
    """Raise InputError unless the processes of the run can share this number of images equally."""
    if number % rank_info().world_size:
        raise InputError(f"{setting}={number}: must be a multiple of the number of processes, {rank_info().world_size}")


@contextmanager
def process_group(timeout_s: int) -> Iterator[None]:
    """Connect the processes of the run. If one does not respond for `timeout_s`, the others end too."""
    global _patient
    if rank_info().world_size == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    for key, value in _rendezvous().items():
        os.environ.setdefault(key, value)
    _require_rendezvous()
    where, timeout = rank_info(), timedelta(seconds=timeout_s)
    try:
        store, _, _ = next(dist.rendezvous("env://", where.rank, where.world_size, timeout=timeout))
        # After a restart, torchrun's store still holds the addresses of the previous processes.
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(backend, store=store, rank=where.rank, world_size=where.world_size, timeout=timeout)
        _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        ended = threading.Event()
        watch = threading.Thread(target=_watch, args=(store.clone(), where, timeout_s, ended), daemon=True)
        watch.start()
        try:
            yield
            barrier()  # otherwise the others would consider the first one to end as lost
        finally:
            ended.set()
            watch.join(1)  # the interpreter aborts if it ends while a thread uses the store
        dist.destroy_process_group()  # not after a failure, where it could wait for dead processes
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        raise RunFailure(
            f"process {where.rank} of {where.world_size} stops: another process of this run ended or does not respond; "
            f"its own message says why ({str(error).splitlines()[0][:200]})"
        ) from error


def _watch(store: dist.Store, here: RankInfo, timeout_s: int, ended: threading.Event) -> None:
    """Run in a thread of every process: count up in the store, and end this process if the count of another stops."""
    others = [rank for rank in range(here.world_size) if rank != here.rank]
    begun = time.monotonic()
    counts, changed = dict.fromkeys(others, b""), dict.fromkeys(others, begun)
    suspicions = 0  # in a row
    for number in itertools.count():
        lost, enough = None, 2
        try:
            store.set(f"alive {here.rank}", str(number))
            if time.monotonic() - begun > timeout_s / 2:  # this process was suspended itself, perhaps all were
                changed = dict.fromkeys(others, time.monotonic())
            begun = time.monotonic()
            for rank in others:
                count = store.get(f"alive {rank}")  # waits for the first count
                if count != counts[rank]:
                    counts[rank], changed[rank] = count, time.monotonic()
                if time.monotonic() - changed[rank] > timeout_s:
                    lost = f"process {rank} hangs, or its machine is gone: no sign of it for {timeout_s} s"
                    # The store may be in the first process, which then ends last, so that the others learn it too.
                    enough = 2 if here.rank else 4
        except RuntimeError as error:
            lost = f"the process at the rendezvous does not respond ({str(error).splitlines()[0][:200]})"
        suspicions = suspicions + 1 if lost else 0
        if suspicions == enough:
            print(f"error: process {here.rank} of {here.world_size} stops: {lost}", file=sys.stderr, flush=True)
            os._exit(1)
        if ended.wait(timeout_s / 10):
            return


def _rendezvous() -> dict[str, str]:
    """The rendezvous of processes started by srun: the first machine of the step, at a port from the job id."""
    if "SLURM_STEP_NODELIST" not in os.environ:
        return {}
    port = 20000 + int(os.environ.get("SLURM_JOB_ID", 0)) % 20000
    return {"MASTER_ADDR": first_host(os.environ["SLURM_STEP_NODELIST"]), "MASTER_PORT": str(port)}


def _require_rendezvous() -> None:
    """Raise InputError for an invalid address, which torch would try for minutes."""
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    try:
        if not 0 < int(port) < 2**16:
            raise ValueError
        socket.getaddrinfo(host, int(port))
    except (ValueError, OSError):
        raise InputError(
            f"the environment variables MASTER_ADDR={host} MASTER_PORT={port}: must be a host and a port, as torchrun "
            "or srun sets them"
        ) from None


def first_host(nodes: str) -> str:
    """The first name in SLURM's compact notation: `gpu[03-05,9],cpu1` -> `gpu03`."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?([^,\[]*)", nodes)
    return "".join(part or "" for part in match.groups()) if match else nodes


def _is_lost_connection(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or any(
        sign in text for sign in ("Connection closed", "Connection reset", "Timed out waiting", "gloo/", "NCCL")
    )


def all_reduce_sum(number: int) -> int:
    """The sum over all processes."""
    return _all_reduce(number, dist.ReduceOp.SUM)


def all_reduce_max(number: int) -> int:
    """The maximum over all processes."""
    return _all_reduce(number, dist.ReduceOp.MAX)


def _all_reduce(number: int, how: Any) -> int:
    if not dist.is_initialized():
        return number
    tensor = torch.tensor(number)
    dist.all_reduce(tensor, how)
    return int(tensor)


def mean(tensor: Tensor) -> Tensor:
    """The mean over all processes; a new tensor."""
    if not dist.is_initialized():
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor / rank_info().world_size


def gather(value: T) -> list[T]:
    """The value of each process, in rank order. Waits for the slowest."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * rank_info().world_size
    dist.all_gather_object(values, value, group=_patient)
    return values


def gather_interleaved(items: list[T]) -> list[T]:
    """One list from the items of n processes, of which process r has the items r, r + n, r + 2n ..."""
    parts = gather(items)
    whole: list[Any] = [None] * sum(map(len, parts))
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole


def broadcast_from_main(function: Callable[[], T]) -> T:
    """The result of `function`, called in the first process only; its InputError is raised in all."""
    if not dist.is_initialized():
        return function()
    outcome: list[Any] = [None]
    if is_main():
        try:
            outcome = [function()]
        except InputError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, group=_patient)
    if isinstance(outcome[0], InputError):
        raise_once(outcome[0])
    return outcome[0]


@contextmanager
def shared_errors() -> Iterator[None]:
    """Raise an InputError of one process in all, so that none waits. No collective calls are allowed inside."""
    if not dist.is_initialized():
        yield
        return
    mine = None
    try:
        yield
    except InputError as error:
        mine = error
    errors = [error for error in gather(mine) if error is not None]
    if errors:
        raise_once(errors[0])


def raise_once(error: InputError | RunFailure) -> NoReturn:
    """Raise an error that all processes have; only the first one prints it."""
    if not is_main():
        raise SystemExit(2 if isinstance(error, InputError) else 1)
    raise error


def barrier() -> None:
    """Wait for all processes, with a long timeout."""
    gather(None)


def wrap_ddp(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap the model so that gradients are averaged over all processes, without copying them."""
    if not dist.is_initialized():
        return model
    if device.type == "cuda":
        torch.cuda.set_device(device)
    devices = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def broadcast_buffers(model: nn.Module) -> None:
    """Copy the buffers of the first process to all: each has its own batch norm statistics after a step."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
