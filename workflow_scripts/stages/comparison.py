"""comparison: experiments side by side, break-even, Pareto front, figures.

    python -m workflow_scripts.stages.comparison --summary FILE … --quality FIELD
        [--baseline NAME] --out DIR/comparison.json

Writes comparison.json; answer.html, the same on one page, and its tables as comparison.md and comparison.tex; the figures as
svg; and as csv the tables comparison (a row per experiment), stage_energy (experiment and stage), amortised (experiment and N),
runs (means over seeds), break_even and repayment. A summary that cannot be read is named and left out; the exit code is 1 when
none is left.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from workflow_scripts.accounting.fairness import (
    boundary_difference,
    differences,
    incomplete,
    lower_is_better,
    qualities,
    quality_refusal,
)
from workflow_scripts.accounting.formulas import pareto_front
from workflow_scripts.accounting.groups import Group, averages, find, group
from workflow_scripts.accounting.load import Loaded, load
from workflow_scripts.accounting.model import ExperimentSummary
from workflow_scripts.accounting.reuse import amortised_rows, break_even, repayment
from workflow_scripts.accounting.rows import (
    Amortised,
    BreakEven,
    Campaign,
    Comparison,
    ExperimentRow,
    GroupRow,
    Repayment,
    Row,
    Users,
    stage_key,
    stage_row,
    teacher_users,
    users,
)
from workflow_scripts.accounting.sampling import DRAWS, only_one_instrument, sample
from workflow_scripts.artefact import write_json
from workflow_scripts.energy.model import known_energy
from workflow_scripts.energy.uncertainty import Energy, Figure
from workflow_scripts.report import figures, figures_course, pages

SHOWN_WARNINGS = 20


def main(arguments: list[str] | None = None) -> int:
    """Read the summaries, write tables and figures."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.stages.comparison", allow_abbrev=False)
    parser.add_argument("--summary", nargs="+", required=True)
    parser.add_argument("--quality", default="cross_entropy")
    parser.add_argument("--baseline")
    parser.add_argument("--out", default="comparison/comparison.json")
    options = parser.parse_args(arguments)
    loaded = load([Path(path) for path in options.summary])
    if not loaded.summaries:
        for text in loaded.warnings:
            print(f"warning: {text}", file=sys.stderr)
        print(f"error: none of the {len(options.summary)} summaries can be read", file=sys.stderr)
        return 1
    if options.quality not in (there := qualities(loaded.summaries)):
        print(
            f"error: comparison.quality = {options.quality!r}: no evaluation has it, there are {', '.join(there)}: choose one, "
            "or add its task to evaluation.lm_eval_tasks",
            file=sys.stderr,
        )
        return 1
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    comparison = compare(loaded, options.quality, options.baseline)
    shares = users(loaded.summaries)
    written: dict[str, tuple[type[Row], Sequence[Row]]] = {
        "comparison": (ExperimentRow, comparison.experiments),
        "amortised": (Amortised, comparison.amortised),
        "runs": (GroupRow, comparison.groups),
        "break_even": (BreakEven, comparison.break_even),
        "repayment": (Repayment, comparison.repayment),
    }
    tables = {
        name: pd.DataFrame([row.model_dump() for row in rows], columns=None if rows else kind.columns())
        for name, (kind, rows) in written.items()
    }
    tables["runs"]["members"] = tables["runs"]["members"].map("; ".join)
    stages = [stage_row(s.experiment_name, name, r, shares) for s in loaded.summaries for name, r in s.stages.items()]
    for name, table in {**tables, "stage_energy": pd.DataFrame(stages)}.items():
        table.to_csv(out.with_name(f"{name}.csv"), index=False)
    comparison.warnings += draw(loaded.summaries, comparison, out.parent)
    comparison.counts["warnings"] = len(comparison.warnings)
    pages.write(comparison, out.parent)
    write_json(out, comparison.content())
    say(comparison)
    return 0


def say(comparison: Comparison) -> None:
    """Warnings and what was counted, on standard error."""
    for text in comparison.warnings[:SHOWN_WARNINGS]:
        print(f"warning: {text}", file=sys.stderr)
    if len(comparison.warnings) > SHOWN_WARNINGS:
        print(f"warning: … {len(comparison.warnings) - SHOWN_WARNINGS} more in comparison.json", file=sys.stderr)
    counts = ", ".join(f"{key} {value}" for key, value in comparison.counts.items())
    print(f"comparison: {counts}", file=sys.stderr)


def compare(loaded: Loaded, quality: str, baseline: str | None) -> Comparison:
    """Break-even against `baseline`, Pareto front, campaign total (shared stages once), and what is not comparable."""
    summaries = loaded.summaries
    groups, shares = group(summaries), users(summaries)
    names = {name: each.name for each in groups for name in each.members}
    table = [ExperimentRow.of(s, names[s.experiment_name], shares) for s in summaries]
    by_group = averages(groups, table)
    refused = quality_refusal(summaries, quality)
    front = pareto(groups, by_group, quality, -1.0 if lower_is_better(summaries, quality) else 1.0, refused)
    for row in by_group:
        row.pareto, row.pareto_probability = row.group in front.names, front.probability.get(row.group)
    sharing = {g.name: max((teacher_users(s, shares) or 1 for s in g.runs), default=1) for g in groups}
    amortised, left_out = amortised_rows(summaries, baseline, sharing)
    whole, unlike = campaign(summaries, shares), differences(summaries)
    warnings = [
        *loaded.warnings,
        *(
            [f"baseline {baseline} is not among the summaries: no break-even"]
            if baseline and not find(groups, baseline)
            else []
        ),
        *incomplete(summaries),
        *(difference.text for difference in unlike),
        *front.warnings,
        *left_out,
    ]
    if missing := whole.without_figure:
        warnings.append(f"the campaign's total leaves out {len(missing)} stage(s) without a figure: {', '.join(missing)}")
    return Comparison(
        quality=quality,
        baseline=baseline,
        experiments=table,
        break_even=break_even(summaries, baseline) if baseline else [],
        pareto=sorted(name for g in groups if g.name in front.names for name in g.members),
        warnings=warnings,
        differs=[difference.what for difference in unlike],
        pareto_refused=front.refused,
        quality_refused=refused is not None,
        groups=by_group,
        repayment=repayment(summaries),
        amortised=amortised,
        campaign=whole,
        skipped=loaded.skipped,
        counts={"read": len(summaries), "left_out": len(loaded.skipped), "groups": len(groups), "warnings": 0},
    )


def campaign(summaries: Sequence[ExperimentSummary], shares: Users) -> Campaign:
    """What all compared experiments cost together, every run of a stage once; stages without a figure are named."""
    stages = {stage_key(name, r): (name, r) for s in summaries for name, r in s.stages.items()}.values()
    whole = known_energy(record for _, record in stages)
    return Campaign(
        kwh=whole.kwh,
        uncertainty_kwh=whole.uncertainty_kwh,
        stages=len(stages),
        shared_stages=sum(len(names) > 1 for names in shares.values()),
        without_figure=sorted(name for name, record in stages if record.spent is None),
    )


@dataclass
class Front:
    """Groups on the Pareto front; `probability` is the share of draws of the errors in which a group is on it."""

    names: set[str] = field(default_factory=set)
    probability: dict[str, float] = field(default_factory=dict)
    refused: str | None = None
    warnings: list[str] = field(default_factory=list)


def pareto(groups: list[Group], by_group: list[GroupRow], quality: str, sign: float, refused: str | None) -> Front:
    """The front over energy (starting policies included) and quality (times `sign`: more is better), of means over runs.

    The probability is empty where one instrument gave all energies, which keep their order whatever its error is. Refused, with
    the reason, where qualities are not of one scale, and where there are fewer than two points.
    """
    points: dict[str, tuple[Energy, Figure]] = {}
    front = Front(refused=refused)
    for each, row in zip(groups, by_group, strict=True):
        energy, value = each.total, row.column(f"{quality}_mean")
        if energy is None or value is None or each.problems:
            why = each.problems[0] if each.problems else "no energy total" if energy is None else _no_quality(quality)
            front.warnings.append(f"{each.name} is no point of the Pareto front: {why}")
            continue
        points[each.name] = (energy, Figure(sign * value, {}, row.column(f"{quality}_sd"), row.column(f"{quality}_n")))
    if refused is None and len(points) < 2:
        front.refused = f"a front needs two points, there is {len(points)}" + "".join(f" ({name})" for name in points)
    if front.refused is not None:
        front.warnings.append(f"no Pareto front: {front.refused}")
        return front
    if text := boundary_difference([g for g in groups if g.name in points], "teacher", "student", "evaluation"):
        front.warnings.append(f"the Pareto front sets unlike energies against each other: {text}")
    front.names = pareto_front({name: (energy.value, value.value) for name, (energy, value) in points.items()})
    front.probability = _front_probability(points)
    return front


def _no_quality(quality: str) -> str:
    task = quality.partition("/")[0]
    return f"no {quality}" + (f": add {task!r} to its evaluation.lm_eval_tasks" if "/" in quality else "")


def _front_probability(points: dict[str, tuple[Energy, Figure]]) -> dict[str, float]:
    names = list(points)
    known = [*(points[n][0] for n in names), *(points[n][1] for n in names)]
    drawn = sample(known)
    if drawn is None or only_one_instrument(known):
        return {}
    energy, value = drawn[: len(names)], drawn[len(names) :]
    found = {}
    for i, name in enumerate(names):
        dominated = np.zeros(DRAWS, dtype=bool)
        for j in range(len(names)):
            strictly = (energy[j] < energy[i]) | (value[j] > value[i])
            dominated |= (energy[j] <= energy[i]) & (value[j] >= value[i]) & strictly
        found[name] = float(1 - dominated.mean())
    return found


def draw(summaries: list[ExperimentSummary], comparison: Comparison, folder: Path) -> list[str]:
    """Draw all figures; returns what they could not show."""
    figures.energy_by_stage(summaries, folder / "energy_by_stage.svg", comparison.differs)
    figures.energy_quality(comparison, folder / "energy_quality.svg")
    figures.cost_by_reuse(comparison, folder / "cost_by_reuse.svg")
    missing = figures_course.power(summaries, folder / "power.svg")
    return [*missing, *figures_course.loss(summaries, folder / "loss_by_joules.svg")]


if __name__ == "__main__":
    sys.exit(main())
