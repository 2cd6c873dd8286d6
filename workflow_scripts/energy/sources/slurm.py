"""What Slurm knows of this job: its nodes' energy (ConsumedEnergy, where the site has a plugin) and when it ends."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import subprocess
import time

from workflow_scripts.energy.sources.base import Figure, unavailable

METHOD = "Slurm ConsumedEnergy"


def consumed_energy(timeout_s: float = 20.0) -> Figure:
    """Joules of this job's running step on its nodes, from `sstat`; unavailable with the reason otherwise.

    Slurm updates the figure at its own period (AcctGatherEnergy), so it is a cross-check of whole jobs, not of seconds.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return unavailable("not in a Slurm job")
    command = ["sstat", "--noheader", "--parsable2", "--allsteps", "--format=ConsumedEnergyRaw", "-j", job]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        return unavailable(f"sstat: {error}")
    values = [line for line in result.stdout.split() if line.isdigit()]
    if result.returncode != 0 or not values:
        return unavailable(f"sstat gave no ConsumedEnergy: {result.stderr.strip() or 'no figure'}")
    joules = float(sum(map(int, values)))
    if joules == 0:
        return unavailable("Slurm counted 0 J: the site has no AcctGatherEnergy plugin")
    return Figure(joules, method=METHOD, energy_class="measured")


def cpus_by_squeue(job: str) -> list[float]:
    """CPUs of a job on each of its nodes; none where Slurm does not say."""
    command = ["squeue", "--noheader", "--jobs", job, "--format=%C %D"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired, ValueError):
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout
        cpus, nodes = map(int, said.split())
        return [cpus / nodes]
    return []


class JobEnd:
    """When Slurm will end this job: its time limit, which an operator may change, or the grace time of a preemption.

    Slurm's own warning (sbatch --signal) does not reach a stage: on most clusters (proctrack/cgroup) a signal goes to the
    step's first process only, and that is Snakemake. Slurm is asked twice in `before_s`, without waiting for its answer;
    0 s asks for nothing. The controller says both the job's end and its own time, so that this host's clock does not matter:
    squeue's `%L` is the end by the controller less the time by the node.
    """

    def __init__(self, before_s: float) -> None:
        self._job = os.environ.get("SLURM_JOB_ID") if before_s else None
        self._before, self._every = before_s, before_s / 2
        self._asked = -math.inf
        self._process: subprocess.Popen[str] | None = None
        self._end: float | None = None

    def is_near(self, now: float) -> float | None:
        """Seconds left, once: when they are fewer than `before_s`, and than half of what was left at the first answer.

        `now` is the monotonic clock's.
        """
        if self._job is None:
            return None
        self._look(self._job, now)
        left = math.inf if self._end is None else self._end - now
        if left >= self._before:
            return None
        self.close()
        self._job = None
        return left

    def close(self) -> None:
        """Give up on an answer that has not come."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # squeue, too: it would hold the pipe
            self._process.communicate()
            with contextlib.suppress(ChildProcessError):  # the meter is the reaper of what its children leave
                while True:
                    os.waitpid(-self._process.pid, 0)
            self._process = None

    def _look(self, job: str, now: float) -> None:
        if self._process is not None and self._process.poll() is not None:
            left, self._process = seconds_left(self._process.communicate()[0]), None
            if left is not None:
                if self._end is None:
                    self._before = min(self._before, left / 2)
                self._end = now + left
        if now - self._asked >= self._every:
            self.close()
            self._asked = now
            ask = ["sh", "-c", 'squeue --noheader --jobs "$1" --format=%e; scontrol show config', "sh", job]
            with contextlib.suppress(OSError):  # no squeue here: the job ends unwarned
                self._process = subprocess.Popen(
                    ask, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=_plain(), start_new_session=True
                )


def _plain() -> dict[str, str]:
    """The environment without what changes squeue's answer."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}
    return kept | {"SLURM_TIME_FORMAT": "standard"}


def seconds_left(answer: str) -> float | None:
    """From the job's end, and the time of the controller's answer; None without one of them, or without a time limit."""
    end, _, config = answer.partition("\n")
    now = re.search(r"^Configuration data as of (\S+)", config, re.MULTILINE)
    try:
        times = [time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S")) for text in (end.strip(), now[1] if now else "")]
    except ValueError:
        return None
    return times[0] - times[1]
