"""The stage record `energy-stage/1`: what one stage cost, made from the ledger of all its attempts.

The record's JSON schema is generated from these models (`record_schema.json`, kept in step by a test).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from workflow_scripts.energy.ledger import Attempt

CLASSES = ("measured", "integrated", "modelled", "unavailable")
EnergyClass = Literal["measured", "integrated", "modelled", "unavailable"]
Role = Literal["prerun", "data", "teacher", "student", "evaluation", "accounting"]
POLICIES = {
    "measured": ("gpu", "cpu", "dram"),
    "codecarbon": ("cpu", "dram"),
    "gpu_only": ("gpu",),
}


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Component(_Closed):
    """Energy of one component; `joules` is null with a `reason` when it is not known, and 0 only from a counter."""

    joules: float | None
    energy_class: EnergyClass = Field(alias="class")
    method: str | None
    scope: Literal["device", "host", "cgroup", "process_tree"]
    share: float | None = None
    uncertainty_pct: float | None = None
    crosscheck: float | None = None
    reason: str | None = None


class Total(_Closed):
    """Sum over the boundary's components, with the worst of their classes."""

    joules: float | None
    energy_class: EnergyClass = Field(alias="class")
    boundary: list[str]
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
    outcome: Literal["completed", "failed", "timeout", "signal", "lost"]
    exit_code: int | None
    signal: int | None
    start_time: float
    end_time: float
    duration_seconds: float
    end_source: Literal["meter", "ledger"]
    host: str
    slurm: dict[str, str]
    joules: dict[str, float | None]
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
    region: str | None
    pue: float


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
    status: Literal["complete", "partial", "failed"]
    energy: EnergyFigures
    useful_j: float | None
    wasted_j: float | None
    above_idle_j: float | None
    attempts: list[AttemptRecord]
    devices: list[dict[str, Any]]
    work: Work
    metrics: dict[str, Any]
    carbon: Carbon
    idle: dict[str, Any] | None
    overhead: dict[str, float]
    provenance: dict[str, Any]
    warnings: list[str]


def build_record(attempts: Sequence[Attempt], labels: dict[str, Any], overhead: dict[str, float]) -> StageRecord:
    """The record of all attempts of one state folder.

    `labels` has stage, role, experiment, pipeline, energy (the meter's options) and provenance. The energy of every attempt
    is on the bill; an attempt that was killed before anything was written counts as unknown and is named in `warnings`.
    """
    options = labels["energy"]
    warnings: list[str] = []
    parts = [_attempt_record(attempts, index, warnings, options) for index in range(len(attempts))]
    figures = _figures(attempts, options)
    last = attempts[-1]
    work = last.last.get("work") or {}
    counts = work.get("work") or {}
    unit = work.get("unit")
    tokens = counts.get(unit) if unit else None
    duration = sum(part.duration_seconds for part in parts)
    total = figures.total.joules
    wasted = _sum(part.wasted_j for part in parts)
    emissions = _codecarbon(attempts)
    gpu = figures.gpu.joules
    peak = [a.last["gpu_peak_watts"] for a in attempts if a.last.get("gpu_peak_watts") is not None]
    status = "complete" if parts[-1].outcome == "completed" else "failed"
    return StageRecord.model_validate(
        {
            "stage_id": labels["stage"],
            "stage_name": labels["stage"],
            "start_time": parts[0].start_time,
            "end_time": parts[-1].end_time,
            "duration_seconds": duration,
            "tokens_processed": tokens or None,
            "tokens_unit": unit,
            "gpu_energy_joules": gpu,
            "gpu_avg_power_watts": gpu / duration if gpu is not None and duration > 0 else None,
            "gpu_peak_power_watts": max(peak, default=None),
            "cpu_energy_joules": figures.cpu.joules,
            "codecarbon_energy_kwh": emissions["energy_kwh"] if emissions else None,
            "codecarbon_emissions_kg": emissions["emissions_kg"] if emissions else None,
            "total_energy_joules": total,
            "total_energy_kwh": total / 3.6e6 if total is not None else None,
            "kwh_total": total / 3.6e6 if total is not None else None,
            "joules_per_token": total / tokens if total is not None and tokens else None,
            "tokens_per_second": tokens / duration if tokens and duration > 0 else None,
            "nvml_poll_interval_ms": options["nvml_poll_interval_ms"],
            "experiment": labels["experiment"],
            "pipeline": labels["pipeline"],
            "role": labels["role"],
            "status": status,
            "energy": figures,
            "useful_j": total - wasted if total is not None and wasted is not None else None,
            "wasted_j": wasted,
            "above_idle_j": None,
            "attempts": parts,
            "devices": last.start.get("devices", []),
            "work": {key: counts.get(key) for key in Work.model_fields},
            "metrics": work.get("metrics", {}),
            "carbon": _carbon(total, emissions, options),
            "idle": None,
            "overhead": overhead,
            "provenance": labels["provenance"],
            "warnings": [*warnings, *last.start.get("warnings", []), *last.last.get("warnings", [])],
        }
    )


def total_joules(joules: dict[str, float | None], policy: str) -> float | None:
    """Sum of the known components inside the policy's boundary; None when none is known."""
    return _sum(joules.get(component) for component in POLICIES[policy] if joules.get(component) is not None)


def _attempt_record(attempts: Sequence[Attempt], index: int, warnings: list[str], options: dict[str, Any]) -> AttemptRecord:
    attempt = attempts[index]
    last, start, end = attempt.last, attempt.start, attempt.end
    work = last.get("work") or {}
    joules = {name: entry["joules"] for name, entry in last["joules"].items()}
    total = total_joules(joules, options["total_energy_policy"])
    outcome = end["outcome"] if end else "lost"
    if total is None:
        warnings.append(f"attempt {start['attempt']}: its energy is not known, it ended before a source had a figure")
    if attempt.cut_lines:
        warnings.append(f"attempt {start['attempt']}: {attempt.cut_lines} ledger line(s) cut by a kill were left out")
    useful = total if outcome == "completed" else _useful(attempts, index, options)
    return AttemptRecord.model_validate(
        {
            "id": start["attempt"],
            "outcome": outcome,
            "exit_code": end["exit_code"] if end else None,
            "signal": end["signal"] if end else None,
            "start_time": start["time"],
            "end_time": start["time"] + last["elapsed_s"],
            "duration_seconds": last["elapsed_s"],
            "end_source": "meter" if end else "ledger",
            "host": start["host"],
            "slurm": start["slurm"],
            "joules": joules,
            "devices": {name: entry["devices"] for name, entry in last["joules"].items() if entry.get("devices")},
            "useful_j": useful,
            "wasted_j": total - (useful or 0.0) if total is not None else None,
            "sampling": last.get("sampling"),
            "trace": start.get("trace"),
            "work": work.get("work"),
            "resumed_from": work.get("resumed"),
        }
    )


def _useful(attempts: Sequence[Attempt], index: int, options: dict[str, Any]) -> float | None:
    """Joules of an unfinished attempt up to the moment at which the last work that survived it was saved.

    Work survived when a later attempt resumed; an attempt that saved nothing, or whose saved work was not used, is waste.
    """
    saved = attempts[index].last.get("saved_joules")
    resumed = any((a.last.get("work") or {}).get("resumed") for a in attempts[index + 1 :])
    return total_joules(saved, options["total_energy_policy"]) if saved and resumed else 0.0


def _figures(attempts: Sequence[Attempt], options: dict[str, Any]) -> EnergyFigures:
    scopes = {"gpu": "device", "cpu": "host", "dram": "host", "node": "host"}
    components = {name: _component(attempts, name, scope) for name, scope in scopes.items()}
    inside = [name for name in POLICIES[options["total_energy_policy"]] if components[name].joules is not None]
    joules = _sum(components[name].joules for name in inside)
    worst = max((components[name].energy_class for name in inside), key=CLASSES.index, default="unavailable")
    reason = None if inside else "no source inside the boundary gave a figure"
    total = Total.model_validate({"joules": joules, "class": worst, "boundary": inside, "reason": reason})
    return EnergyFigures(**components, total=total)


def _component(attempts: Sequence[Attempt], name: str, scope: str) -> Component:
    entries = [a.last["joules"].get(name) for a in attempts]
    known = [entry for entry in entries if entry and entry["joules"] is not None]
    if not known:
        reasons = [entry["reason"] for entry in entries if entry and entry.get("reason")]
        reason = reasons[-1] if reasons else "not asked for" if name == "node" else "no attempt lived until the first flush"
        return Component.model_validate(
            {"joules": None, "class": "unavailable", "method": None, "scope": scope, "reason": reason}
        )
    return Component.model_validate(
        {
            "joules": sum(entry["joules"] for entry in known),
            "class": max((entry["class"] for entry in known), key=CLASSES.index),
            "method": known[-1]["method"],
            "scope": scope,
            "crosscheck": _sum(entry.get("crosscheck") for entry in known),
        }
    )


def _codecarbon(attempts: Sequence[Attempt]) -> dict[str, Any] | None:
    known = [a.last["codecarbon"] for a in attempts if a.last.get("codecarbon")]
    if not known:
        return None
    return {
        "energy_kwh": sum(entry["energy_kwh"] for entry in known),
        "emissions_kg": sum(entry["emissions_kg"] for entry in known),
        "country": known[-1]["country"],
        "region": known[-1]["region"],
    }


def _carbon(joules: float | None, emissions: dict[str, Any] | None, options: dict[str, Any]) -> dict[str, Any]:
    intensity, region = options["carbon_intensity_g_per_kwh"], options["region"]
    source: str | None = "configuration"
    if intensity is None:
        source = None
        if emissions and emissions["energy_kwh"] > 0:
            intensity = emissions["emissions_kg"] * 1000 / emissions["energy_kwh"]
            source = "CodeCarbon's table"
            region = emissions["region"] or emissions["country"]
    grams = joules / 3.6e6 * options["pue"] * intensity if joules is not None and intensity is not None else None
    return {"grams": grams, "intensity_g_per_kwh": intensity, "source": source, "region": region, "pue": options["pue"]}


def _sum(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(sum(known)) if known else None
