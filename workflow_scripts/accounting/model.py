"""The experiment summary's schema `experiment-summary/1`; `summary_schema.json` is generated from it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class RoleEnergy(_Closed):
    """Energy of all stages of one role; null when one of them has no figure, or there is none."""

    joules: float | None
    kwh: float | None
    uncertainty_kwh: float | None
    stages: int


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
    quality: dict[str, Any]
    references: dict[str, dict[str, Any]]
    comparable: dict[str, Any]
    config_fingerprint: str
    seedless_fingerprint: str | None = None
    deployment: dict[str, Deployment] = Field(default_factory=dict)
    stages: dict[str, dict[str, Any]]
    warnings: list[str]
