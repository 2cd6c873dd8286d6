"""Whose CPU time it was: the share of a stage's process tree in what the host's CPUs did."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


class CpuShare:
    """CPU seconds of a stage (all processes of its session or descent, ended ones included) and of the host since the start."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._host_start = self._host_busy()
        self._seen: dict[tuple[int, int], float] = {}
        self._job = 0.0

    def read(self, root: int) -> tuple[float, float]:
        """CPU seconds (job, host) since the start; `root` is the stage's process id, and the id of its session.

        Processes that ended are known by what they had when last seen, and, where their parent waited for them, by the
        parent's sum over its children; the larger of the two counts.
        """
        members = self._members(root)
        for pid, start, own, _ in members:
            self._seen[pid, start] = max(own, self._seen.get((pid, start), 0.0))
        living = sum(own + waited for _, _, own, waited in members)
        self._job = max(self._job, living, sum(self._seen.values()))
        return self._job, self._host_busy() - self._host_start

    def pids(self) -> set[int]:
        """Process ids that were ever seen in the job."""
        return {pid for pid, _ in self._seen}

    def _members(self, root: int) -> list[tuple[int, int, float, float]]:
        """(pid, start time, own CPU seconds, those of its waited-for children) of the members that /proc knows."""
        stats = {}
        for entry in self._proc.iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                stats[int(entry.name)] = fields
        members = []
        for pid, fields in stats.items():
            ancestor, steps = pid, 0
            while ancestor in stats and ancestor != root and steps < 64:
                ancestor, steps = int(stats[ancestor][1]), steps + 1
            if ancestor == root or int(fields[3]) == root:
                own, waited = (int(fields[11]) + int(fields[12])) / _TICKS, (int(fields[13]) + int(fields[14])) / _TICKS
                members.append((pid, int(fields[19]), own, waited))
        return members

    def _host_busy(self) -> float:
        """CPU seconds all CPUs were not idle: user, nice, system, irq, softirq, steal."""
        fields = [int(value) for value in (self._proc / "stat").read_text().splitlines()[0].split()[1:9]]
        return (sum(fields) - fields[3] - fields[4]) / _TICKS


def scope(choice: str, environment: Mapping[str, str], host_cpus: int) -> str:
    """Resolve `energy.cpu_scope`: `auto` is `job` when Slurm gave the job fewer CPUs than the host has, else `host`."""
    if choice != "auto":
        return choice
    given = environment.get("SLURM_CPUS_ON_NODE", "")
    return "job" if given.isdigit() and int(given) < host_cpus else "host"
