"""What Slurm knows of this job: its nodes' energy (ConsumedEnergy, where the site has a plugin) and its time limit."""

from __future__ import annotations

import os
import re
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


def seconds_to_limit(timeout_s: float = 20.0) -> float | None:
    """Seconds until this job reaches its time limit; None outside a job, without a limit, or when squeue does not say."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return None
    command = ["squeue", "--noheader", "--jobs", job, "--format=%S %l"]
    try:
        words = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s).stdout.split()
        begin, limit = time.mktime(time.strptime(words[0], "%Y-%m-%dT%H:%M:%S")), words[1]
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return None
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return begin + 86400 * days + 3600 * hours + 60 * minutes + seconds - time.time()
