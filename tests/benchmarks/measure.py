"""Ratios of two things measured side by side in one run."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[2]
REPEATS = 5


@dataclass(frozen=True)
class Row:
    """A line of the table. `reached` compares `ratio` with `wanted` ("<= 0.5", ">= 3")."""

    name: str
    against: str
    ratio: float
    wanted: str
    figures: str

    @property
    def reached(self) -> bool:
        sign, bound = self.wanted.split()
        return self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)


def seconds(action: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def side_by_side(ours: Callable[[], float], theirs: Callable[[], float], repeats: int = REPEATS) -> tuple[float, float, float]:
    """Medians of both figures and of their ratio ours / theirs, taken in turn after one warm-up of each."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(repeats)]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


def peak_mb(*arguments: str) -> float:
    """Peak resident memory [MB] of `python -m tests.benchmarks.memory ARGUMENTS`, as that process prints it."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def matmul_rate(size: int = 1536) -> float:
    """FLOP/s of a square float32 matrix product on this machine: the bound for all that multiplies (best of 10)."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(10))
