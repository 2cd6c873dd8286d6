"""Processes of the test cluster: finding, ending and holding them.

Run as a program, this file holds a daemon: it is a subreaper, so whatever the daemon leaves behind (slurmstepd, jobs, processes
that have called setsid) becomes its child and ends with it. Standard library only: it runs isolated.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

SYSTEM_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/sbin"))
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def hold(command: list[str]) -> None:
    """Run a daemon until neither it nor anything it has left behind is alive; on SIGTERM, kill all of that."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # Tests that are killed leave no cluster behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        subprocess.Popen(command)
        while True:
            os.wait()
    except ChildProcessError:
        return
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        daemons = ("slurmd", "slurmstepd")  # First, so that they do not report what happens to their jobs.
        for _ in ticks(20, pause=0.02):
            pids = descendants(os.getpid())
            if not pids:
                break
            kill(sorted(pids, key=lambda pid: program(pid) not in daemons))
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # No zombies for an init that does not care for them.
                pass


def descendants(root: int) -> list[int]:
    """Processes below `root`, without zombies."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(folder.name))
    found = list(children.get(root, []))
    for pid in found:  # Grows while it is read.
        found.extend(children.get(pid, []))
    return found


def kill(pids: Collection[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def program(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def binary(name: str) -> str | None:
    return shutil.which(name, path=SYSTEM_PATH)


def clean_environment() -> dict[str, str]:
    """Without the settings of a Slurm job that the tests may run in."""
    prefixes = ("SLURM", "SBATCH_", "SRUN_", "SINFO_", "SQUEUE_", "SCANCEL_", "SACCT_")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)} | {"PATH": SYSTEM_PATH}


def ticks(timeout: float, pause: float = 0.25) -> Iterator[None]:
    """At least once, then every `pause` seconds until the time is over."""
    end = time.monotonic() + timeout
    while True:
        yield
        if time.monotonic() > end:
            return
        time.sleep(pause)


def answers(address: Path | int) -> bool:
    """Whether something listens at a socket file or a local port."""
    family = socket.AF_INET if isinstance(address, int) else socket.AF_UNIX
    with socket.socket(family) as client:
        return client.connect_ex(("127.0.0.1", address) if isinstance(address, int) else str(address)) == 0


def free_ports() -> Iterator[int]:
    """Below the range of outgoing connections, so that they are still free when a daemon starts again."""
    for port in random.sample(range(10000, 32000), 1000):
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("127.0.0.1", port))
            yield port


if __name__ == "__main__":
    hold(sys.argv[1:])
