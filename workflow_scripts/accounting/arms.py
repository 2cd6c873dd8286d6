"""From summaries to the runs that are judged: curves, teachers, scenarios of their energies, and what forbids a comparison."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from workflow_scripts.accounting.fairness import boundary_difference
from workflow_scripts.accounting.groups import Group
from workflow_scripts.accounting.model import ExperimentSummary, SummaryStage, hardware_of, sum_of, unlike
from workflow_scripts.accounting.rows import Refusal, StageKey, stage_key
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


def arm_of(group: Group, axis: Axis, watts: float = 0.0, apart: bool = False) -> Arm | None:
    """The runs of a group; None where an energy of one is not known.

    `watts`: see `factors`. `apart`: whether joules to a quality are of the work alone, without start-up and saves. Runs that
    start from one trained policy are no independent ones: they count as one.
    """
    runs = [_run(summary, axis, watts, apart) for summary in group.runs]
    if share_policies(group):
        known_as = list(dict.fromkeys(map(policy_of, group.runs)))
        runs = [run and replace(run, seed=known_as.index(policy_of(s))) for run, s in zip(runs, group.runs, strict=True)]
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


def arms_of(groups: Sequence[Group], axis: Axis) -> dict[str, Arm]:
    """Arms by the name of their group, without those of which an energy is not known."""
    watts, apart = modelled_watts(s for each in groups for s in each.runs), told_apart(groups)
    return {each.name: arm for each in groups if (arm := arm_of(each, axis, watts, apart)) is not None}


def told_apart(groups: Iterable[Group]) -> bool:
    """Whether the work of every training is known by itself: else start-up and saves are in the joules of all."""
    return all(work_of(summary) is not None for each in groups for summary in each.runs)


def policy_of(summary: ExperimentSummary) -> frozenset[StageKey]:
    """The trainings that made the starting policy."""
    return frozenset(stage_key(name, record) for name, record in summary.stages.items() if record.lineage is not None)


def share_policies(group: Group) -> bool:
    """Whether runs of several seeds start from one training of the policy, whose spread over seeds is then not seen."""
    policies = [policy_of(summary) for summary in group.runs]
    return all(policies) and len(set(policies)) < len({summary.comparable.get("seed") for summary in group.runs})


def _run(summary: ExperimentSummary, axis: Axis, watts: float, apart: bool) -> Run | None:
    training, before = summary.training_energy, summary.before
    final = summary.quality.quality(axis.name)
    own = joules_of(summary.unshared.values())  # of a teacher that is asked for this run alone
    earlier = joules_of(summary.earlier)
    if training is None or before is None or training.value <= 0 or own is None or earlier is None:
        return None
    rounds = [(name, (p.joules or 0.0) * each.share_kept) for each in summary.earlier for name, p in each.phases.items()]
    aside = sum(joules for name, joules in rounds if name == "evaluate" or (apart and name != "work"))
    fixed_before = before.value + own + earlier - aside
    found, work = summary.evaluations_on_the_way, work_of(summary)
    whole = training.value + before.value + own
    work = fixed_before + work if apart and work is not None else whole
    points = []
    if found and axis.name == "cross_entropy" and CURVED in summary.own:
        known = [(p.work_joules if apart else p.training_joules, p.eval_loss) for p in found.points]
        points = [(j + fixed_before, axis.sign * loss) for j, loss in known if j is not None and loss is not None]
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
    """Joules of some stages whose work survived, 0 of none; None where one of them has no figure."""
    return sum_of([0.0, *(record.kept for record in records)])


def work_of(summary: ExperimentSummary) -> float | None:
    """Joules of the work phase of a training, without start-up and saves, which no quality depends on.

    None where the records do not tell them apart, at its end or at an evaluation: of a training that was resumed, several
    starts are among its points.
    """
    training, found = summary.training, summary.evaluations_on_the_way
    work = training.work_phase if training else None
    if training is None or work is None or len(training.attempts) > 1 or any(record.wasted_j for record in summary.earlier):
        return None
    return None if any(point.work_joules is None for point in (found.points if found else [])) else work.joules


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


def metering_of(records: Iterable[SummaryStage]) -> str:
    """Whose energy the figures of stages are, of how many CPUs, and the power that their modelled ones are made from."""
    found = set()
    for record in records:
        found |= {f"{name} of the {part.scope}" for name, part in record.inside.items()}
        if record.cpu and record.cpu.job_cpus:
            found.add(f"{record.cpu.job_cpus:g} of {record.cpu.host_cpus} CPUs")
        modelled = {name for name, part in record.inside.items() if part.energy_class == "modelled"}
        for model in record.power_models:
            words = {"cpu": f"TDP {model.cpu_tdp_watts:g} W", "dram": f"memory {model.dram_watts:g} W"}
            found |= {words[name] for name in modelled & words.keys()}
    return ", ".join(sorted(found))


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
    student = {each.name: [r for s in each.runs for r in s.stages.values() if r.role == "student"] for each in both}
    if hardware := unlike({name: hardware_of(records) for name, records in student.items()}):
        found.append(Refusal(what="hardware", experiment=method.name, value=hardware))
    if meters := unlike({each.name: metering_of(s.training for s in each.runs if s.training) for each in both}):
        found.append(Refusal(what="meter", experiment=method.name, value=meters))
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
