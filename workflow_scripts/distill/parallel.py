"""A training in several processes: who this one is, and what all of them must agree on.

torchrun sets RANK, LOCAL_RANK and WORLD_SIZE; without them there is one process and every function here does nothing.
"""

from __future__ import annotations

import ctypes
import os
import signal

import torch

_PR_SET_PDEATHSIG = 1


def world_size() -> int:
    """Number of processes over all nodes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes artefacts and progress."""
    return os.environ.get("RANK", "0") == "0"


def die_with_launcher() -> None:
    """Ask the kernel for SIGKILL when torchrun dies, however it does (Linux), so that no worker goes on unmetered."""
    if world_size() > 1:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        torch.distributed.barrier()


def highest(value: int, device: torch.device) -> int:
    """The highest `value` of all processes; all must call this at the same step."""
    if world_size() == 1:
        return value
    shared = torch.tensor([float(value)], device=device)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return int(shared.item())


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Elementwise sum of a tensor that every process has."""
    if world_size() > 1:
        torch.distributed.all_reduce(values)
    return values
