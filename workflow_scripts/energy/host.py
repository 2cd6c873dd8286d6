"""What this host is, and what it did to this process."""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_ROOT = Path("/")
IDLE_DAYS = 30.0  # that an idle baseline holds


@dataclass(frozen=True)
class PowerModel:
    """What the modelled power of a host is made of: watts, and where each number was found."""

    cpu_model: str
    cpu_tdp_watts: float  # of all sockets
    cpu_tdp_source: Literal["registry", "fallback", "configuration"]
    sockets: int
    cores: int
    threads: int
    memory_gb: float  # 2^30 bytes
    dram_watts: float
    dram_watts_source: Literal["codecarbon", "configuration"]
    virtual: bool

    def __post_init__(self) -> None:
        """Raises ValueError for watts, numbers or bytes that are none: a file may hold anything."""
        numbers = (self.cpu_tdp_watts, self.sockets, self.cores, self.threads, self.memory_gb, self.dram_watts)
        if not all(isinstance(number, int | float) and 0 <= number < math.inf for number in numbers):
            raise ValueError(f"no power model: {self}")

    @property
    def words(self) -> str:
        """The numbers of the model and where they are from."""
        cpu = f"TDP {self.cpu_tdp_watts:g} W of {self.sockets} socket(s), from {self.cpu_tdp_source}"
        return f"{cpu}; memory {self.dram_watts:g} W for {self.memory_gb:.0f} GB, from {self.dram_watts_source}"


def cpu_brand() -> str | None:
    """The CPU's model name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def has_hypervisor() -> bool:
    """Whether this host is a virtual machine, as its CPU says."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return "hypervisor" in line.split()
    return False


def peak_rss_mb() -> float:
    """Peak resident memory of this process; getrusage would give the parent's where that was larger before exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def oom_kills(root: Path = _ROOT) -> int | None:
    """Processes of this process's cgroup that the kernel has killed for memory; None where it does not say."""
    for folder in _groups(root, "memory"):
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError, ValueError, StopIteration):
                lines = (line.split() for line in (folder / name).read_text().splitlines())
                return next(int(words[1]) for words in lines if words[0] == "oom_kill")
    return None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's cgroup for a controller and of those above it, of version 1 or 2.

    In a container /proc names paths of the host, which are not there: then it is the container's own root.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" or controller in controllers.split(","):
            top = mounted if number == "0" else mounted / controller
            group = top / path.strip("/")
            while group != top:
                yield group
                group = group.parent
            yield top


def days_old(idle: Mapping[str, Any], at: float) -> float:
    """Age of an idle baseline at a time [s since 1970]; 0 where it does not say when it was measured."""
    return (at - idle.get("time", at)) / 86400
