"""The stage as a child process: started, signalled, waited for, and cleaned up after."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class Child:
    """A stage in a session of its own, so that signals reach it through the meter only, once, and as a whole group.

    The kernel sends it `orphaned` when the meter dies: SIGKILL, for what nobody measures must not go on, and the lock of a
    dead meter keeps nobody out. Processes that it leaves behind, detached ones too, come to the meter to be ended.
    """

    def __init__(
        self, command: Sequence[str], output: IO[bytes], environment: Mapping[str, str], orphaned: int = signal.SIGKILL
    ) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent(orphaned),
        )
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self.received: int | None = None
        self.time_is_up = False

    def send(self, signum: int) -> None:
        """Pass a signal on to the stage's process group; a stopped one is woken for it, as Slurm does."""
        self.received = signum
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signum)
            os.killpg(self.pid, signal.SIGCONT)

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
            outcome = "timeout" if self.time_is_up and number == signal.SIGTERM else "signal"
            return {"outcome": outcome, "exit_code": None if code < 0 else code, "signal": number}
        return {"outcome": "failed", "exit_code": code, "signal": None}

    def finish(self) -> dict[str, Any]:
        """Wait for the end, however long, and clean up; the outcome."""
        while not self.wait(60.0):
            pass
        outcome = self.reap()
        self.sweep()
        return outcome

    def warn(self) -> None:
        """The time that the stage has is nearly over."""
        self.time_is_up = True
        self.send(signal.SIGTERM)

    def stop(self, grace_s: float = 90.0) -> None:
        """End a stage that cannot be watched any more: SIGTERM, time for a checkpoint, SIGKILL."""
        self.send(signal.SIGTERM)
        self.wait(grace_s)
        self.sweep()

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


def exit_code(outcome: Mapping[str, Any]) -> int:
    """The code that says an outcome: the stage's own, or 128 + n for signal n."""
    return int(128 + outcome["signal"] if outcome["signal"] is not None else outcome["exit_code"])


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _die_with_parent(signum: int) -> Callable[[], None]:
    """What the child runs first: it asks the kernel for the signal when its parent dies (Linux)."""
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signum)
