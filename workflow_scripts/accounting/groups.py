"""Runs of one experiment: experiments that differ in nothing but the seed are one, with mean and spread."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workflow_scripts.accounting.model import ExperimentSummary
from workflow_scripts.accounting.rows import ExperimentRow, GroupRow
from workflow_scripts.energy.uncertainty import Energy

AVERAGED = (
    *("total_kwh", "method_kwh", "beside_kwh", "teacher_kwh", "student_kwh", "lineage_kwh", "evaluation_kwh"),
    *("training_s", "training_cpu_s", "training_idle_pct", "work_joules_per_token", "work_tokens_per_second"),
    *("joules_per_token", "tokens_per_second", "cross_entropy", "bits_per_byte", "kl_to_teacher", "top1_agreement"),
)


@dataclass(frozen=True)
class Group:
    """Summaries of the runs of one experiment, by a name of their own."""

    name: str
    runs: list[ExperimentSummary]

    @property
    def members(self) -> list[str]:
        """Names of the experiments."""
        return [s.experiment_name for s in self.runs]

    @property
    def problems(self) -> list[str]:
        """Why one of the runs has no whole cost."""
        return [f"{s.experiment_name}: {text}" for s in self.runs for text in (*(p.text for p in s.problems), *s.partial)]

    @property
    def method_energies(self) -> list[Energy]:
        """What the method cost in each run; empty when one is not known."""
        known = [energy for s in self.runs if (energy := s.method_energy) is not None]
        return known if len(known) == len(self.runs) else []


def group(summaries: Sequence[ExperimentSummary]) -> list[Group]:
    """Groups in the order of their first run; a summary without `seedless_fingerprint` is a group of its own."""
    by_settings: dict[str, list[ExperimentSummary]] = {}
    for summary in summaries:
        key = summary.seedless_fingerprint or f"alone {summary.experiment_name}"
        by_settings.setdefault(key, []).append(summary)
    groups: list[Group] = []
    for runs in by_settings.values():
        own = [s.experiment_name for s in runs]
        others = {s.experiment_name for s in summaries} - set(own) | {each.name for each in groups}
        groups.append(Group(_name(own, others), runs))
    return groups


def _name(names: list[str], taken: set[str]) -> str:
    """What the names begin with, `kd` for kd_seed1 and kd_seed2; the first name where that says nothing."""
    if len(names) == 1:
        return names[0]
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    stem = "".join(letters[0] for letters in alike).rstrip("0123456789_-#")
    for word in ("seed", "run", "s"):
        if stem.endswith((f"_{word}", f"-{word}")):
            stem = stem[: -len(word) - 1]
    return stem if len(stem) > 1 and stem not in taken else names[0]


def find(groups: Iterable[Group], experiment: str) -> Group | None:
    """The group that is called so, or that an experiment of that name belongs to."""
    return next((g for g in groups if experiment == g.name or experiment in g.members), None)


def averages(groups: Sequence[Group], table: Sequence[ExperimentRow]) -> list[GroupRow]:
    """Mean and sample standard deviation over the runs of each group, of those that are known; the spread needs two."""
    metrics = dict.fromkeys(name for row in table for name in row.model_extra or {} if "/" in name)
    rows = []
    for each in groups:
        own = [row for row in table if row.experiment in each.members]
        columns: dict[str, float | None] = {}
        for name in (*AVERAGED, *metrics):
            known = [float(value) for row in own if (value := row.column(name)) is not None]
            columns[f"{name}_mean"] = statistics.fmean(known) if known else None
            columns[f"{name}_sd"] = statistics.stdev(known) if len(known) > 1 else None
            columns[f"{name}_n"] = len(known)
        rows.append(GroupRow.model_validate({"group": each.name, "members": each.members, "runs": len(each.runs), **columns}))
    return rows
