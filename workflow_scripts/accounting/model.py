"""Schemas `experiment-summary/1` and `forecast/1`; `summary_schema.json` and `forecast_schema.json` are generated from them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ROLES = ("prerun", "data", "teacher", "student", "evaluation")  # of the stages in a summary


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class RoleEnergy(_Closed):
    """Energy of all stages of one role; null when one of them has no figure, or there is none.

    Class (the worst) and boundaries are those of the stages that have a figure; class null where there is no stage.
    """

    joules: float | None
    kwh: float | None
    uncertainty_kwh: float | None
    stages: int
    useful_j: float | None = None
    wasted_j: float | None = None
    energy_class: Literal["measured", "integrated", "modelled", "unavailable"] | None = Field(None, alias="class")
    boundary: list[str] = Field(default_factory=list)


class SummaryEnergy(_Closed):
    """How the total was obtained: worst class, boundaries, whether every stage has a figure, its uncertainty."""

    energy_class: Literal["measured", "integrated", "modelled", "unavailable"] = Field(alias="class")
    boundary: list[str]
    complete: bool
    uncertainty_j: float | None
    uncertainty_pct: float | None


class Reuse(_Closed):
    """Which compared experiments share a stage's artefact."""

    experiments: int
    names: list[str]


class Lineage(_Closed):
    """What the starting policy has cost before; not in this experiment's total."""

    policy: str
    student_kwh: float | None
    teacher_kwh: float | None
    total_energy_kwh: float | None


class Deployment(_Closed):
    """What serving a model costs: joules per generated token in its evaluation, by which method, from which components."""

    joules_per_token: float | None
    tokens: int | None
    seconds: float | None
    watts: float | None
    boundary: list[str]
    components: list[dict[str, Any]]
    method: Literal["trace", "mean power of the evaluation"] | None
    reason: str | None


class Bounds(_Closed):
    """A predicted figure between its bounds."""

    low: float
    predicted: float
    high: float


class ForecastRow(_Closed):
    """One planned stage. Figures are null with a `reason` where it cannot be priced.

    `record` is the file that will say what it has cost; `jobs` counts the planned jobs (the parts of a stage and their merge);
    `settings` marks the stage's settings, so that the outcome of others is not compared with it.
    """

    stage: str
    label: str
    record: str
    jobs: dict[str, int]
    settings: str
    made_at: float
    basis: str | None
    unit: str | None
    tokens: Bounds | None
    kwh: Bounds | None
    hours: Bounds | None
    grams: Bounds | None
    reason: str | None
    notes: list[str]


class ForecastTotal(_Closed):
    """Sum over the priced stages, bounds added up; `unpriced` names the stages that are not in it."""

    kwh: Bounds | None
    hours: Bounds | None
    grams: Bounds | None
    unpriced: list[str]


class Forecast(_Closed):
    """`forecast/1`: what the stale jobs of one plan will cost. `earlier` keeps the rows of records outside this plan."""

    schema_: Literal["forecast/1"] = Field("forecast/1", alias="schema")
    made_at: float
    arguments: list[str]
    hardware: str
    rows: list[ForecastRow]
    total: ForecastTotal
    earlier: list[ForecastRow]
    notes: list[str]


class Outcome(_Closed):
    """Forecast against outcome, kWh; `actual` is null where the record has no figure, and then nothing is `inside`."""

    predicted: float
    low: float
    high: float
    actual: float | None
    inside: bool | None


class ForecastOutcome(_Closed):
    """The forecast stages of an experiment, and their sum. Stages that were not forecast are in neither."""

    unit: Literal["kWh"]
    stages: dict[str, Outcome]
    total: Outcome


class PointOnTheWay(_Closed):
    """Held-out loss after `step` optimizer steps, and the joules of the training alone until then."""

    step: int
    eval_loss: float
    training_joules: float | None


class EvaluationsOnTheWay(_Closed):
    """What the evaluations inside the training have cost; their joules are on the training's bill, null with a reason."""

    count: int
    seconds: float
    joules: float | None
    reason: str | None
    points: list[PointOnTheWay]


class ExperimentSummary(_Closed):
    """All stages of one experiment added up. Energies in J and kWh, durations in s.

    A stage with a key `lineage` belongs to the experiment of that name, whose model this one starts from; it is in no total.
    """

    schema_: Literal["experiment-summary/1"] = Field("experiment-summary/1", alias="schema")
    experiment_id: str
    experiment_name: str
    pipeline: str
    description: str
    start_time: float
    end_time: float
    total_duration_seconds: float
    total_tokens_processed: int | None
    tokens_unit: str | None
    tokens: dict[str, int | None]
    throughput: dict[str, float | None]
    total_gpu_energy_joules: float | None
    total_cpu_energy_joules: float | None
    total_energy_joules: float | None
    total_energy_kwh: float | None
    joules_per_token: float | None
    overall_joules_per_token: float | None
    overall_tokens_per_second: float | None
    energy: SummaryEnergy
    useful_j: float | None
    wasted_j: float | None
    carbon_grams: float | None
    roles: dict[str, RoleEnergy]
    reuse: dict[str, Reuse]
    lineage: Lineage | None
    forecast: ForecastOutcome | None
    quality: dict[str, Any]
    references: dict[str, dict[str, Any]]
    comparable: dict[str, Any]
    config_fingerprint: str
    seedless_fingerprint: str | None = None
    evaluations_on_the_way: EvaluationsOnTheWay | None = None
    deployment: dict[str, Deployment] = Field(default_factory=dict)
    stages: dict[str, dict[str, Any]]
    warnings: list[str]
