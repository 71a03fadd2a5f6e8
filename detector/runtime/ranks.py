"""The rank of this process in its run. Imports nothing slow."""

import os
from dataclasses import dataclass

from detector.errors import InputError


@dataclass(frozen=True)
class RankInfo:
    """The rank of a process in its run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on its machine: the index of its GPU


def rank_info() -> RankInfo:
    """The rank from the environment variables of torchrun, or else of srun."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _valid(_number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_RANK", "0"))
    if "SLURM_STEP_NUM_TASKS" in os.environ:  # of the job step; SLURM_NTASKS is also set in a script without srun
        return _valid(_number("SLURM_PROCID"), _number("SLURM_STEP_NUM_TASKS"), _number("SLURM_LOCALID"))
    return RankInfo()


def _valid(rank: int, world_size: int, local_rank: int) -> RankInfo:
    if rank >= world_size:
        raise InputError(
            f"the environment variables say that this is process {rank} (RANK, or SLURM_PROCID) of {world_size} "
            "(WORLD_SIZE, or SLURM_STEP_NUM_TASKS): they count from 0, as torchrun or srun sets them"
        )
    return RankInfo(rank, world_size, local_rank)


def _number(variable: str, default: str = "") -> int:
    text = os.environ.get(variable, default)
    if not text.isdecimal():
        raise InputError(f"the environment variable {variable}={text}: must be an integer, as torchrun or srun sets it")
    return int(text)


def cores_per_process() -> int:
    """Processor cores for each process of the run on this machine, at least 1.

    srun does not state how many processes share a machine, so all are assumed to be on one machine.
    """
    processes = _number("LOCAL_WORLD_SIZE", str(rank_info().world_size))
    return max(cores() // max(processes, 1), 1)


def cores() -> int:
    """Processor cores that this process may use: those of its affinity, such as under taskset or in a Slurm job."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def is_main() -> bool:
    """Whether this is the process that writes: the first, or the only one."""
    return rank_info().rank == 0
