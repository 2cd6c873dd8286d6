"""When distilling pays: reuses of the teacher's output (N*), tokens served (T*), and the cost at every N."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from workflow_scripts.accounting.fairness import boundary_difference
from workflow_scripts.accounting.formulas import amortised, break_even_reuse, served_tokens_until_repaid
from workflow_scripts.accounting.groups import Group, find, group
from workflow_scripts.accounting.model import ExperimentSummary
from workflow_scripts.accounting.rows import Amortised, BreakEven, Repayment, Status
from workflow_scripts.accounting.sampling import interval, only_one_instrument, ratio_interval, sample
from workflow_scripts.energy.uncertainty import KWH, Energy, Figure, mean

GRID = (1, 1.5, 2, 3, 4, 5, 6, 8)  # per decade
DECADES = 3  # at least; more where N* is larger, up to MOST_DECADES
MOST_DECADES = 7
MISSING = "unknown: an energy is missing"


def break_even(summaries: Sequence[ExperimentSummary], baseline: str) -> list[BreakEven]:
    """N* of each distilled experiment: reuses of its teacher output until it beats the baseline's training energy.

    Counts student-training energies only, those that led to a starting policy included; `never` when they alone cost at least
    as much as the baseline's. Runs that differ in the seed only are one row, of means.
    """
    groups = group(summaries)
    gold = find(groups, baseline)
    if gold is None:
        return []
    return [_break_even(each, gold) for each in groups if each is not gold and each.has_teacher]


def _break_even(each: Group, gold: Group) -> BreakEven:
    row = BreakEven(experiment=each.name, runs=len(each.runs))
    teacher, student, reference = each.teacher, each.student, gold.student
    if problem := _problem(each, gold):
        return row.model_copy(update=problem)
    if teacher is None or student is None or reference is None:
        return row.model_copy(update={"verdict": MISSING})
    reuses = break_even_reuse(teacher.value, student.value, reference.value)
    saved = reference.value - student.value
    known: dict[str, Any] = {
        "status": "never" if reuses is None else "pays",
        "verdict": "never: its training alone costs no less" if reuses is None else f"after {reuses:.1f} reuses",
        "reuses": reuses,
        "teacher_kwh": teacher.kwh,
        "saved_kwh": saved / KWH,
        "saving_pct": 100 * saved / reference.value if reference.value else None,
    }
    return row.model_copy(update=known | _bounds(teacher, reference, student))


def repayment(summaries: Sequence[ExperimentSummary]) -> list[Repayment]:
    """T* of each experiment: tokens served until making the student is repaid, against serving its teacher.

    Extra energy is that of the teacher's output and of all trainings; joules per generated token are the evaluation's, of
    the student and of the teacher on the same prompts. Reading the prompt is in them.
    """
    return [_repayment(each) for each in group(summaries)]


def _repayment(each: Group) -> Repayment:
    row = Repayment(experiment=each.name, runs=len(each.runs))
    student, teacher = each.student, each.teacher
    if problem := _problem(each, roles=("teacher", "student", "evaluation")) or _served_boundaries(each):
        return row.model_copy(update=problem)
    if student is None or teacher is None:
        return row.model_copy(update={"verdict": MISSING})
    theirs, own = (
        [cost for s in each.runs if who in s.deployment and (cost := s.deployment[who].cost) is not None]
        for who in ("teacher", "model")
    )
    if len(theirs) < len(each.runs) or len(own) < len(each.runs):
        return row.model_copy(update={"verdict": "unknown: joules per generated token were not measured"})
    extra, j_reference, j_student = student + teacher, theirs[0], mean(own)
    extra = replace(extra, spread=student.spread, runs=student.runs)
    tokens = served_tokens_until_repaid(extra.value, j_reference.value, j_student.value)
    known: dict[str, Any] = {
        "status": "never" if tokens is None else "pays",
        "verdict": "never: a token of the student costs no less" if tokens is None else f"after {tokens:,.0f} tokens",
        "reference": each.runs[0].references["teacher"].model,
        "tokens": tokens,
        "extra_kwh": extra.kwh,
        "reference_j_per_token": j_reference.value,
        "student_j_per_token": j_student.value,
    }
    return row.model_copy(update=known | _bounds(extra, j_reference, j_student))


def amortised_rows(
    summaries: Sequence[ExperimentSummary], baseline: str | None, shares: dict[str, int]
) -> tuple[list[Amortised], list[str]]:
    """One row per experiment and N: E(N) [kWh] with its 95 % interval, and the probability to cost less than the baseline.

    N are 1, 2, 3, … 1000, further where N* is, and the number of experiments that share the teacher's output here (`shares`
    by group name, `here`).
    Returns the rows and why experiments are left out.
    """
    groups = group(summaries)
    gold = find(groups, baseline) if baseline else None
    rows, left_out = [], []
    for each in groups:
        teacher, student, reference = each.teacher, each.student, gold.student if gold else None
        problem = _problem(each, gold)
        if problem or teacher is None or student is None:
            left_out.append(f"{each.name} has no cost over reuses: {problem['verdict'] if problem else MISSING}")
            continue
        here = shares.get(each.name, 1)
        star = break_even_reuse(teacher.value, student.value, reference.value) if reference else None
        drawn = sample([teacher, student, *([reference] if reference else [])])
        rows += [_amortised(each, n, (teacher, student, reference), drawn, n == here) for n in _grid(here, star)]
    return rows, left_out


def _amortised(
    each: Group, n: int, costs: tuple[Energy, Energy, Energy | None], drawn: list[np.ndarray] | None, here: bool
) -> Amortised:
    teacher, student, gold = costs
    low = high = cheaper = None
    if drawn is not None:
        cost = drawn[0] / n + drawn[1]
        low, high = (bound / KWH for bound in interval(cost))
        if gold is not None and each.has_teacher and not only_one_instrument((teacher, student, gold)):
            cheaper = float(np.mean(cost < drawn[2]))
    return Amortised(
        experiment=each.name,
        reuses=n,
        amortised_kwh=amortised(teacher.value, student.value, n) / KWH,
        low_kwh=low,
        high_kwh=high,
        teacher_share_kwh=teacher.kwh / n,
        student_kwh=student.kwh,
        baseline_kwh=gold.kwh if gold is not None else None,
        cheaper_probability=cheaper,
        here=here,
    )


def _grid(here: int, star: float | None) -> list[int]:
    decades = min(MOST_DECADES, max(DECADES, math.ceil(math.log10(2 * star)))) if star else DECADES
    steps = {step * 10**decade for decade in range(decades) for step in GRID}
    return sorted({*(int(n) for n in steps if n == int(n)), 10**decades, here})


def _served_boundaries(each: Group) -> dict[str, Any] | None:
    """Why joules per token of the teacher and the student cannot be subtracted, or None."""
    served = [s.deployment[who] for s in each.runs for who in ("teacher", "model") if who in s.deployment]
    found = {"+".join(entry.boundary) for entry in served if entry.boundary}
    return _refused(f"boundaries differ (evaluations: {'; '.join(sorted(found))})") if len(found) > 1 else None


def _problem(*groups: Group | None, roles: tuple[str, ...] = ("teacher", "student")) -> dict[str, Any] | None:
    """Why costs of these groups cannot be set against each other, as status and verdict, or None."""
    present = [each for each in groups if each is not None]
    found = [text for each in present for text in each.problems]
    if found:
        return {"status": "unknown", "verdict": f"unknown: {found[0]}"}
    unlike = boundary_difference(present, *roles)
    return _refused(unlike) if unlike else None


def _refused(why: str) -> dict[str, Status | str]:
    return {"status": "refused", "verdict": f"refused: {why}"}


def _bounds(above: Figure, minuend: Figure, subtrahend: Figure) -> dict[str, Any]:
    """Interval of above / (minuend - subtrahend), and what it holds or why there is none."""
    if only_one_instrument((above, minuend, subtrahend)):
        return {"basis": "one instrument"}
    found = ratio_interval(above, minuend, subtrahend)
    if found is None:
        return {"basis": "unknown"}
    repeated = minuend.spread is not None and subtrahend.spread is not None
    basis = "runs" if repeated else "instruments"
    return {"low": found.low, "high": found.high, "never_probability": found.never, "basis": basis}
