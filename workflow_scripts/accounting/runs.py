"""Runs of one experiment: experiments that differ in nothing but the seed are one, with mean and spread."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

AVERAGED = (
    "total_kwh",
    "total_with_lineage_kwh",
    "teacher_kwh",
    "student_kwh",
    "evaluation_kwh",
    "joules_per_token",
    "tokens_per_second",
    "cross_entropy",
    "kl_to_teacher",
    "top1_agreement",
)


@dataclass(frozen=True)
class Group:
    """Summaries of the runs of one experiment, by a name of their own."""

    name: str
    runs: list[dict[str, Any]]

    @property
    def members(self) -> list[str]:
        """Names of the experiments."""
        return [s["experiment_name"] for s in self.runs]

    @property
    def problems(self) -> list[str]:
        """Why one of the runs has no whole cost."""
        return [
            f"{s['experiment_name']}: {text}" for s in self.runs for text in (*s.get("problems", []), *s.get("partial", []))
        ]


def group(summaries: Sequence[dict[str, Any]]) -> list[Group]:
    """Groups in the order of their first run; a summary without `seedless_fingerprint` is a group of its own."""
    by_settings: dict[str, list[dict[str, Any]]] = {}
    for summary in summaries:
        key = summary.get("seedless_fingerprint") or f"alone {summary['experiment_name']}"
        by_settings.setdefault(key, []).append(summary)
    names: list[str] = []
    groups = []
    for runs in by_settings.values():
        own = [s["experiment_name"] for s in runs]
        others = {s["experiment_name"] for s in summaries} - set(own) | set(names)
        names.append(_name(own, others))
        groups.append(Group(names[-1], runs))
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


def averages(groups: Sequence[Group], table: pd.DataFrame) -> list[dict[str, Any]]:
    """Mean and sample standard deviation over the runs of each group, of those that are known.

    `<column>_n` counts them; the spread needs two.
    """
    rows = []
    for each in groups:
        own = table[table["experiment"].isin(each.members)]
        row: dict[str, Any] = {"group": each.name, "members": each.members, "runs": len(each.runs)}
        for column in (*AVERAGED, *(name for name in table.columns if "/" in name)):  # metrics of tasks are task/metric
            known = [float(v) for v in own[column] if pd.notna(v)]
            row[f"{column}_mean"] = statistics.fmean(known) if known else None
            row[f"{column}_sd"] = statistics.stdev(known) if len(known) > 1 else None
            row[f"{column}_n"] = len(known)
        rows.append(row)
    return rows
