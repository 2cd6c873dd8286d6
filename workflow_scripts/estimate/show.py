"""The plan as a person reads it: one line per stale job, its reason, and with history its Wh and minutes, and their sums.

python -m workflow_scripts plan [snakemake arguments …]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from workflow_scripts.estimate.forecast import Estimate, estimates
from workflow_scripts.estimate.pricing import ZERO, Range
from workflow_scripts.plan.dry_run import DryRunError, PlannedJob, planned, short_reason
from workflow_scripts.settings.runs import method_of

HEADER = ("job", "of", "why", "Wh", "min")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the plan; returns 1 where Snakemake cannot plan."""
    try:
        jobs, folder = planned(sys.argv[1:] if arguments is None else arguments)
    except DryRunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not jobs:
        print("Nothing is stale.")
        return 0
    known = estimates(jobs, folder)
    rows = [
        (job.rule + (f" {job.part}" if job.part else ""), name_of(job), short_reason(job.reason), span(e.wh), span(e.minutes))
        for job, e in zip(jobs, known, strict=True)
    ]
    print(tabulate(rows, HEADER, tablefmt="plain", disable_numparse=True, colalign=("left", "left", "left", "right", "right")))
    unknown = sum(e.wh is None for e in known)
    if unknown == len(jobs):
        print("The cost is unknown: run one small job first.")
        return 0
    print("\n".join([*by_method(jobs, known), sums("in all", known)]))
    if unknown:
        print(f"{unknown} of {len(jobs)} jobs have no figure from past runs.")
    return 0


def by_method(jobs: Sequence[PlannedJob], known: Sequence[Estimate]) -> list[str]:
    """Jobs added up by method, a line each, where methods have several runs."""
    runs: dict[str, set[str]] = {}
    for job in jobs:
        if job.experiment:
            runs.setdefault(method_of(job.experiment), set()).add(job.experiment)
    lines = []
    for method, names in runs.items():
        own = [e for job, e in zip(jobs, known, strict=True) if job.experiment in names]
        lines.append(sums(f"{method}, {len(names)} runs", own))
    return lines if any(names != {method} for method, names in runs.items()) else []


def sums(what: str, known: Sequence[Estimate]) -> str:
    """Jobs added up, bounds too: at least what is known where some are not."""
    wh, minutes = (sum([r for r in ranges if r], ZERO) for ranges in ([e.wh for e in known], [e.minutes for e in known]))
    least = "" if all(e.wh for e in known) else "at least "
    figures = f"{least}{span(wh)} Wh, {span(minutes)} min" if any(e.wh for e in known) else "unknown"
    return f"{what}: {len(known)} jobs, {figures}"


def name_of(job: PlannedJob) -> str:
    """Experiment, or the folder of a shared artefact."""
    if job.experiment:
        return job.experiment
    folders = [part for part in Path(job.record).parts[:-1] if part not in ("stages", "parts", "checks")]
    return folders[-1] if folders else ""


def span(figure: Range | None) -> str:
    """A figure with its bounds, in two digits below a hundred."""
    if figure is None:
        return "-"
    mid, low, high = (f"{value:.2g}" if value < 100 else f"{value:.0f}" for value in (figure.mid, figure.low, figure.high))
    return mid if low == high else f"{mid} ({low}-{high})"


if __name__ == "__main__":
    sys.exit(main())
