"""The stage record's schema `energy-stage/1`; `record_schema.json` is generated from it and kept in step by a test."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import Field, computed_field, model_validator

from workflow_scripts.energy.documents import Closed, Document, Open, is_none
from workflow_scripts.energy.host import PowerModel
from workflow_scripts.energy.uncertainty import KWH, Energy, Instrument, instrument, percent, total

EnergyClass = Literal["measured", "integrated", "modelled", "unavailable"]
Role = Literal["prerun", "data", "teacher", "student", "evaluation", "accounting"]


class CpuTime(Closed):
    """CPU seconds on the hosts of a stage: the job's, those of other work, those that a hypervisor gave to others.

    `foreign_pct` is other work's part of all that the CPUs could have done meanwhile. `job_cpus` are those that a job which is
    charged a part of its host was given, null where the whole host is charged.
    """

    job_s: float
    foreign_s: float
    steal_s: float
    foreign_pct: float | None
    host_cpus: int
    job_cpus: float | None = None


class Phase(Closed):
    """A part of a stage's run: `start`, `work`, `save`, `evaluate`, or a pipeline's own. `tokens` are of the stage's unit."""

    joules: float | None
    seconds: float
    tokens: int


class Component(Closed):
    """Energy of one component; `joules` is null with a `reason` when it is not known, and 0 only from a counter.

    Where `scope` is `job`, `joules` is the job's `share` of `host_joules`. `crosscheck` is the same by a second method [J].
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


class Total(Closed):
    """Sum over the boundary's components, with the worst of their classes and their propagated uncertainty."""

    joules: float | None
    energy_class: EnergyClass = Field(alias="class")
    boundary: list[str]
    uncertainty_j: float | None = None  # of the record's energy value, set by the record
    reason: str | None = None

    @computed_field
    @property
    def uncertainty_pct(self) -> float | None:
        """Half-width [%]; None when it is not known."""
        return percent(self.uncertainty_j, self.joules)


class EnergyFigures(Closed):
    """All components and their total; `module` is GPU, CPU and memory where one counter is of all three (Grace)."""

    gpu: Component
    module: Component | None = Field(None, exclude_if=is_none)
    cpu: Component
    dram: Component
    node: Component
    total: Total


class Sampling(Closed):
    """How well the attempt was sampled; `j_in_gaps` are joules extrapolated over time that no source covered."""

    period_s: float
    n: int
    expected: int
    missed_pct: float | None
    max_gap_s: float
    j_in_gaps: float


class AttemptRecord(Closed):
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
    hosts: list[str] = Field(default_factory=list)
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
    cpu: CpuTime | None = None


class Work(Closed):
    """Typed token counts; null when the stage did not count them. Types are never added together."""

    loss: int | None
    input: int | None
    generated: int | None
    padded: int | None
    discarded: int | None
    examples: int | None
    steps: int | None


class Carbon(Closed):
    """Emissions: total energy x PUE x intensity. Grams are null where the intensity is not known."""

    grams: float | None
    intensity_g_per_kwh: float | None
    source: str | None
    year: int | None
    region: str | None
    pue: float
    reason: str | None


class Device(Open):
    """A GPU of the stage."""

    uuid: str | None = None
    name: str | None = None
    power_limit_watts: float | None = None
    clock_mhz: float | None = None  # that the multiprocessors are set to run at
    driver: str | None = None

    @property
    def words(self) -> str:
        """What it is and how it is set, where that is known."""
        limit = f"limit {self.power_limit_watts:g} W" if self.power_limit_watts is not None else ""
        clock = f"clock {self.clock_mhz:g} MHz" if self.clock_mhz is not None else ""
        known = ", ".join(part for part in (limit, clock, f"driver {self.driver}" if self.driver else "") if part)
        return (self.name or "unknown GPU") + (f" ({known})" if known else "")


class Idle(Open):
    """Watts of the idle host by component, and why no energy above them is stated."""

    watts: dict[str, float | None] = Field(default_factory=dict)
    stable: bool = True
    reason: str | None = None
    above_idle_reason: str | None = None


class InputFile(Closed):
    """A file that the stage read."""

    bytes: int
    sha256: str
    mtime_ns: int


class Provenance(Open):
    """Versions, host and code. Records of earlier versions lack the last four; `imported` is of other systems' records."""

    fingerprint: str | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None
    host: str | None = None
    cpu: str | None = None
    cpu_count: int | None = None
    platform: str | None = None
    python: str | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    imported: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None  # what the stage read of the configuration
    inputs: dict[str, str] | None = None  # argument -> manifest
    files: dict[str, InputFile] | None = None  # by path
    code: str | None = None  # digest
    dropped_environment: list[str] | None = None  # names of variables that the stage was started without


class IntermediateEvaluation(Open):
    """An evaluation inside a training: step, held-out loss, Unix seconds; `start_s`, `end_s` are seconds of the attempt."""

    step: int
    eval_loss: float | None
    start_time: float
    end_time: float
    attempt: str | None = None
    start_s: float | None = None
    end_s: float | None = None

    @property
    def seconds(self) -> float:
        """How long it took, by the monotonic clock where that was kept."""
        known = self.start_s is not None and self.end_s is not None
        return (self.end_s or 0.0) - (self.start_s or 0.0) if known else self.end_time - self.start_time


class Metrics(Open):
    """What the stage reported at its end, mostly numbers by name."""

    ended_by: str | None = None
    evaluations: list[IntermediateEvaluation] = Field(default_factory=list)


class StageRecord(Document):
    """One stage of an experiment. The first block are the launch guide's keys, in its units (J, W, s, kWh, kg).

    `copied_from` is the file of a record of a shared artefact of which this is a copy.
    """

    stage_id: str
    stage_name: str
    start_time: float
    end_time: float
    duration_seconds: float
    tokens_processed: int | None
    tokens_unit: str | None
    gpu_energy_joules: float | None
    gpu_peak_power_watts: float | None
    cpu_energy_joules: float | None
    codecarbon_energy_kwh: float | None
    codecarbon_emissions_kg: float | None
    total_energy_joules: float | None
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
    devices: list[Device]
    work: Work
    metrics: Metrics
    carbon: Carbon
    phases: dict[str, Phase] = Field(default_factory=dict)
    cpu: CpuTime | None = None
    power_models: list[PowerModel] = Field(default_factory=list)
    idle: Idle | None
    overhead: dict[str, float]
    provenance: Provenance
    warnings: list[str]
    copied_from: str | None = Field(None, exclude_if=is_none)

    @model_validator(mode="after")
    def _one_uncertainty(self) -> Self:
        self.energy.total.uncertainty_j = self.spent.half_width if self.spent is not None else None
        return self

    @computed_field
    @property
    def total_energy_kwh(self) -> float | None:
        """The total [kWh]."""
        return None if self.total_energy_joules is None else self.total_energy_joules / KWH

    @computed_field
    @property
    def kwh_total(self) -> float | None:
        """The total [kWh] under the launch guide's other name."""
        return self.total_energy_kwh

    @property
    def work_phase(self) -> Phase | None:
        """The phase that rates are of; None where the stage marked none."""
        return self.phases.get("work")

    @computed_field
    @property
    def work_joules_per_token(self) -> float | None:
        """Joules per token of the work phase alone, over all attempts."""
        work = self.work_phase
        return work.joules / work.tokens if work is not None and work.tokens and work.joules is not None else None

    @computed_field
    @property
    def work_tokens_per_second(self) -> float | None:
        """Tokens per second of the work phase alone, over all attempts."""
        work = self.work_phase
        return work.tokens / work.seconds if work is not None and work.tokens and work.seconds > 0 else None

    @computed_field
    @property
    def gpu_avg_power_watts(self) -> float | None:
        """Mean power of the GPUs over all attempts."""
        known = self.gpu_energy_joules is not None and self.duration_seconds > 0
        return self.gpu_energy_joules / self.duration_seconds if known and self.gpu_energy_joules is not None else None

    @property
    def cpu_words(self) -> str:
        """The CPU, how many the host has, and its memory, where that is known."""
        gigabytes = f"{self.power_models[0].memory_gb:.0f} GB" if self.power_models else ""
        cpus = f"{self.provenance.cpu_count} CPUs" if self.provenance.cpu_count else ""
        known = ", ".join(part for part in (cpus, gigabytes) if part)
        return (self.provenance.cpu or "unknown CPU") + (f" ({known})" if known else "")

    @property
    def spent(self) -> Energy | None:
        """The stage's energy value; None when it is not known, or is a number that no meter gives."""
        joules, figures = self.total_energy_joules, self.energy.total
        if joules is None or not math.isfinite(joules) or joules < 0:
            return None
        errors: dict[Instrument, float] = {}
        value = Energy(joules, errors, energy_class=figures.energy_class, boundaries=frozenset([self.boundary]))
        for name, part in self.inside.items():
            if part.joules is None or (part.uncertainty_pct is None and part.joules):
                return replace(value, errors=None)
            for place, share in self.sensors(name).items():
                key, width = (instrument(part.method), place), part.joules * share * (part.uncertainty_pct or 0.0) / 100
                errors[key] = errors.get(key, 0.0) + width
        return value if errors else replace(value, errors=None)

    @property
    def inside(self) -> dict[str, Component]:
        """Components of the total, by name."""
        return {name: getattr(self.energy, name) for name in self.energy.total.boundary}

    def sensors(self, component: str) -> dict[str, float]:
        """Hosts (or GPUs) that gave a component, with their share of its joules; the sensors of each err on their own."""
        by_place: dict[str, float] = {}
        for attempt in self.attempts:
            place = self.place(component, attempt)
            by_place[place] = by_place.get(place, 0.0) + (attempt.joules.get(component) or 0.0)
        whole = sum(by_place.values())
        return {place: j / whole for place, j in by_place.items() if j} if whole > 0 else {"+".join(by_place): 1.0}

    def place(self, component: str, attempt: AttemptRecord) -> str:
        """GPUs of the stage, or hosts of an attempt: where the sensors of a component are."""
        if component in ("gpu", "module"):
            return "+".join(sorted({str(device.uuid) for device in self.devices}))
        return "+".join(sorted(attempt.hosts or [attempt.host]))

    @property
    def boundary(self) -> str:
        """Components of the total, as one word."""
        return "+".join(self.energy.total.boundary)


def known_energy(records: Iterable[StageRecord]) -> Energy:
    """Energy of the records that have a figure."""
    return total(spent for record in records if (spent := record.spent) is not None)


class Report(Open):
    """What a stage says of its work (see workflow_scripts.progress); further keys are kept."""

    unit: str
    total: int | None
    work: dict[str, int]
    durable: dict[str, int] | None
    resumed: dict[str, int] | None
    metrics: dict[str, object]
    measured: dict[str, int]
    warnings: list[str]
