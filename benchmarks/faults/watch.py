"""The external clock: which meters and stages ran in a folder, and from when to when, as the kernel saw it."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LOOK_EVERY_S = 0.02
METER = "workflow_scripts.energy.meter"
_FOREIGN_AFTER_S = 1.0


@dataclass
class Process:
    """A process by number, start and end in seconds since boot; `end` is None while it runs."""

    pid: int
    module: str
    begin: float
    end: float | None = None

    @property
    def alive(self) -> bool:
        return self.end is None


@dataclass
class Stage(Process):
    """A stage's process: the child of a meter."""

    meter: Process | None = None

    @property
    def seconds(self) -> float:
        """From its start to its end, whether its meter still lived or not."""
        assert self.end is not None
        return self.end - self.begin


class Watch:
    """Looks into /proc every 20 ms for the meters that work in `folder` and for their stages.

    Starts are the kernel's (to 10 ms), ends are read from process descriptors: neither depends on when we looked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder.resolve())
        self.meters: dict[int, Process] = {}
        self.stages: list[Stage] = []
        self._first_seen: dict[int, float] = {}
        self._known: set[int] = set()
        self._open: dict[int, Process] = {}
        self._poll = select.poll()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()
        for descriptor in self._open:
            os.close(descriptor)

    def stage(self, module: str, seconds: float, give_up: Callable[[], bool] = lambda: False) -> Stage | None:
        """The first stage that runs `module`, waiting up to `seconds` or until `give_up` for it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := [stage for stage in self.stages if stage.module == module]:
                return found[0]
            if give_up():
                return None
            time.sleep(LOOK_EVERY_S)
        return None

    def _run(self) -> None:
        while not self._stop.is_set():
            self._look()
            for descriptor, _ in self._poll.poll(1000 * LOOK_EVERY_S):
                self._open.pop(descriptor).end = now()
                self._poll.unregister(descriptor)
                os.close(descriptor)

    def _look(self) -> None:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in self._known:
                with contextlib.suppress(OSError):
                    self._classify(int(entry.name))

    def _classify(self, pid: int) -> None:
        """Remember a meter or a stage of ours; forget what is foreign once it has had the time to become something else."""
        if str(Path(f"/proc/{pid}/cwd").readlink()) != self.folder:
            if now() - self._first_seen.setdefault(pid, now()) > _FOREIGN_AFTER_S:
                self._known.add(pid)
            return
        module = module_of(pid)
        parent, begin = _parent_and_begin(pid)
        if module == METER:
            if parent not in self.meters:  # else a meter's child that has not yet become the stage
                self.meters[pid] = self._follow(Process(pid, module, begin))
        elif module and module.startswith("workflow_scripts.") and parent in self._childless():
            self.stages.append(self._follow(Stage(pid, module, begin, meter=self.meters[parent])))

    def _childless(self) -> set[int]:
        """Meters whose stage we have not seen; a further child of a meter is what its stage has left behind."""
        return set(self.meters) - {stage.meter.pid for stage in self.stages if stage.meter}

    def _follow(self, process: Process) -> Process:
        self._known.add(process.pid)
        descriptor = os.pidfd_open(process.pid)
        self._open[descriptor] = process
        self._poll.register(descriptor, select.POLLIN)
        return process


def now() -> float:
    """Seconds since boot, the clock of the start times in /proc."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def module_of(pid: int) -> str | None:
    """The module that a `python -m` process runs; of a launcher, that of the stage it launches."""
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    if len(arguments) < 3 or arguments[1] != "-m":
        return None
    if arguments[2] == "workflow_scripts.cluster.launch":
        return next((a for a in arguments[3:] if a.startswith("workflow_scripts.stages.")), arguments[2])
    return arguments[2]


def _parent_and_begin(pid: int) -> tuple[int, float]:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1]), int(fields[19]) / os.sysconf("SC_CLK_TCK")


def processes_of(folder: Path) -> dict[int, str]:
    """Living processes that have `folder` in their command line, working directory or environment."""
    found = {}
    mark = str(folder.resolve()).encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                continue
            command = (entry / "cmdline").read_bytes()
            texts = (command, bytes((entry / "cwd").readlink()), (entry / "environ").read_bytes())
            if any(mark in text for text in texts):
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")[:120]
    return found
