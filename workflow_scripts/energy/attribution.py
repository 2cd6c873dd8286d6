"""Whose energy it was: the part of a stage's process tree in what the host's CPUs did, and in what they could do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workflow_scripts.energy.sources.base import Figure
from workflow_scripts.energy.sources.slurm import cpus_by_squeue

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class CpuSeconds:
    """CPU seconds of a job, of all work on its host, and those that a hypervisor gave to others (nobody's work here).

    `driver` are those of the workflow's own Snakemake and of the shells between it and the meter.
    """

    job: float
    host: float
    steal: float
    driver: float = 0.0


class CpuShare:
    """CPU seconds of a stage (all processes of its session or descent, ended ones included) and of the host since the start."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._host_start, self._steal_start = self._host_times()
        self._seen: dict[tuple[int, int], float] = {}
        self._job = 0.0
        stats = self._stats()
        self._above = _driver(_chain(os.getppid(), stats), proc)
        self._driver_start = {pid: _own(stats[pid]) for pid in self._above}
        self._driver = 0.0

    def read(self, root: int) -> CpuSeconds:
        """CPU seconds since the start; `root` is the stage's process id, and the id of its session.

        Processes that ended are known by what they had when last seen, and, where their parent waited for them, by the
        parent's sum over its children; the larger of the two counts.
        """
        stats = self._stats()
        members = self._members(root, stats)
        waiting = [_own(stats[pid]) - self._driver_start[pid] for pid in self._above if pid in stats]
        self._driver = max(self._driver, sum(waiting))
        for pid, start, own, _ in members:
            self._seen[pid, start] = max(own, self._seen.get((pid, start), 0.0))
        living = sum(own + waited for _, _, own, waited in members)
        self._job = max(self._job, living, sum(self._seen.values()))
        host, steal = self._host_times()
        return CpuSeconds(self._job, max(host - self._host_start, self._job), steal - self._steal_start, self._driver)

    def pids(self) -> set[int]:
        """Process ids that were ever seen in the job."""
        return {pid for pid, _ in self._seen}

    def _stats(self) -> dict[int, list[str]]:
        """The fields of /proc/<pid>/stat from the process' state on, by process id."""
        stats = {}
        for entry in self._proc.iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                stats[int(entry.name)] = fields
        return stats

    @staticmethod
    def _members(root: int, stats: Mapping[int, list[str]]) -> list[tuple[int, int, float, float]]:
        """(pid, start time, own CPU seconds, those of its waited-for children) of the members that /proc knows."""
        members = []
        for pid, fields in stats.items():
            if root in _chain(pid, stats) or int(fields[3]) == root:
                members.append((pid, int(fields[19]), _own(fields), (int(fields[13]) + int(fields[14])) / _TICKS))
        return members

    def _host_times(self) -> tuple[float, float]:
        """CPU seconds in which all CPUs worked (user, nice, system, irq, softirq), and in which others had them (steal)."""
        fields = [int(value) for value in (self._proc / "stat").read_text().splitlines()[0].split()[1:9]]
        return (sum(fields[:3]) + fields[5] + fields[6]) / _TICKS, fields[7] / _TICKS


def _chain(pid: int, stats: Mapping[int, list[str]]) -> list[int]:
    """A process and its ancestors, as far as /proc knows them."""
    found: list[int] = []
    while pid in stats and pid not in found:
        found.append(pid)
        pid = int(stats[pid][1])
    return found


def _driver(ancestors: list[int], proc: Path) -> list[int]:
    """The ancestors up to Snakemake; none where it is not among them: whatever else started the meter is other work."""
    for number, pid in enumerate(ancestors, 1):
        with contextlib.suppress(OSError):
            words = (proc / str(pid) / "cmdline").read_text(errors="replace").split("\0")[:4]
            if any(Path(word).name == "snakemake" for word in words):  # python …/bin/snakemake, or python -m snakemake
                return ancestors[:number]
    return []


def _own(fields: list[str]) -> float:
    """CPU seconds of a process without its children."""
    return (int(fields[11]) + int(fields[12])) / _TICKS


def allocated_cpus(environment: Mapping[str, str], cgroups: Path = Path("/sys/fs/cgroup")) -> float:
    """CPUs that this process may use: the smallest of affinity mask, cgroup quota (cpu.max, all levels) and Slurm's word.

    The first task of an array starts without SLURM_CPUS_ON_NODE (the plugin takes it away): squeue is asked.
    """
    found = [float(len(os.sched_getaffinity(0)))]
    if job := environment.get("SLURM_JOB_ID"):
        given = environment.get("SLURM_CPUS_ON_NODE", "")
        found += [float(given)] if given.isdigit() else cpus_by_squeue(job)
    own = Path("/proc/self/cgroup")
    names = [line.partition("::")[2] for line in own.read_text().splitlines() if "::" in line] if own.is_file() else []
    for name in names or ["/"]:
        folder = cgroups / name.strip().lstrip("/")
        for level in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):
                quota, period = (level / "cpu.max").read_text().split()
                if quota != "max":
                    found.append(int(quota) / int(period))
            if level == cgroups:
                break
    return min(found)


def scope(choice: str, allocated: float, host_cpus: int) -> Literal["host", "job"]:
    """Resolve `energy.cpu_scope`: `auto` is `job` when the job may use fewer CPUs than the host has, else `host`."""
    shared = allocated < host_cpus if choice == "auto" else choice == "job"
    return "job" if shared else "host"


class JobShare:
    """Joules of a host's component that are a job's: idle ones by allocated CPUs, the others by CPU time, window by window.

    A host's idle joules are split by `idle_share`, the CPUs that the job may use over those of the host. What is above them in
    a window between two looks at CPU time is split by the job's part of the host's CPU time in that window.
    """

    def __init__(self, idle_share: float) -> None:
        self._idle_share = idle_share
        self._settled: dict[str, tuple[float, float]] = {}  # joules above idle of host and job, at the last look
        self._told: dict[str, float] = {}
        self._share: float | None = None

    def look(self, share: float | None, figures: Mapping[str, Figure]) -> None:
        """A window has ended: `share` is the job's part of the host's CPU time in it, None where that is not known."""
        self._share = share if share is not None else self._share
        for name, figure in figures.items():
            if figure.joules is not None and self._share is not None:
                host, job = self._settled.get(name, (0.0, 0.0))
                above = self._above(figure)
                self._settled[name] = (above, job + max(0.0, above - host) * self._share)

    def joules(self, name: str, figure: Figure) -> float | None:
        """The job's joules so far, which never fall; None before the first look."""
        if figure.joules is None or name not in self._settled or self._share is None:
            return None
        host, job = self._settled[name]
        above = self._above(figure)
        idle = (figure.joules - above) * self._idle_share
        self._told[name] = max(self._told.get(name, 0.0), idle + job + max(0.0, above - host) * self._share)
        return self._told[name]

    def crosscheck(self, name: str, figure: Figure) -> float | None:
        """The second method's joules in the proportion of the first's."""
        job = self.joules(name, figure)
        return figure.crosscheck * job / figure.joules if figure.crosscheck is not None and job and figure.joules else None

    @staticmethod
    def _above(figure: Figure) -> float:
        return max(0.0, (figure.joules or 0.0) - (figure.idle_joules or 0.0))
