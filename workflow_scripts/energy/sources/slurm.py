"""The node's energy as Slurm counted it (ConsumedEnergy), where the site has an energy plugin."""

from __future__ import annotations

import os
import subprocess

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
