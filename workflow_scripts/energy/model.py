"""The stage record's schema `energy-stage/1`; `record_schema.json` is generated from it and kept in step by a test."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

CLASSES = ("measured", "integrated", "modelled", "unavailable")
EnergyClass = Literal["measured", "integrated", "modelled", "unavailable"]
Role = Literal["prerun", "data", "teacher", "student", "evaluation", "accounting"]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Component(_Closed):
    """Energy of one component; `joules` is null with a `reason` when it is not known, and 0 only from a counter.

    Where `scope` is `job`, `joules` is the job's `share` (of CPU time) of `host_joules`; elsewhere `share` is for information.
    """

    joules: float | None
    energy_class: EnergyClass = Field(alias="class")
    method: str | None
    scope: Literal["device", "host", "job"]
    share: float | None = None
    host_joules: float | None = None
    uncertainty_pct: float | None = None
    crosscheck: float | None = None
    reason: str | None = None


class Total(_Closed):
    """Sum over the boundary's components, with the worst of their classes and their propagated uncertainty."""

    joules: float | None
    energy_class: EnergyClass = Field(alias="class")
    boundary: list[str]
    uncertainty_j: float | None = None
    uncertainty_pct: float | None = None
    reason: str | None = None


class EnergyFigures(_Closed):
    """All components and their total."""

    gpu: Component
    cpu: Component
    dram: Component
    node: Component
    total: Total


class Sampling(_Closed):
    """How well the attempt was sampled; `j_in_gaps` are joules extrapolated over time that no source covered."""

    period_s: float
    n: int
    expected: int
    missed_pct: float | None
    max_gap_s: float
    j_in_gaps: float


class AttemptRecord(_Closed):
    """One run of the stage, finished or not."""

    id: str
    part: str | None = None
    outcome: Literal["completed", "failed", "timeout", "signal", "lost"]
    exit_code: int | None
    signal: int | None
    start_time: float
    end_time: float
    duration_seconds: float
    end_source: Literal["meter", "ledger"]
    host: str
    hosts: list[str] = []
    slurm: dict[str, str]
    joules: dict[str, float | None]
    total_j: float | None
    devices: dict[str, dict[str, float]]
    useful_j: float | None
    wasted_j: float | None
    sampling: Sampling | None
    trace: str | None
    work: dict[str, int] | None
    resumed_from: dict[str, int] | None


class Work(_Closed):
    """Typed token counts; null when the stage did not count them. Types are never added together."""

    loss: int | None
    input: int | None
    generated: int | None
    padded: int | None
    discarded: int | None
    examples: int | None
    steps: int | None


class Carbon(_Closed):
    """Emissions: total energy x PUE x intensity. Grams are null where the intensity is not known."""

    grams: float | None
    intensity_g_per_kwh: float | None
    source: str | None
    year: int | None
    region: str | None
    pue: float
    reason: str | None


class StageRecord(_Closed):
    """One stage of an experiment. The first block are the launch guide's keys, in its units (J, W, s, kWh, kg)."""

    stage_id: str
    stage_name: str
    start_time: float
    end_time: float
    duration_seconds: float
    tokens_processed: int | None
    tokens_unit: str | None
    gpu_energy_joules: float | None
    gpu_avg_power_watts: float | None
    gpu_peak_power_watts: float | None
    cpu_energy_joules: float | None
    codecarbon_energy_kwh: float | None
    codecarbon_emissions_kg: float | None
    total_energy_joules: float | None
    total_energy_kwh: float | None
    kwh_total: float | None
    joules_per_token: float | None
    tokens_per_second: float | None
    nvml_poll_interval_ms: int

    schema_: Literal["energy-stage/1"] = Field("energy-stage/1", alias="schema")
    experiment: str | None
    pipeline: str | None
    role: Role
    parts: int | None = None
    span_seconds: float
    status: Literal["complete", "partial", "failed"]
    energy: EnergyFigures
    useful_j: float | None
    wasted_j: float | None
    above_idle_j: float | None
    joules_per_token_by_type: dict[str, float | None]
    attempts: list[AttemptRecord]
    devices: list[dict[str, Any]]
    work: Work
    metrics: dict[str, Any]
    carbon: Carbon
    idle: dict[str, Any] | None
    overhead: dict[str, float]
    provenance: dict[str, Any]
    warnings: list[str]
