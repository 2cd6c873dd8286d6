"""What this host is."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path


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
