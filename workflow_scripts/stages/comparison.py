"""comparison: experiments side by side, verdicts, energy to quality, Pareto front, figures.

    python -m workflow_scripts.stages.comparison --summary FILE … --quality FIELD
        [--baseline NAME …] [--target VALUE] --out DIR/comparison.json

Writes comparison.json; answer.html, the same on one page, and its tables as comparison.md and comparison.tex; the figures as
svg; and as csv the tables comparison (a row per experiment), stage_energy (experiment and stage), break_even (the verdicts),
qualities (method and further quality), energy_to_quality (method and quality), amortised (method and N), runs (means over
seeds) and repayment. A summary that cannot be read is named and left out; the exit code is 1 when none is left.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from workflow_scripts.accounting.answer import Answers, advantages, answer, front, repayment
from workflow_scripts.accounting.arms import Axis, arms_of, repeated_evaluations, student_of
from workflow_scripts.accounting.fairness import differences, incomplete, lower_is_better, qualities, quality_refusal
from workflow_scripts.accounting.groups import Group, averages, find, group
from workflow_scripts.accounting.load import Loaded, load
from workflow_scripts.accounting.model import ExperimentSummary, sum_of
from workflow_scripts.accounting.rows import (
    Advantage,
    Amortised,
    Answer,
    Campaign,
    Comparison,
    ExperimentRow,
    GroupRow,
    Level,
    Repayment,
    Row,
    Source,
    Users,
    stage_key,
    stage_row,
    teacher_users,
    users,
)
from workflow_scripts.accounting.verdicts import repeatability
from workflow_scripts.artefact import write_json
from workflow_scripts.energy.model import Component, known_energy
from workflow_scripts.energy.uncertainty import KWH
from workflow_scripts.report import figures, figures_course, pages
from workflow_scripts.settings.evaluation import FOLLOWED

SHOWN_WARNINGS = 20


def main(arguments: list[str] | None = None) -> int:
    """Read the summaries, write tables and figures."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.stages.comparison", allow_abbrev=False)
    parser.add_argument("--summary", nargs="+", required=True)
    parser.add_argument("--quality", default="cross_entropy")
    parser.add_argument("--baseline", nargs="+", default=[], help="one for each student")
    parser.add_argument("--target", type=float)
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
    comparison, answers = compare(loaded, options.quality, options.baseline, options.target)
    shares = users(loaded.summaries)
    written: dict[str, tuple[type[Row], Sequence[Row]]] = {
        "comparison": (ExperimentRow, comparison.experiments),
        "amortised": (Amortised, comparison.amortised),
        "runs": (GroupRow, comparison.groups),
        "break_even": (Answer, comparison.answers),
        "qualities": (Advantage, comparison.qualities),
        "energy_to_quality": (Level, comparison.levels),
        "repayment": (Repayment, comparison.repayment),
    }
    tables = {
        name: pd.DataFrame([row.model_dump() for row in rows], columns=None if rows else list(kind.model_fields))
        for name, (kind, rows) in written.items()
    }
    tables["runs"]["members"] = tables["runs"]["members"].map("; ".join)
    stages = [stage_row(s.experiment_name, name, r, shares) for s in loaded.summaries for name, r in s.stages.items()]
    for name, table in {**tables, "stage_energy": pd.DataFrame(stages)}.items():
        table.to_csv(out.with_name(f"{name}.csv"), index=False)
    comparison.warnings += draw(loaded.summaries, comparison, answers, out.parent)
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


def compare(loaded: Loaded, quality: str, baselines: Sequence[str], target: float | None = None) -> tuple[Comparison, Answers]:
    """Verdicts against the baselines, Pareto front, campaign total (shared stages once), and what is not comparable."""
    summaries = loaded.summaries
    groups, shares = group(summaries), users(summaries)
    names = {name: each.name for each in groups for name in each.members}
    table = [ExperimentRow.of(s, names[s.experiment_name], shares) for s in summaries]
    by_group = averages(groups, table)
    axis, others = _axis(summaries, quality), [name for name in qualities(summaries) if name != quality]
    golds: dict[str | None, Group] = {}  # by the student
    unused = []
    for name in baselines:
        if (gold := find(groups, name)) is None:
            unused.append(f"baseline {name} is not among the summaries: no verdict against it")
        elif (first := golds.setdefault(student_of(gold.runs[0]), gold)) is not gold:
            unused.append(f"baselines {first.name} and {gold.name} are of one student: no verdict against the second")
    if len(golds) > 1 and (silent := [s.experiment_name for s in summaries if student_of(s) is None]):
        unused.append(
            f"of which student they are is not said, make them again: {', '.join(silent)}: taken for the first baseline's"
        )
    here = {g.name: max((teacher_users(s, shares) or 1 for s in g.runs), default=1) for g in groups}
    found = answer(groups, list(golds.values()), axis, target, here)
    refused = quality_refusal(summaries, quality)
    if refused is None and (points := sum(arm.judged for arm in found.comparable.values())) < 2:
        refused = f"a front needs two methods that are comparable, there is {points}"
    if refused is None:
        spread = repeatability(found.arms.values(), repeated_evaluations(groups))
        width, second = spread[0] if spread else None, _axis(summaries, FOLLOWED)
        chances, further = front(groups, found.comparable, width), {}
        if FOLLOWED in others and quality_refusal(summaries, FOLLOWED) is None:
            arms = {name: arm for name, arm in arms_of(groups, second).items() if name in found.comparable}
            further = front(groups, arms, width)
        for row in by_group:
            row.pareto_probability, row.pareto_of_instructions = chances.get(row.group), further.get(row.group)
    whole, unlike = campaign(summaries, shares), differences(summaries)
    warnings = [
        *loaded.warnings,
        *unused,
        *incomplete(summaries),
        *(difference.text for difference in unlike),
        *([f"no Pareto front: {refused}"] if refused else []),
    ]
    if missing := whole.without_figure:
        warnings.append(f"the campaign's total leaves out {len(missing)} stage(s) without a figure: {', '.join(missing)}")
    comparison = Comparison(
        quality=quality,
        baseline=", ".join([gold.name for gold in golds.values()] or baselines) or None,
        target=target,
        experiments=table,
        answers=found.rows,
        qualities=advantages(
            groups, list(golds.values()), [(_axis(summaries, q), quality_refusal(summaries, q)) for q in others]
        ),
        levels=found.levels,
        warnings=warnings,
        differs=[difference.what for difference in unlike],
        pareto_refused=refused,
        quality_refused=quality_refusal(summaries, quality) is not None,
        groups=by_group,
        repayment=repayment(groups, found.arms, axis, target),
        amortised=found.amortised,
        campaign=whole,
        sources=sources(summaries),
        skipped=loaded.skipped,
        counts={"read": len(summaries), "left_out": len(loaded.skipped), "groups": len(groups), "warnings": 0},
    )
    return comparison, found


def _axis(summaries: Sequence[ExperimentSummary], quality: str) -> Axis:
    return Axis(quality, 1.0 if lower_is_better(summaries, quality) else -1.0)


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


def sources(summaries: Sequence[ExperimentSummary]) -> list[Source]:
    """How the joules of all components were obtained, largest first."""
    found: dict[tuple[str, str, str], list[Component]] = {}
    models: dict[str, None] = {}
    for _, record in {stage_key(n, r): (n, r) for s in summaries for n, r in s.stages.items()}.values():
        models |= dict.fromkeys(model.words for model in record.power_models)
        for name, part in record.inside.items():
            found.setdefault((name, part.method or "unknown", part.energy_class), []).append(part)
    rows = []
    for (name, method, kind), parts in found.items():
        joules = sum(part.joules or 0.0 for part in parts)
        widths = [part.joules * part.uncertainty_pct for part in parts if part.joules and part.uncertainty_pct is not None]
        second = sum_of([part.crosscheck for part in parts])
        rows.append(
            Source(
                component=name,
                method=f"{method} ({'; '.join(models)})" if kind == "modelled" and models else method,
                energy_class=kind,
                kwh=joules / KWH,
                second_kwh=second / KWH if second is not None else None,
                uncertainty_pct=sum(widths) / joules if joules and len(widths) == sum(bool(p.joules) for p in parts) else None,
            )
        )
    return sorted(rows, key=lambda row: -row.kwh)


def draw(summaries: list[ExperimentSummary], comparison: Comparison, answers: Answers, folder: Path) -> list[str]:
    """Draw all figures; returns what they could not show."""
    figures.energy_by_stage(summaries, folder / "energy_by_stage.svg", comparison.differs)
    figures.energy_quality(comparison, answers, folder / "energy_quality.svg")
    figures.cost_by_reuse(comparison, folder / "cost_by_reuse.svg")
    figures.quality_by_row(comparison, answers, folder / "quality_by_row.svg")
    missing = figures_course.power(summaries, folder / "power.svg")
    return [*missing, *figures_course.loss(summaries, folder / "loss_by_joules.svg")]


if __name__ == "__main__":
    sys.exit(main())
