"""The answer: verdicts, energy to quality, costs over reuses, repayment and the Pareto front of the compared methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from workflow_scripts.accounting import intervals, verdicts
from workflow_scripts.accounting.arms import (
    CURVED,
    Axis,
    arm_of,
    arms_of,
    refusals,
    repeated_evaluations,
    share_policies,
    student_of,
    told_apart,
)
from workflow_scripts.accounting.fairness import boundary_difference
from workflow_scripts.accounting.groups import Group
from workflow_scripts.accounting.intervals import Array, Mean
from workflow_scripts.accounting.model import ExperimentSummary
from workflow_scripts.accounting.rows import Advantage, Amortised, Answer, Level, Repayment
from workflow_scripts.accounting.verdicts import CAMPAIGN, POINTWISE, RECORDED, Arm, Interval, Verdict
from workflow_scripts.energy.uncertainty import KWH

GRID = (1, 2, 3, 5)  # reuses per decade
DECADES = 3
STATED = ("runs", "baseline_runs", "teacher_used", "final", "baseline_final", "repeatability", "worsened", "work_apart")


@dataclass
class Answers:
    """Everything that is said of the methods, and the runs it was said from, by group name."""

    rows: list[Answer] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    amortised: list[Amortised] = field(default_factory=list)
    arms: dict[str, Arm] = field(default_factory=dict)

    @property
    def comparable(self) -> dict[str, Arm]:
        """The runs of all but the methods that are not comparable."""
        refused = {row.experiment for row in self.rows if row.refusals}
        return {name: arm for name, arm in self.arms.items() if name not in refused}


def own_baseline(method: Group, golds: Sequence[Group]) -> Group:
    """The baseline of the method's student; else the first one, which is refused where the student is known."""
    students = {student_of(s) for s in method.runs}
    return next((gold for gold in golds if students & {student_of(s) for s in gold.runs}), golds[0])


def _pairs(groups: Sequence[Group], golds: Sequence[Group]) -> list[tuple[Group, Group]]:
    """The groups that are compared with a baseline, each with its own; none without one."""
    return [(each, own_baseline(each, golds)) for each in groups if golds and each.name not in {gold.name for gold in golds}]


def answer(
    groups: Sequence[Group], golds: Sequence[Group], axis: Axis, target: float | None, here: Mapping[str, int]
) -> Answers:
    """Verdict, levels and costs over reuses of every method. `target` is in the axis' units; `here` the reuses so far.

    `golds` are the baselines, one for each student.
    """
    arms, apart = arms_of(groups, axis), told_apart(groups)
    found = Answers(arms=arms)
    methods = _pairs(groups, golds)
    spread = verdicts.repeatability(arms.values(), repeated_evaluations(groups))
    for each, gold in methods:
        arm, base = arms.get(each.name), arms.get(gold.name)
        why, runs = refusals(each, gold, axis.name), {"runs": len(each.runs), "baseline_runs": len(gold.runs)}
        row = Answer(experiment=each.name, baseline=gold.name, kind="undetermined", refusals=why, **runs)
        known: dict[str, object] = {"cause": "energy", "repeatability": spread[0] if spread else None}
        if arm is not None and base is not None:
            verdict = verdicts.judge(arm, base, None if target is None else axis.sign * target, len(methods))
            known |= _figures(verdict, axis) | _equal_tokens(each, gold, arm, base)
            known |= {"runs": arm.seeds, "baseline_runs": base.seeds, "worsened": any(run.worsened for run in arm.runs)}
            on_the_way = [s.evaluations_on_the_way for s in each.runs if CURVED not in s.own]
            if known["cause"] == "no curve" and any(evaluated and evaluated.points for evaluated in on_the_way):
                known["cause"] = "own loss"  # they are of no quality
            if known["cause"] == "one run" and any(map(share_policies, (each, gold))):
                known["cause"] = "one policy"
            known["work_apart"] = apart
            known["teacher_used"] = min(s.used_share for s in each.runs) if arm.teacher else None
            gap = verdict.saved[0] if verdict.saved[0] is not None else known.get("equal_tokens_saved")
            if verdict.kind == "undetermined" and spread and isinstance(gap, float) and gap:
                had = min(arm.seeds, base.seeds)
                at = verdict.target if verdict.saved[0] is not None else None  # at this quality, not of whole trainings
                seen, dof = intervals.pooled_spread([verdicts.energies(one, at) for one in (arm, base)])
                known["seeds_needed"] = verdicts.seeds_needed(gap, max(spread[0], float(seen)) if dof else spread[0], had)
            found.levels += _levels(arm, base if not why else arm, axis)
            found.amortised += _amortised(arm, base, verdict, here.get(each.name, 1), axis) if arm.teacher and not why else []
        if why:  # no figure stands beside a refusal that a reader would take for an answer
            known = {key: known[key] for key in STATED if key in known} | {"kind": "not comparable"}
        found.rows.append(row.model_copy(update=known))
    for base in (arms[gold.name] for gold in golds if gold.name in arms):
        found.levels += _levels(base, base, axis)
    return found


def advantages(groups: Sequence[Group], golds: Sequence[Group], axes: Sequence[tuple[Axis, str | None]]) -> list[Advantage]:
    """Every method on qualities that the verdicts are not about, each with why its values are not of one scale, or None."""
    found = []
    methods = _pairs(groups, golds)
    for axis, refused in axes:
        for each, gold in methods:
            arm, base = arm_of(each, axis), arm_of(gold, axis)
            row = Advantage(experiment=each.name, baseline=gold.name, quality=axis.name, why_not=refused)
            if base is None or arm is None or not (arm.judged and base.judged):
                continue
            if refused is None:
                final, theirs = (axis.sign * float(one.finals.mean()) for one in (arm, base))
                rows = verdicts.row_difference(arm, base)
                better, (least, most) = verdicts.advantage(arm, base, rows, CAMPAIGN / (2 * len(methods)))
                known = {"final": final + 0.0, "baseline_final": theirs + 0.0, "clear": least > 0 or most < 0}
                row = row.model_copy(update=known | _interval("better", better))
            found.append(row)
    return found


def _figures(verdict: Verdict, axis: Axis) -> dict[str, object]:
    joules = {who: getattr(verdict, f"{who}_j") for who in ("teacher", "baseline", "method")}
    finals = [None if loss is None else axis.sign * loss for loss in verdict.final]
    return {
        **{key: getattr(verdict, key) for key in ("kind", "at_equal", "cause")},
        "target": None if verdict.target is None else axis.sign * verdict.target,
        **{f"{who}_kwh": None if spent is None else spent / KWH for who, spent in joules.items()},
        **_interval("reuses", verdict.reuses),
        **_interval("saved", verdict.saved),
        **_interval("better", verdict.better),
        "final": finals[0],
        "baseline_final": finals[1],
        "scenarios": dict(verdict.scenarios),
    }


def _interval(name: str, found: Interval) -> dict[str, float | None]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def _equal_tokens(each: Group, gold: Group, arm: Arm, base: Arm) -> dict[str, object]:
    """N* of the whole trainings; nothing where their token budgets differ."""
    budgets = {str(s.comparable.get("token budget")) for one in (each, gold) for s in one.runs}
    if len(budgets) > 1:
        return {}
    found = verdicts.compare_energies(arm, base, None)
    return {**_interval("equal_tokens", found.reuses), "equal_tokens_saved": found.saved[0]}


def _levels(arm: Arm, base: Arm, axis: Axis) -> list[Level]:
    """E(q) on the losses that all runs of the method reach, and N*(q) on those that the baseline's reach, too."""
    own, both = verdicts.supported([arm]), verdicts.supported([arm, base]) if arm is not base else np.empty(0)
    losses = np.array(sorted({*own, *both}, reverse=True))
    if not len(losses):
        return []
    spent, theirs = (np.array([verdicts.energies(each, loss) for loss in losses]) for each in (arm, base))
    low, high = intervals.difference(Mean.of(spent), Mean(0.0, 0.0), POINTWISE)
    cost = np.broadcast_to(arm.teachers(RECORDED), (len(losses), len(arm.teacher)))
    shared = (losses <= both[0]) & (losses >= both[-1]) if len(both) and arm.teacher else np.zeros(len(losses), dtype=bool)
    least, most = intervals.break_even(cost, theirs, spent, POINTWISE) if arm.teacher else (low, high)
    rows = []
    for i, loss in enumerate(losses):
        saved = float(theirs[i].mean() - spent[i].mean())
        star = float(cost[i].mean()) / saved if shared[i] and saved > 0 else None
        bounds = (1 / most[i] if most[i] > 0 else None, 1 / least[i] if least[i] > 0 else None) if shared[i] else (None, None)
        figures = {"kwh": spent[i].mean() / KWH, "low_kwh": low[i] / KWH, "high_kwh": high[i] / KWH}
        rows.append(Level(experiment=arm.name, quality=axis.sign * loss, **figures, **_interval("reuses", (star, *bounds))))
    return rows


def _amortised(arm: Arm, base: Arm, verdict: Verdict, here: int, axis: Axis) -> list[Amortised]:
    """E(N) to the verdict's quality, or of the whole trainings where it has none."""
    target = verdict.target if verdict.baseline_j is not None else None
    cost, own, theirs = arm.teachers(RECORDED), verdicts.energies(arm, target), verdicts.energies(base, target)
    rows = []
    star = cost.mean() / (theirs.mean() - own.mean()) if theirs.mean() > own.mean() else 1.0
    decades = min(7, max(DECADES, math.ceil(math.log10(2 * star))))
    for reuses in sorted({*(step * 10**decade for decade in range(decades) for step in GRID), 10**decades, here}):
        low, high = intervals.cost_by_reuse(cost, own, reuses, POINTWISE)
        rows.append(
            Amortised(
                experiment=arm.name,
                target=None if target is None else axis.sign * target,
                reuses=reuses,
                amortised_kwh=float(cost.mean() / reuses + own.mean()) / KWH,
                low_kwh=low / KWH,
                high_kwh=high / KWH,
                baseline_kwh=float(theirs.mean()) / KWH,
                here=reuses == here,
            )
        )
    return rows


def repayment(groups: Sequence[Group], arms: Mapping[str, Arm], axis: Axis, target: float | None) -> list[Repayment]:
    """T* of each method whose students reach the quality that was asked for.

    T* = (E_teacher + E_trainings) / (j_teacher - j_student), j the joules per generated token in the evaluation, prompts
    included. Students of one architecture cost the same to serve on one hardware, whatever taught them: they are pooled.
    """
    served: dict[tuple[str, ...], list[float]] = {}
    for summary in (s for each in groups for s in each.runs):
        cost = summary.deployment["model"].joules_per_token if "model" in summary.deployment else None
        if cost is not None:
            served.setdefault(_kind(summary), []).append(cost)
    return [_repayment(each, arms.get(each.name), served, axis, target) for each in groups]


def _kind(summary: ExperimentSummary) -> tuple[str, ...]:
    """Architecture and hardware of a student as it is served."""
    return str(getattr(summary.references.get("student"), "model", None)), str(summary.deployment["model"].hardware)


def _repayment(
    each: Group, arm: Arm | None, served: Mapping[tuple[str, ...], list[float]], axis: Axis, target: float | None
) -> Repayment:
    if target is None or arm is None:
        return Repayment(experiment=each.name, why_not="no target" if target is None else "energy")
    if any(not run.loss[-1] <= axis.sign * target for run in arm.runs):
        return Repayment(experiment=each.name, why_not="target not reached")
    first = each.runs[0]
    students = np.array(served.get(_kind(first), []) if "model" in first.deployment else [])
    theirs = first.deployment["teacher"].joules_per_token if "teacher" in first.deployment else None
    if theirs is None or not len(students):
        return Repayment(experiment=each.name, why_not="not measured")
    boundaries = {"+".join(d.boundary) for s in each.runs for d in s.deployment.values() if d.boundary}
    if len(boundaries) > 1 or boundary_difference([each], "teacher", "student", "evaluation"):
        return Repayment(experiment=each.name, why_not="boundary")
    if len({cost.hardware for s in each.runs for whose, cost in s.deployment.items() if whose != "student"}) > 1:
        return Repayment(experiment=each.name, why_not="hardware")
    made = float(arm.teachers(RECORDED).mean()) if arm.teacher else 0.0
    extra, own = made + float(arm.over_seeds(lambda run: run.whole).mean()), float(students.mean())
    spread, dof = intervals.pooled_spread([students])
    repeats = ((extra, 1), (theirs, 1), (own, len(students)))
    cost, first_j, own_j = (Mean(value, (spread * value) ** 2 / n, dof) for value, n in repeats)
    low, high = (float(bound) for bound in intervals.saving_by_reuse(cost, first_j, own_j, POINTWISE, common_dof=dof))
    return Repayment(
        experiment=each.name,
        tokens=extra / (theirs - own) if theirs > own else None,
        low=1 / high if high > 0 else None,
        high=1 / low if low > 0 else None,
        extra_kwh=extra / KWH,
        reference_j_per_token=theirs,
        student_j_per_token=own,
        pooled=len(students),
        why_not="never" if high <= 0 else None if theirs > own else "undetermined",
    )


def front(groups: Sequence[Group], arms: Mapping[str, Arm], spread: float | None) -> dict[str, float | None]:
    """The chance of each group to be on the front of method's energy and the arms' quality; None where errors are not known.

    Drawn are the sampling of the held-out rows, the same rows for all, the spread over seeds, and for energies that of equal
    work. One run of each says nothing of seeds: without at least two of some method there is no chance to state.
    """
    judged = {name: arm for name, arm in arms.items() if arm.judged}
    there = [(each, judged[each.name]) for each in groups if each.name in judged and each.method_energies]
    sizes = {len(run.rows) for _, arm in there for run in arm.runs}
    losses = [arm.finals for _, arm in there]
    moved = [values - values.mean() for values in losses if len(values) > 1]
    if not moved or spread is None or len(sizes) > 1 or max(sizes) < 2:
        return {each.name: None for each, _ in there}
    seeds = math.sqrt(sum(float((m**2).sum()) for m in moved) / sum(len(m) - 1 for m in moved))
    generator = np.random.default_rng(intervals.SEED)
    energy, loss = [], []
    for (each, arm), values in zip(there, losses, strict=True):
        joules = np.array([found.value for found in each.method_energies])
        width = spread * joules.mean() / math.sqrt(len(values))
        energy.append(joules.mean() + width * generator.standard_normal(intervals.RESAMPLES))
        rows, tokens = np.mean([run.rows for run in arm.runs], axis=0), arm.runs[0].tokens
        draws: Array = (intervals.resampled(len(rows)) @ rows) / (intervals.resampled(len(rows)) @ tokens)
        moved_by = seeds / math.sqrt(len(values)) * generator.standard_normal(intervals.RESAMPLES)
        loss.append(draws - draws.mean() + values.mean() + moved_by)
    chances = intervals.pareto_probability(np.array(energy), np.array(loss))
    return {each.name: float(chance) for (each, _), chance in zip(there, chances, strict=True)}
