"""Ratios of two things measured side by side in one run."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

REPOSITORY = Path(__file__).parents[1]
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


def alone(*arguments: object, **environment: str) -> float:
    """What `python -m benchmarks.memory ARGUMENTS` prints, a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def matmul_rate(size: int = 1536) -> float:
    """FLOP/s of a square float32 matrix product on this machine: the bound for all that multiplies (best of 10)."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(10))


def of_matmul_rate(per_second: float, flops: float) -> str:
    """What share of `matmul_rate` a rate of tokens at `flops` FLOPs each is, in words."""
    return f" ({per_second * flops / matmul_rate():.0%} of the matmul rate)"


def memory_rate(megabytes: int = 512) -> float:
    """Bytes/s read from memory by a sum over more than any cache holds (best of 5)."""
    values = torch.ones(megabytes * 250_000)
    return 4 * values.numel() / min(seconds(lambda: values.sum()) for _ in range(5))


def file_seconds(path: Path, content: bytes) -> float:
    """Seconds to write the content as one file and to read it again, page cache included (best of 5)."""

    def both() -> None:
        path.write_bytes(content)
        path.read_bytes()

    return min(seconds(both) for _ in range(5))


def run_and_weigh(command: list[str], folder: Path) -> tuple[float, float]:
    """Wall seconds of a command, and the most memory [bytes] of it and its descendants at once, looked at every 0.2 s."""
    most = 0.0
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            most = max(most, _resident(root))
            time.sleep(0.2)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed in {folder}")
    return time.perf_counter() - began, most


def _resident(root: psutil.Process) -> float:
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total
