"""What an experiment's teacher and student cost, with errors, over all its runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from workflow_scripts.accounting.errors import Figure, figure_of, mean, total
from workflow_scripts.accounting.model import ROLES
from workflow_scripts.accounting.runs import Group

StageKey = tuple[Any, ...]


def with_lineage(summary: dict[str, Any], kwh: float | None) -> float | None:
    """Energy [kWh] with what training the starting policy has cost; None when either is not known."""
    if summary["lineage"] is None:
        return kwh
    before = summary["lineage"]["total_energy_kwh"]
    return kwh + before if kwh is not None and before is not None else None


def role_figure(summary: dict[str, Any], role: str) -> Figure | None:
    """Energy [J] of the stages of a role; None when there is none or one of them has no figure."""
    joules = summary["roles"].get(role, {}).get("joules")
    if joules is None:
        return None
    return _with_errors_of(joules, (r for r in own_stages(summary).values() if r.get("role") == role))


def lineage_figure(summary: dict[str, Any]) -> Figure | None:
    """Energy [J] that training the starting policy has cost, 0 without one; None when it is not known.

    The errors are those of the training records kept with it; what else is in it errs in the same proportion.
    """
    if not summary.get("lineage"):
        return Figure(0.0)
    kwh = summary["lineage"]["total_energy_kwh"]
    if kwh is None:
        return None
    return _with_errors_of(kwh * 3.6e6, (r for r in summary["stages"].values() if "lineage" in r))


def total_figure(summary: dict[str, Any]) -> Figure | None:
    """All stages of an experiment and the training of its starting policy [J]."""
    joules, before = summary.get("total_energy_joules"), lineage_figure(summary)
    if joules is None or before is None or summary.get("problems"):
        return None
    return _with_errors_of(joules, own_stages(summary).values()) + before


def own_stages(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Stage records that are in the experiment's total."""
    return {stage: r for stage, r in summary["stages"].items() if "lineage" not in r}


def in_order(stages: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Stage records by role, in the order of the work, and by start."""
    return dict(sorted(stages.items(), key=lambda item: (ROLES.index(item[1]["role"]), item[1]["start_time"], item[0])))


def _with_errors_of(joules: float, records: Iterable[dict[str, Any]]) -> Figure:
    """A known sum with the errors of its records, in proportion where they are only part of it."""
    known = [figure for r in records if (figure := figure_of(r)) is not None]
    covered = total(known)
    if not known or covered.value <= 0:
        return Figure(joules, {} if joules == 0 else None)
    return Figure(joules, covered.scaled(joules / covered.value).errors)


def teacher_cost(group: Group) -> Figure | None:
    """Mean energy [J] of the teacher's output over the runs of a group; an artefact that the runs share counts once."""
    distinct: dict[Any, Figure] = {}
    for summary in group.runs:
        figure = role_figure(summary, "teacher")
        if figure is None:
            return None
        stages = {
            key for stage, r in own_stages(summary).items() if r.get("role") == "teacher" for key in [stage_key(stage, r)]
        }
        distinct[frozenset(stages) or summary["experiment_name"]] = figure
    return mean(list(distinct.values()))


def student_cost(group: Group) -> Figure | None:
    """Mean energy [J] of the trainings over the runs of a group, those of starting policies included."""
    figures = []
    for summary in group.runs:
        own, before = role_figure(summary, "student"), lineage_figure(summary)
        if own is None or before is None:
            return None
        figures.append(own + before)
    return mean(figures)


def total_cost(group: Group) -> Figure | None:
    """Mean energy [J] of everything over the runs of a group."""
    figures = [figure for s in group.runs if (figure := total_figure(s)) is not None]
    return mean(figures) if len(figures) == len(group.runs) else None


def has_teacher(group: Group) -> bool:
    """Whether the runs used a teacher's output."""
    return any(s["roles"].get("teacher", {}).get("stages") for s in group.runs)


def boundaries(groups: Iterable[Group], roles: tuple[str, ...] = ("teacher", "student")) -> dict[str, set[str]]:
    """Boundary of the stages of some roles -> names of the groups that have it."""
    found: dict[str, set[str]] = {}
    for group in groups:
        for summary in group.runs:
            for record in summary["stages"].values():
                if record.get("role") in roles and record.get("total_energy_joules") is not None:
                    boundary = "+".join(record["energy"]["total"]["boundary"])
                    found.setdefault(boundary, set()).add(group.name)
    return found


def stage_key(stage: str, record: dict[str, Any]) -> StageKey:
    """What makes two records one run of a stage: shared artefacts have the same in every summary."""
    fingerprint = (record.get("provenance") or {}).get("fingerprint")
    return (fingerprint or stage, record.get("start_time"))


def users(summaries: Iterable[dict[str, Any]]) -> dict[StageKey, list[str]]:
    """Run of a stage -> the experiments whose summary has it, starting policies' trainings included."""
    found: dict[StageKey, list[str]] = {}
    for summary in summaries:
        for key in {stage_key(stage, r) for stage, r in summary["stages"].items()}:
            found.setdefault(key, []).append(summary["experiment_name"])
    return found


def campaign(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """What all compared experiments cost together, every run of a stage once; stages without a figure are named."""
    stages = {stage_key(name, r): (name, r) for s in summaries for name, r in s["stages"].items()}
    figures = {key: figure_of(r) for key, (_, r) in stages.items()}
    whole = total(f for f in figures.values() if f is not None)
    shared = sum(len(names) > 1 for names in users(summaries).values())
    return {
        "kwh": whole.value / 3.6e6,
        "uncertainty_kwh": whole.half_width / 3.6e6 if whole.half_width is not None else None,
        "stages": len(stages),
        "shared_stages": shared,
        "without_figure": sorted(stages[key][0] for key, f in figures.items() if f is None),
    }


def charged(summary: dict[str, Any], shares: dict[StageKey, list[str]]) -> float | None:
    """Energy [J] with every stage divided by the experiments that use it; summed over the experiments it is the campaign's.

    None when a stage has no figure.
    """
    parts = []
    for stage, record in summary["stages"].items():
        if record.get("total_energy_joules") is None:
            return None
        parts.append(record["total_energy_joules"] / len(shares[stage_key(stage, record)]))
    return math.fsum(parts) if parts else None
