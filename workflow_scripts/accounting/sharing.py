"""Stages that several of the compared experiments use: a run of a stage is known by its fingerprint and start."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from workflow_scripts.accounting.model import ExperimentSummary
from workflow_scripts.energy.model import StageRecord

StageKey = tuple[str, float]
Users = dict[StageKey, list[str]]  # run of a stage -> names of the experiments that use it


def stage_key(stage: str, record: StageRecord) -> StageKey:
    """What makes two records one run of a stage: shared artefacts have the same in every summary."""
    return (record.provenance.fingerprint or stage, record.start_time)


def users(summaries: Iterable[ExperimentSummary]) -> Users:
    """Run of a stage -> the experiments whose summary has it, starting policies' trainings included."""
    found: Users = {}
    for summary in summaries:
        for key in {stage_key(stage, r) for stage, r in summary.stages.items()}:
            found.setdefault(key, []).append(summary.experiment_name)
    return found


def teacher_users(summary: ExperimentSummary, shares: Users) -> int | None:
    """How many of the compared experiments use this one's teacher output; None without one."""
    return max((len(shares[stage_key(n, r)]) for n, r in summary.own.items() if r.role == "teacher"), default=None)


def charged(summary: ExperimentSummary, shares: Users) -> float | None:
    """Energy [J] with every stage divided by the experiments that use it; summed over the experiments it is the campaign's.

    None when a stage has no figure.
    """
    parts = [r.spent.value / len(shares[stage_key(n, r)]) for n, r in summary.stages.items() if r.spent is not None]
    return math.fsum(parts) if len(parts) == len(summary.stages) else None


def runs_of_stages(summaries: Sequence[ExperimentSummary]) -> dict[StageKey, tuple[str, StageRecord]]:
    """Every run of a stage once, with the stage's name."""
    return {stage_key(name, r): (name, r) for s in summaries for name, r in s.stages.items()}
