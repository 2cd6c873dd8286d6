"""The stage as a child process: started, signalled, waited for, and cleaned up after."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from workflow_scripts.energy.sources.slurm import seconds_to_limit

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_NEAR_THE_LIMIT_S = 300


class Child:
    """A stage in a session of its own, so that signals reach it through the meter only, once, and as a whole group.

    It gets SIGTERM when the meter dies. Processes that it leaves behind, detached ones too, come to the meter to be ended.
    """

    def __init__(self, command: Sequence[str], output: IO[bytes], environment: Mapping[str, str]) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self.received: int | None = None

    def send(self, signum: int) -> None:
        """Pass a signal on to the stage's process group."""
        self.received = signum
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signum)

    def wait(self, seconds: float) -> bool:
        """Whether the stage has ended, waiting up to `seconds` for it. It is not reaped: /proc still knows it."""
        ready, _, _ = select.select([self._pidfd], [], [], max(0.0, seconds))
        return bool(ready)

    def reap(self) -> dict[str, Any]:
        """Outcome, exit code and signal of the ended stage."""
        code = self._process.wait()
        os.close(self._pidfd)
        if code == 0:
            return {"outcome": "completed", "exit_code": 0, "signal": None}
        if code < 0 or self.received is not None:
            number = -code if code < 0 else self.received
            outcome = "timeout" if number == signal.SIGTERM and _time_is_up() else "signal"
            return {"outcome": outcome, "exit_code": None if code < 0 else code, "signal": number}
        return {"outcome": "failed", "exit_code": code, "signal": None}

    def sweep(self) -> int:
        """End what the stage left running, in its process group or detached from it; returns how many there were."""
        left = 0
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
            left += 1
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline and (orphans := _children(os.getpid())):
            for pid in orphans:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    left += 1
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
        return left


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _die_with_parent() -> None:
    """Ask the kernel to send SIGTERM to the stage when the meter dies (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _time_is_up() -> bool:
    """Whether the Slurm job's time limit is what ends it: a stage may be told some minutes before."""
    left = seconds_to_limit()
    return left is not None and left < _NEAR_THE_LIMIT_S
