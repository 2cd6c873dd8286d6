"""The plan as a person reads it: one line per stale job, its reason, and with history its Wh and minutes, and their sums.

python -m workflow_scripts plan [snakemake arguments …]
"""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from workflow_scripts.estimate.forecast import estimates, owner
from workflow_scripts.estimate.pricing import ZERO, Cost
from workflow_scripts.plan.dry_run import PlannedJob, planned, short_reason
from workflow_scripts.settings.runs import method_of

HEADER = ("job", "of", "why", "Wh", "min")


def main(arguments: Sequence[str]) -> int:
    """Print the plan. Raises DryRunError where Snakemake cannot plan."""
    jobs, folder = planned(arguments)
    if not jobs:
        print("Nothing is stale.")
        return 0
    known = estimates(jobs, folder)
    rows = [
        (job.rule + (f" {job.part}" if job.part else ""), owner(job), short_reason(job.reason), *figures([cost]))
        for job, cost in zip(jobs, known, strict=True)
    ]
    print(tabulate(rows, HEADER, tablefmt="plain", disable_numparse=True, colalign=("left", "left", "left", "right", "right")))
    unknown = known.count(None)
    if unknown == len(jobs):
        print("The cost is unknown: run one small job first.")
        return 0
    print("\n".join([*by_method(jobs, known), sums("in all", known)]))
    if unknown:
        print(f"{unknown} of {len(jobs)} jobs have no figure from past runs.")
    return 0


def by_method(jobs: Sequence[PlannedJob], known: Sequence[Cost | None]) -> list[str]:
    """Jobs added up by method, a line each, where methods have several runs."""
    runs: dict[str, set[str]] = {}
    for job in jobs:
        if job.experiment:
            runs.setdefault(method_of(job.experiment), set()).add(job.experiment)
    lines = []
    for method, names in runs.items():
        own = [cost for job, cost in zip(jobs, known, strict=True) if job.experiment in names]
        lines.append(sums(f"{method}, {len(names)} runs", own))
    return lines if any(names != {method} for method, names in runs.items()) else []


def sums(what: str, known: Sequence[Cost | None]) -> str:
    """Jobs added up, bounds too: at least what is known where some are not."""
    wh, minutes = figures(known)
    least = "at least " if None in known else ""
    return f"{what}: {len(known)} jobs, {f'{least}{wh} Wh, {minutes} min' if any(known) else 'unknown'}"


def figures(known: Sequence[Cost | None]) -> list[str]:
    """Energy [Wh] and time [min] added up, each with its bounds, in two digits below a hundred; `-` where nothing tells."""
    priced = [cost for cost in known if cost]
    if not priced:
        return ["-", "-"]
    wh, minutes = (
        sum((cost.joules for cost in priced), ZERO) * (1 / 3600),
        sum((cost.seconds for cost in priced), ZERO) * (1 / 60),
    )
    cells = []
    for whole in (wh, minutes):
        mid, low, high = (f"{value:.2g}" if value < 100 else f"{value:.0f}" for value in (whole.mid, whole.low, whole.high))
        cells.append(mid if low == high else f"{mid} ({low}-{high})")
    return cells
