"""When distilling pays: reuses of the teacher's output (N*), tokens served (T*), and the cost at every N."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from workflow_scripts.accounting.costs import has_teacher, student_cost, teacher_cost
from workflow_scripts.accounting.errors import Figure, interval, mean, only_one_instrument, ratio_interval, sample
from workflow_scripts.accounting.fairness import boundary_refusal
from workflow_scripts.accounting.formulas import amortised, break_even_reuse, served_tokens_until_repaid
from workflow_scripts.accounting.runs import Group, find, group

GRID = (1, 1.5, 2, 3, 4, 5, 6, 8)  # per decade
DECADES = 3  # at least; more where N* is larger, up to MOST_DECADES
MOST_DECADES = 7
BREAK_EVEN = (
    *("experiment", "reuses", "verdict", "runs", "low", "high", "never_probability"),
    *("teacher_kwh", "saved_kwh", "saving_pct", "interval"),
)
REPAYMENT = (
    *("experiment", "reference", "tokens", "verdict", "runs", "low", "high", "never_probability"),
    *("extra_kwh", "reference_j_per_token", "student_j_per_token", "interval"),
)
AMORTISED = (
    *("experiment", "reuses", "amortised_kwh", "low_kwh", "high_kwh", "teacher_share_kwh", "student_kwh"),
    *("baseline_kwh", "cheaper_probability", "here"),
)
MISSING = "unknown: an energy is missing"
ONE_RUN = "none: one run each, by one instrument, whose error cancels; repeat with other seeds"


def break_even(summaries: list[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """N* of each distilled experiment: reuses of its teacher output until it beats the baseline's training energy.

    Counts student-training energies only, those that led to a starting policy included; `never` when they alone cost at least
    as much as the baseline's. Runs that differ in the seed only are one row, of means.
    """
    groups = group(summaries)
    gold = find(groups, baseline)
    if gold is None:
        return []
    return [_break_even(each, gold) for each in groups if each is not gold and has_teacher(each)]


def _break_even(each: Group, gold: Group) -> dict[str, Any]:
    row: dict[str, Any] = {"experiment": each.name, "reuses": None, "verdict": "", "runs": len(each.runs)}
    row |= dict.fromkeys(BREAK_EVEN[4:])
    teacher, student, reference = teacher_cost(each), student_cost(each), student_cost(gold)
    if problem := _problem(each, gold):
        return row | {"verdict": problem}
    if teacher is None or student is None or reference is None:
        return row | {"verdict": MISSING}
    reuses = break_even_reuse(teacher.value, student.value, reference.value)
    saved = reference.value - student.value
    verdict = "never: its training alone costs no less" if reuses is None else f"after {reuses:.1f} reuses"
    return row | {
        "reuses": reuses,
        "verdict": verdict,
        **_bounds(teacher, reference, student),
        "teacher_kwh": teacher.value / 3.6e6,
        "saved_kwh": saved / 3.6e6,
        "saving_pct": 100 * saved / reference.value if reference.value else None,
    }


def repayment(summaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """T* of each experiment: tokens served until making the student is repaid, against serving its teacher.

    Extra energy is that of the teacher's output and of all trainings; joules per generated token are the evaluation's, of
    the student and of the teacher on the same prompts. Reading the prompt is in them.
    """
    return [_repayment(each) for each in group(summaries)]


def _repayment(each: Group) -> dict[str, Any]:
    row: dict[str, Any] = {"experiment": each.name, "reference": None, "tokens": None, "verdict": "", "runs": len(each.runs)}
    row |= dict.fromkeys(REPAYMENT[5:])
    student, teacher = student_cost(each), teacher_cost(each) if has_teacher(each) else Figure(0.0)
    served = {who: [_deployed(s, who) for s in each.runs] for who in ("teacher", "model")}
    if problem := _problem(each, roles=("teacher", "student", "evaluation")) or _served_boundaries(each):
        return row | {"verdict": problem}
    if student is None or teacher is None:
        return row | {"verdict": MISSING}
    theirs, own = ([f for f in served[who] if f is not None] for who in ("teacher", "model"))
    if len(theirs) < len(each.runs) or len(own) < len(each.runs):
        return row | {"verdict": "unknown: joules per generated token were not measured"}
    extra, j_reference, j_student = student + teacher, theirs[0], mean(own)
    extra = Figure(extra.value, extra.errors, student.spread, student.runs)
    tokens = served_tokens_until_repaid(extra.value, j_reference.value, j_student.value)
    return row | {
        "reference": each.runs[0]["references"]["teacher"]["model"],
        "tokens": tokens,
        "verdict": "never: a token of the student costs no less" if tokens is None else f"after {tokens:,.0f} tokens",
        **_bounds(extra, j_reference, j_student),
        "extra_kwh": extra.value / 3.6e6,
        "reference_j_per_token": j_reference.value,
        "student_j_per_token": j_student.value,
    }


def _deployed(summary: dict[str, Any], who: str) -> Figure | None:
    """Joules per generated token of a model in an experiment's evaluation."""
    entry = (summary.get("deployment") or {}).get(who) or {}
    if entry.get("joules_per_token") is None:
        return None
    errors: dict[tuple[str, str], float] = {}
    for part in entry["components"]:
        if part["uncertainty_pct"] is None:
            return Figure(entry["joules_per_token"], None)
        key = (part["instrument"], part["whose"])
        errors[key] = errors.get(key, 0.0) + part["joules_per_token"] * part["uncertainty_pct"] / 100
    return Figure(entry["joules_per_token"], errors)


def amortised_rows(
    summaries: list[dict[str, Any]], baseline: str | None, shares: dict[str, int]
) -> tuple[list[dict[str, Any]], list[str]]:
    """One row per experiment and N: E(N) [kWh] with its 95 % interval, and the probability to cost less than the baseline.

    N are 1, 2, 3, … 1000, further where N* is, and the number of experiments that share the teacher's output here (`shares`
    by group name, `here`).
    Returns the rows and why experiments are left out.
    """
    groups = group(summaries)
    gold = find(groups, baseline) if baseline else None
    rows, left_out = [], []
    for each in groups:
        teacher, student = teacher_cost(each) if has_teacher(each) else Figure(0.0), student_cost(each)
        reference = student_cost(gold) if gold else None
        if problem := _problem(each, gold) or (MISSING if teacher is None or student is None else None):
            left_out.append(f"{each.name} has no cost over reuses: {problem}")
            continue
        assert teacher is not None and student is not None
        here = shares.get(each.name, 1)
        star = break_even_reuse(teacher.value, student.value, reference.value) if reference else None
        drawn = sample([teacher, student, *([reference] if reference else [])])
        rows += [_amortised(each, n, (teacher, student, reference), drawn, n == here) for n in _grid(here, star)]
    return rows, left_out


def _amortised(
    each: Group, n: int, costs: tuple[Figure, Figure, Figure | None], drawn: list[np.ndarray] | None, here: bool
) -> dict[str, Any]:
    teacher, student, gold = costs
    low = high = cheaper = None
    if drawn is not None:
        cost = drawn[0] / n + drawn[1]
        low, high = interval(cost)
        if gold is not None and has_teacher(each) and not only_one_instrument((teacher, student, gold)):
            cheaper = float(np.mean(cost < drawn[2]))
    return {
        "experiment": each.name,
        "reuses": n,
        "amortised_kwh": amortised(teacher.value, student.value, n) / 3.6e6,
        "low_kwh": low / 3.6e6 if low is not None else None,
        "high_kwh": high / 3.6e6 if high is not None else None,
        "teacher_share_kwh": teacher.value / n / 3.6e6,
        "student_kwh": student.value / 3.6e6,
        "baseline_kwh": gold.value / 3.6e6 if gold is not None else None,
        "cheaper_probability": cheaper,
        "here": here,
    }


def _grid(here: int, star: float | None) -> list[int]:
    decades = min(MOST_DECADES, max(DECADES, math.ceil(math.log10(2 * star)))) if star else DECADES
    steps = {step * 10**decade for decade in range(decades) for step in GRID}
    return sorted({*(int(n) for n in steps if n == int(n)), 10**decades, here})


def _served_boundaries(each: Group) -> str | None:
    """Why joules per token of the teacher and the student cannot be subtracted, or None."""
    served = [entry for s in each.runs for who in ("teacher", "model") if (entry := (s.get("deployment") or {}).get(who))]
    found = {"+".join(entry["boundary"]) for entry in served if entry["boundary"]}
    return f"refused: boundaries differ (evaluations: {'; '.join(sorted(found))})" if len(found) > 1 else None


def _problem(*groups: Group | None, roles: tuple[str, ...] = ("teacher", "student")) -> str | None:
    """Why costs of these groups cannot be set against each other, or None."""
    present = [each for each in groups if each is not None]
    found = [text for each in present for text in each.problems]
    return f"unknown: {found[0]}" if found else boundary_refusal(present, roles)


def _bounds(above: Figure, minuend: Figure, subtrahend: Figure) -> dict[str, Any]:
    """Interval of above / (minuend - subtrahend), and in words what it holds or why there is none."""
    none = {"low": None, "high": None, "never_probability": None}
    if only_one_instrument((above, minuend, subtrahend)):
        return none | {"interval": ONE_RUN}
    found = ratio_interval(above, minuend, subtrahend)
    if found is None:
        return none | {"interval": "none: an instrument's uncertainty is not known"}
    repeated = minuend.spread is not None and subtrahend.spread is not None
    holds = "instruments and runs" if repeated else "instruments only: one run says nothing of its repeatability"
    return {"low": found.low, "high": found.high, "never_probability": found.never, "interval": f"95 %, {holds}"}
