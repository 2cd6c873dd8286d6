"""The plan as a person reads it: one line per stale job, its reason, and with history its Wh and minutes.

python -m workflow_scripts plan [snakemake arguments …]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from workflow_scripts.estimate.forecast import Estimate, estimates
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
    print("".join(f"{line}\n" for line in by_method(jobs, known)), end="")
    unknown = sum(e.wh is None for e in known)
    if unknown == len(jobs):
        print("The cost is unknown: run one small job first.")
    elif unknown:
        print(f"{unknown} of {len(jobs)} jobs have no figure from past runs.")
    return 0


def by_method(jobs: Sequence[PlannedJob], known: Sequence[Estimate]) -> list[str]:
    """Jobs added up by method, a line each, where methods have several runs; bounds are added up."""
    runs: dict[str, set[str]] = {}
    for job in jobs:
        if job.experiment:
            runs.setdefault(method_of(job.experiment), set()).add(job.experiment)
    lines = []
    for method, names in runs.items():
        own = [e for job, e in zip(jobs, known, strict=True) if job.experiment in names]
        sums = [added([e.wh for e in own]), added([e.minutes for e in own])]
        lines.append(f"{method}: {len(own)} jobs of {len(names)} runs, {span(sums[0])} Wh, {span(sums[1])} min")
    return lines if any(names != {method} for method, names in runs.items()) else []


def added(spans: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    """Ranges added up; None as soon as one of them is not known."""
    known = [span for span in spans if span is not None]
    return (math.fsum(s[0] for s in known), math.fsum(s[1] for s in known)) if len(known) == len(spans) else None


def name_of(job: PlannedJob) -> str:
    """Experiment, or the folder of a shared artefact."""
    if job.experiment:
        return job.experiment
    folders = [part for part in Path(job.record).parts[:-1] if part not in ("stages", "parts", "checks")]
    return folders[-1] if folders else ""


def span(bounds: tuple[float, float] | None) -> str:
    """A range in two digits."""
    if bounds is None:
        return "-"
    low, high = (f"{value:.2g}" for value in bounds)
    return low if low == high else f"{low}-{high}"


if __name__ == "__main__":
    sys.exit(main())
