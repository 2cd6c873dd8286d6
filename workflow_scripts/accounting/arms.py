"""From summaries to the runs that are judged: curves, teachers, scenarios of their energies, and what forbids a comparison."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workflow_scripts.accounting.fairness import boundary_difference
from workflow_scripts.accounting.groups import Group
from workflow_scripts.accounting.model import ExperimentSummary, SummaryStage, hardware_of, sum_of, unlike
from workflow_scripts.accounting.rows import Refusal, stage_key
from workflow_scripts.accounting.verdicts import Arm, Run
from workflow_scripts.energy.neighbours import ANOTHER_METER
from workflow_scripts.energy.uncertainty import instrument
from workflow_scripts.settings.evaluation import FOLLOWED

CURVED = "student_train"  # its intermediate evaluations are the cross entropy of the evaluation's split; dpo's are its own loss
OWN_HOST = 0.95  # share of the host's CPU time, from which a stage had its host for itself
SECOND_MODEL = "second energy model"


@dataclass(frozen=True)
class Axis:
    """A quality and its direction; losses are qualities times `sign`, so that lower is better."""

    name: str
    sign: float

    def rows(self, summary: ExperimentSummary) -> tuple[Any, Any]:
        """Summed losses and tokens of the held-out rows; empty where they were not kept, or of another quality.

        Rows of `instructions/followed` are its prompts, of one token each.
        """
        if self.name == FOLLOWED and summary.quality.rows and (followed := summary.quality.rows.instructions):
            return self.sign * np.array(followed, dtype=float), np.ones(len(followed))
        found = getattr(summary.quality.rows, self.name, None)
        if found is None or summary.quality.rows is None:
            return np.empty(0), np.empty(0)
        return self.sign * np.array(found, dtype=float), np.array(summary.quality.rows.tokens, dtype=float)


def arm_of(group: Group, axis: Axis, watts: float) -> Arm | None:
    """The runs of a group; None where an energy of one is not known. `watts`: see `factors`."""
    runs = [_run(summary, axis, watts) for summary in group.runs]
    teachers: dict[Hashable, tuple[float, dict[str, float]]] = {}
    for summary in group.runs:
        records = {n: r for n, r in summary.own.items() if r.role == "teacher" and n not in summary.unshared}
        spent = joules_of(records.values())
        if records and not spent:
            return None
        if records and spent is not None:
            key = frozenset(stage_key(name, record) for name, record in records.items())
            teachers[key] = (spent * summary.used_share, factors(records.values(), watts))
    known = [run for run in runs if run is not None]
    return Arm(group.name, known, list(teachers.values())) if len(known) == len(runs) and not group.problems else None


def _run(summary: ExperimentSummary, axis: Axis, watts: float) -> Run | None:
    training, before = summary.training_energy, summary.before
    final = summary.quality.quality(axis.name)
    own = joules_of(summary.unshared.values())  # of a teacher that is asked for this run alone
    earlier = joules_of(summary.earlier)
    if training is None or before is None or training.value <= 0 or own is None or earlier is None:
        return None
    rounds = [(name, phase.joules or 0.0) for record in summary.earlier for name, phase in record.phases.items()]
    aside = sum(joules for name, joules in rounds if name != "work")
    evaluated = sum(joules for name, joules in rounds if name == "evaluate")
    fixed_before = before.value + own + earlier - aside
    found, fixed = summary.evaluations_on_the_way, fixed_joules(summary)
    whole = training.value + before.value + own
    work = whole - sum(fixed) - (aside - evaluated)  # evaluations are no part of `whole`
    points = []
    if found and axis.name == "cross_entropy" and CURVED in summary.own:
        known = [(p.training_joules, p.eval_loss) for p in found.points]
        curve = [(joules, loss) for joules, loss in known if joules is not None and loss is not None]
        points = [(max(0.0, joules - fixed[0]) + fixed_before, axis.sign * loss) for joules, loss in curve]
    final = math.nan if final is None else axis.sign * final
    points = [point for point in points if point[0] < work] + [(work, final)]
    rows, tokens = axis.rows(summary)
    seed = summary.comparable.get("seed")
    return Run(
        np.array([joules for joules, _ in points]),
        np.array([loss for _, loss in points]),
        whole,
        seed if isinstance(seed, int) else None,
        rows,
        tokens,
        factors([r for n, r in summary.stages.items() if r.role == "student" or n in summary.unshared], watts),
    )


def joules_of(records: Iterable[SummaryStage]) -> float | None:
    """Joules of some stages, 0 of none; None where one of them has no figure."""
    return sum_of([0.0, *(spent.value if (spent := record.spent) else None for record in records)])


def fixed_joules(summary: ExperimentSummary) -> tuple[float, float]:
    """Joules of a training's start-up and saves, which no quality depends on; 0 where a record does not tell them apart.

    A training that was resumed has several starts among its points: they stay in it.
    """
    training = summary.training
    if training is None or not told_apart(summary):
        return 0.0, 0.0
    start, save = (training.phases.get(name) for name in ("start", "save"))
    return (start.joules or 0.0 if start else 0.0), (save.joules or 0.0 if save else 0.0)


def told_apart(summary: ExperimentSummary) -> bool:
    """Whether the record of the training has its work phase by itself."""
    training = summary.training
    work = training.work_phase if training else None
    return training is not None and len(training.attempts) == 1 and work is not None and work.joules is not None


def factors(records: Iterable[SummaryStage], watts: float) -> dict[str, float]:
    """Energy of some stages in each scenario, by the recorded one.

    Every instrument at either end of its half-width, one at a time; the models of CPU and memory are two. And modelled
    components by their second model (`crosscheck`), or, where it is not known, by wall time at `watts`.
    """
    whole, other = 0.0, 0.0
    widths: dict[str, float] = {}
    for record in records:
        parts = record.inside
        modelled = [part for part in parts.values() if part.energy_class == "modelled"]
        known = [part.crosscheck for part in modelled if part.crosscheck is not None]
        measured = sum(part.joules or 0.0 for part in parts.values() if part.energy_class != "modelled")
        second = sum(known) if len(known) == len(modelled) else watts * record.duration_seconds
        whole += sum(part.joules or 0.0 for part in parts.values())
        other += measured + second
        for name, part in parts.items():
            for place, share in record.sensors(name).items():
                key = f"{instrument(part.method)} on {place}"
                width = (part.joules or 0.0) * share * (part.uncertainty_pct or 0.0) / 100
                widths[key] = widths.get(key, 0.0) + width
    if whole <= 0:
        return {}
    ends = {f"{key} {sign:+}": 1 + sign * width / whole for key, width in widths.items() for sign in (1, -1) if width}
    return ends | ({SECOND_MODEL: other / whole} if other not in (0.0, whole) else {})


def modelled_watts(summaries: Iterable[ExperimentSummary]) -> float:
    """Mean power [W] of everything modelled in the trainings and teachers; 0 without any."""
    joules = seconds = 0.0
    for record in (r for s in summaries for r in s.stages.values() if r.role in ("teacher", "student")):
        own = sum(part.joules or 0.0 for part in record.inside.values() if part.energy_class == "modelled")
        joules, seconds = joules + own, seconds + (record.duration_seconds if own else 0.0)
    return joules / seconds if seconds else 0.0


def student_of(summary: ExperimentSummary) -> str | None:
    """The model that the first of the experiment's trainings started from; None where a summary does not say it."""
    known = summary.comparable.get("student", None if summary.lineage else summary.comparable.get("starting model"))
    return None if known is None else str(known)


def refusals(method: Group, baseline: Group, quality: str) -> list[Refusal]:
    """Why a method cannot be compared with the baseline, each with the stage to repeat where there is one."""
    both = [method, baseline]
    found = [Refusal(what="energy", experiment=each.name, value=each.problems[0]) for each in both if each.problems]
    if boundaries := boundary_difference(both, "teacher", "student"):
        found.append(Refusal(what="boundary", experiment=method.name, value=boundaries))
    judged = [s.quality for each in both for s in each.runs]
    splits = {(q.split_sha256 or "unknown")[:12] for q in judged}
    tokenizers = {f"tokenizer {(q.tokenizer_sha256 or '?')[:12]}" for q in judged}
    if len(tokenizers) > 1 and quality not in ("bits_per_byte", FOLLOWED):  # the others count tokens
        splits |= tokenizers
    if len(splits) > 1:
        found.append(Refusal(what="evaluation split", experiment=method.name, value=", ".join(sorted(splits))))
    students = {student_of(s) for s in baseline.runs}
    for summary in method.runs:
        own = student_of(summary)
        if summary.before is None or (own is not None and own not in students):
            start = own or str(summary.comparable.get("starting model"))
            found.append(Refusal(what="starting model", experiment=summary.experiment_name, value=start))
    if hardware := unlike({each.name: hardware_of(r for s in each.runs for r in s.of("student")) for each in both}):
        found.append(Refusal(what="hardware", experiment=method.name, value=hardware))
    return found + [refusal for each in both for summary in each.runs for refusal in contention(summary)]


def contention(summary: ExperimentSummary) -> list[Refusal]:
    """Compared stages that shared host or GPU with other work, or have an instrument of unknown uncertainty."""
    found = []
    for name, record in summary.stages.items():
        spent = record.spent
        if record.role not in ("teacher", "student") or not spent:
            continue
        where = {"experiment": record.lineage or summary.experiment_name, "stage": name}
        if spent.errors is None:
            found.append(Refusal(what="uncertainty", **where))
        if "cpu" in record.energy.total.boundary and record.energy.cpu.scope == "host":
            role = summary.spent(record.role)
            matters = role is None or spent.value > 0.01 * role.value  # a merge of half a second shares its host with its meter
            used = record.cpu.job_s + record.cpu.foreign_s if record.cpu else 0.0  # of the hosts' CPUs, by it and other work
            share = record.cpu.job_s / used if record.cpu and used > 0 else record.energy.cpu.share
            if share is not None and share < OWN_HOST and matters:
                found.append(Refusal(what="cpu share", value=f"{share:.2f}", **where))
            if any(ANOTHER_METER in text for text in record.warnings):
                found.append(Refusal(what="another meter", **where))
        if others := {pid for device in record.devices for pid in (device.model_extra or {}).get("other_processes") or []}:
            found.append(Refusal(what="gpu processes", value=str(len(others)), **where))
    return found


def repeated_evaluations(groups: Sequence[Group]) -> list[list[float]]:
    """Joules of evaluations that did equal work: same host and hardware, same input tokens, another run of it.

    Where a record tells phases apart they are those of its work: generated answers are as long as each model makes them.
    """
    found: dict[Hashable, dict[Hashable, float]] = {}
    for summary in (s for each in groups for s in each.runs):
        record = summary.own.get("evaluation")
        if record is None or record.spent is None or not record.work.input:
            continue
        student = summary.references.get("student")
        equal = (record.provenance.host, summary.hardware, record.work.input, student.model if student else None)
        work = record.work_phase
        found.setdefault(equal, {})[stage_key("evaluation", record)] = (work and work.joules) or record.spent.value
    return [list(joules.values()) for joules in found.values() if len(joules) > 1]
