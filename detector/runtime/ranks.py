"""The place of this process among those of its run. Imports nothing heavy."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class RankInfo:
    """The rank of a process in its run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on its machine: the index of its GPU


def rank_info() -> RankInfo:
    """The rank from the environment variables of torchrun, or else of srun."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return RankInfo(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0)))
    if "SLURM_STEP_NUM_TASKS" in env:  # of the job step; SLURM_NTASKS is also set in a script without srun
        return RankInfo(int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"]))
    return RankInfo()


def is_main() -> bool:
    """Whether this is the process that writes: the first, or the only one."""
    return rank_info().rank == 0
