"""`comparison/1`: the comparison and the rows of its tables. Energies in kWh, unknown is null."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from workflow_scripts.accounting.model import ExperimentSummary, SummaryStage, sum_of
from workflow_scripts.accounting.verdicts import Cause, Kind
from workflow_scripts.energy.documents import Closed, Document
from workflow_scripts.energy.model import StageRecord
from workflow_scripts.energy.uncertainty import KWH, Energy

StageKey = tuple[str, float]
BESIDE = ("prerun", "data", "evaluation")  # roles that are no part of what a method costs
Users = dict[StageKey, list[str]]  # run of a stage -> names of the experiments that use it
Properties = Literal["energy", "boundary", "evaluation split", "starting model", "hardware", "meter", "uncertainty"]
What = Properties | Literal["cpu share", "another meter", "gpu processes"]  # what forbids a comparison


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


class Row(BaseModel):
    """A row of a table; metrics of tasks and means over runs are columns beside the named ones."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _finite(cls, content: dict[str, Any]) -> dict[str, Any]:
        return {k: None if isinstance(value, float) and not math.isfinite(value) else value for k, value in content.items()}

    def column(self, name: str) -> Any:
        """A column by its name, None where the row has none."""
        return getattr(self, name, None)


PHASES = ("start", "work", "evaluate", "save")
RATES = ("tokens_per_second", "work_joules_per_token", "work_tokens_per_second")


class ExperimentRow(Row):
    """An experiment: energies by role, J per loss token of the training, quality on held-out text.

    `teacher_users` counts the compared experiments that use the teacher's output, `teacher_share_kwh` is its energy divided by
    them; `charged_kwh` divides every stage so, and sums up to the campaign's total. `training_idle_pct` is the part of the
    training's energy that the idle host would have used, None without a baseline of this host.
    """

    experiment: str
    pipeline: str
    group: str
    method_kwh: float | None
    method_uncertainty_kwh: float | None
    lineage_kwh: float | None

    @classmethod
    def of(cls, summary: ExperimentSummary, group: str, shares: Users) -> ExperimentRow:
        """The row of an experiment."""
        training, quality, references, roles = summary.training, summary.quality, summary.references, summary.roles
        whole = summary.spent() if not summary.problems else None
        share = charged(summary, shares) if not summary.problems else None
        users, teacher_kwh = teacher_users(summary, shares), roles["teacher"].kwh
        tokens = training.tokens_processed if training else None
        per_token = training.spent.scaled(1 / tokens) if training and training.spent and tokens else None
        joules, above_idle = (
            sum_of([getattr(r, key) for r in summary.trainings]) for key in ("total_energy_joules", "above_idle_j")
        )
        known = {
            "experiment": summary.experiment_name,
            "pipeline": summary.pipeline,
            "group": group,
            **_kwh("method", summary.method_energy),
            "beside_kwh": sum_of([*(roles[role].kwh for role in BESIDE if roles[role].stages), *summary.evaluating_kwh]),
            "lineage_kwh": summary.before.kwh if summary.before and summary.lineage else None,
            **{f"{role}_kwh": entry.kwh for role, entry in roles.items()},
            **{f"{role}_uncertainty_kwh": roles[role].uncertainty_kwh for role in ("teacher", "student")},
            **_kwh("total", whole),
            "wasted_kwh": summary.wasted_j / KWH if summary.wasted_j is not None else None,
            "carbon_g": summary.carbon_grams,
            "no_grams": training.carbon.reason if training else None,
            "training_tokens": summary.total_tokens_processed,
            "joules_per_token": training.joules_per_token if training else None,
            "joules_per_token_uncertainty": per_token.half_width if per_token else None,
            **{key: getattr(training, key) if training else None for key in RATES},
            "training_s": sum_of([r.duration_seconds for r in summary.trainings]),
            "training_cpu_s": sum_of([r.cpu.job_s if r.cpu else None for r in summary.trainings]),
            "training_idle_pct": 100 * (1 - above_idle / joules) if joules and above_idle is not None else None,
            **{key: getattr(quality, key) for key in ("cross_entropy", "bits_per_byte", "kl_to_teacher", "top1_agreement")},
            "untrained_cross_entropy": references["student"].cross_entropy if "student" in references else None,
            "teacher_cross_entropy": references["teacher"].cross_entropy if "teacher" in references else None,
            "preference_margin": quality.preference.mean_margin if quality.preference else None,
            "preference_accuracy": quality.preference.accuracy if quality.preference else None,
            "energy_class": summary.energy.energy_class,
            "boundary": "; ".join(summary.energy.boundary),
            "seed": summary.comparable.get("seed"),
            "hardware": summary.hardware,
            "teacher_users": users,
            "teacher_share_kwh": teacher_kwh / users if teacher_kwh is not None and users else None,
            "charged_kwh": share / KWH if share is not None else None,
            "generated_j_per_token": summary.deployment["model"].joules_per_token if "model" in summary.deployment else None,
            "problems": "; ".join([*(problem.text for problem in summary.problems), *summary.partial]),
        }
        return cls.model_validate(known | {name: entry.value for name, entry in quality.metrics.items()})


def _kwh(name: str, spent: Energy | None) -> dict[str, float | None]:
    return {
        f"{name}_kwh": spent.kwh if spent else None,
        f"{name}_uncertainty_kwh": spent.uncertainty_kwh if spent else None,
    }


def stage_row(experiment: str, name: str, r: SummaryStage, shares: Users) -> dict[str, object]:
    """A stage of an experiment: energy with class, boundary and half-width, work and rates.

    `lineage` names the experiment whose starting policy a stage made; such a stage is in no total of this experiment. `users`
    counts the compared experiments that share the stage, `share_kwh` is its energy divided by them.
    """
    spent, users = r.spent, len(shares[stage_key(name, r)])
    return {
        "experiment": experiment,
        "stage": name,
        **{key: getattr(r, key) for key in ("role", "lineage", "status")},
        "joules": spent.value if spent else None,
        "kwh": spent.kwh if spent else None,
        "uncertainty_j": spent.half_width if spent else None,
        "energy_class": r.energy.total.energy_class,
        "boundary": r.boundary,
        "reason": r.energy.total.reason,
        **{f"{part}_j": getattr(r.energy, part).joules for part in ("gpu", "cpu", "dram")},
        "module_j": r.energy.module.joules if r.energy.module else None,
        **{key: getattr(r, key) for key in ("useful_j", "wasted_j")},
        "carbon_g": r.carbon.grams,
        "duration_s": r.duration_seconds,
        "cpu_s": r.cpu.job_s if r.cpu else None,
        "foreign_cpu_pct": r.cpu.foreign_pct if r.cpu else None,
        **{f"{name}_phase_j": r.phases[name].joules if name in r.phases else None for name in PHASES},
        "tokens": r.tokens_processed,
        **{key: getattr(r, key) for key in ("tokens_unit", "joules_per_token", *RATES)},
        "attempts": len(r.attempts),
        "users": users,
        "share_kwh": spent.kwh / users if spent else None,
        "fingerprint": r.provenance.fingerprint,
    }


class GroupRow(Row):
    """Runs of one experiment: `<column>_mean`, `<column>_sd` (from two on) and `<column>_n` of what is known of them.

    `pareto_probability` is the chance to be on the front of energy and the compared quality, `pareto_of_instructions` on that
    of energy and `instructions/followed`.
    """

    group: str
    members: list[str]
    runs: int
    pareto_probability: float | None = None
    pareto_of_instructions: float | None = None


class Refusal(Closed):
    """Why energies are not compared: the property, the stage of the experiment that has it, and its value."""

    what: What
    experiment: str
    stage: str | None = None
    value: str = ""


class Answer(Row):
    """What may be said of a method against the baseline; `kind` is the answer, `at_equal` that at the quality `target`.

    `reuses` is N* there, `saved` the share of the baseline's energy that the method saves, `better` the advantage of its final
    model; each with the bounds of its 95 % interval, null where they are not known (the upper one of N*: or infinite).
    `equal_tokens` is N* of the whole trainings, the published formula, at whatever quality they end. `work_apart`: start-up and
    saves are not in the joules to a quality, as the records of all compared trainings tell them apart.
    """

    experiment: str
    baseline: str
    runs: int
    baseline_runs: int
    kind: Kind
    at_equal: Kind | None = None
    cause: Cause | None = None
    refusals: list[Refusal] = Field(default_factory=list)
    target: float | None = None
    teacher_kwh: float | None = None
    teacher_used: float | None = None
    baseline_kwh: float | None = None
    method_kwh: float | None = None
    reuses: float | None = None
    reuses_low: float | None = None
    reuses_high: float | None = None
    saved: float | None = None
    saved_low: float | None = None
    saved_high: float | None = None
    better: float | None = None
    better_low: float | None = None
    better_high: float | None = None
    final: float | None = None
    baseline_final: float | None = None
    equal_tokens_saved: float | None = None
    equal_tokens: float | None = None
    equal_tokens_low: float | None = None
    equal_tokens_high: float | None = None
    repeatability: float | None = None
    seeds_needed: int | None = None
    worsened: bool = False
    work_apart: bool = True
    scenarios: dict[str, Kind] = Field(default_factory=dict)


class Advantage(Row):
    """A quality of a method's final models beside the baseline's: means over runs, and `better`, the method's advantage.

    Bounds are those of its 95 % interval, null where a method has one run, or rows of the quality were not kept. `clear`: the
    sign is sure at 95 % for all methods together. `why_not` says why it is not compared.
    """

    experiment: str
    baseline: str
    quality: str
    final: float | None = None
    baseline_final: float | None = None
    better: float | None = None
    better_low: float | None = None
    better_high: float | None = None
    clear: bool = False
    why_not: str | None = None


Unrepaid = Literal["no target", "target not reached", "energy", "not measured", "boundary", "hardware", "undetermined", "never"]


class Repayment(Row):
    """T*: tokens served until making the student is repaid, against serving its teacher; needs a quality that was asked for.

    Joules per token are means over all experiments of one architecture. `why_not` says why there is no T*.
    """

    experiment: str
    tokens: float | None = None
    low: float | None = None
    high: float | None = None
    extra_kwh: float | None = None
    reference_j_per_token: float | None = None
    student_j_per_token: float | None = None
    pooled: int = 0
    why_not: Unrepaid | None = None


class Amortised(Row):
    """E(N) of an experiment to `target`, or of whole trainings where it is null, with its 95 % interval over seeds."""

    experiment: str
    target: float | None
    reuses: int
    amortised_kwh: float
    low_kwh: float | None
    high_kwh: float | None
    baseline_kwh: float | None
    here: bool


class Level(Row):
    """Energy to a quality of a method or the baseline, and N* there where both reach it, with 95 % intervals over seeds."""

    experiment: str
    quality: float
    kwh: float
    low_kwh: float | None
    high_kwh: float | None
    reuses: float | None = None
    reuses_low: float | None = None
    reuses_high: float | None = None


class Campaign(Row):
    """What all compared experiments cost together, every run of a stage once; stages without a figure are named."""

    kwh: float
    uncertainty_kwh: float | None
    stages: int
    shared_stages: int
    without_figure: list[str]


class Source(Row):
    """How the joules of a component were obtained in the compared stages, shared ones once, and by a second method.

    The half-widths of one instrument add up linearly; `uncertainty_pct` is their sum relative to the energy.
    """

    component: str
    method: str
    energy_class: str
    kwh: float
    second_kwh: float | None
    uncertainty_pct: float | None


class Comparison(Document):
    """comparison.json. `differs` names the properties that must agree for a fair comparison and do not."""

    schema_: Literal["comparison/1"] = Field("comparison/1", alias="schema")
    quality: str
    baseline: str | None
    experiments: list[ExperimentRow]
    target: float | None
    answers: list[Answer]
    qualities: list[Advantage] = Field(default_factory=list)
    levels: list[Level]
    warnings: list[str]
    differs: list[str]
    pareto_refused: str | None
    quality_refused: bool
    groups: list[GroupRow]
    repayment: list[Repayment]
    amortised: list[Amortised]
    campaign: Campaign
    sources: list[Source]
    skipped: list[dict[str, str]]
    counts: dict[str, int]

    @computed_field
    @property
    def campaign_kwh(self) -> float:
        """What all compared experiments cost together."""
        return self.campaign.kwh


def names(rows: Sequence[ExperimentRow], key: str) -> list[str]:
    """The values of a column of words, each once."""
    return sorted({text for row in rows if (text := row.column(key))})
