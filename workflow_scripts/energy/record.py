"""The stage record: what one stage cost, made from the ledger of all its attempts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from workflow_scripts.energy.carbon import intensity
from workflow_scripts.energy.ledger import Attempt
from workflow_scripts.energy.model import AttemptRecord, Component, EnergyFigures, StageRecord, Total, Work
from workflow_scripts.energy.uncertainty import worst
from workflow_scripts.progress import TOKEN_TYPES

_UNCERTAINTY_KEYS = (
    ("NVML total", "nvml_counter"),
    ("NVML power", "nvml_power"),
    ("RAPL", "rapl"),
    ("CodeCarbon RAM", "codecarbon_ram"),
    ("CodeCarbon", "codecarbon_cpu"),
    ("Slurm", "slurm"),
)
POLICIES = {
    "measured": ("gpu", "cpu", "dram"),
    "codecarbon": ("cpu", "dram"),
    "gpu_only": ("gpu",),
}


def build_record(own: Sequence[Attempt], overhead: dict[str, float], split: Sequence[Sequence[Attempt]] = ()) -> StageRecord:
    """The record of all attempts of one state folder, oldest first, and of the parts that its work was `split` into.

    What the stage was comes from the newest attempt's start line. The energy of every attempt is on the bill; an attempt that
    was killed before anything was written counts as unknown and is named in `warnings`. Durations are summed over parts, which
    may have run at the same time; `span_seconds` is from the first start to the last end.
    """
    newest = own[-1]
    labels, last = newest.start, newest.last
    options = labels["energy"]
    warnings: list[str] = []
    merged = last.get("outcome") == "completed"
    groups = [(own, False), *((group, merged) for group in split)]
    parts = [_attempt_record(group, i, warnings, options, used) for group, used in groups for i in range(len(group))]
    parts.sort(key=lambda part: (part.start_time, part.id))
    attempts = sorted((a for group, _ in groups for a in group), key=lambda a: (a.start["time"], a.path.name))
    figures = _figures(attempts, options)
    work: dict[str, Any] = next((w for a in reversed(own) if (w := a.last.get("work"))), {})
    counts = work.get("work") or {}
    unit = work.get("unit")
    tokens = (counts.get(unit) if unit else None) or None
    duration = sum(part.duration_seconds for part in parts)
    total = figures.total.joules
    wasted = _sum(part.wasted_j for part in parts)
    emissions = _codecarbon(attempts)
    peak = [a.gpu_peak_watts for a in attempts if a.gpu_peak_watts is not None]
    idle, above_idle = _above_idle(figures.total, duration, labels)
    statuses = {"completed": "complete", "lost": "partial"}
    return StageRecord.model_validate(
        {
            "stage_id": labels["stage"],
            "stage_name": labels["stage"],
            "start_time": parts[0].start_time,
            "end_time": max(part.end_time for part in parts),
            "duration_seconds": duration,
            "span_seconds": max(part.end_time for part in parts) - parts[0].start_time,
            "parts": labels.get("parts"),
            "tokens_processed": tokens,
            "tokens_unit": unit,
            "gpu_energy_joules": figures.gpu.joules,
            "gpu_peak_power_watts": max(peak, default=None),
            "cpu_energy_joules": figures.cpu.joules,
            "codecarbon_energy_kwh": emissions["energy_kwh"] if emissions else None,
            "codecarbon_emissions_kg": emissions["emissions_kg"] if emissions else None,
            "total_energy_joules": total,
            "joules_per_token": total / tokens if total is not None and tokens else None,
            "tokens_per_second": tokens / duration if tokens and duration > 0 else None,
            "nvml_poll_interval_ms": options["nvml_poll_interval_ms"],
            "experiment": labels["experiment"],
            "pipeline": labels["pipeline"],
            "role": labels["role"],
            "status": statuses.get(last.get("outcome", "lost"), "failed"),
            "energy": figures,
            "useful_j": total - wasted if total is not None and wasted is not None else None,
            "wasted_j": wasted,
            "above_idle_j": above_idle,
            "joules_per_token_by_type": {
                kind: total / counts[kind] if total is not None and counts.get(kind) else None for kind in TOKEN_TYPES
            },
            "attempts": parts,
            "devices": [d for a in (newest, *newest.hosts) for d in _devices(a.start["devices"], a.last.get("devices", []))],
            "work": {key: counts.get(key) for key in Work.model_fields},
            "metrics": work.get("metrics", {}),
            "carbon": _carbon(total, options),
            "idle": idle,
            "overhead": overhead,
            "provenance": labels["provenance"],
            "warnings": list(dict.fromkeys([*warnings, *last.get("warnings", [])])),
        }
    )


def total_joules(joules: dict[str, float | None], policy: str) -> float | None:
    """Sum of the known components inside the policy's boundary; None when none is known."""
    return _sum(joules.get(component) for component in POLICIES[policy])


def _attempt_record(
    attempts: Sequence[Attempt], index: int, warnings: list[str], options: dict[str, Any], merged: bool
) -> AttemptRecord:
    attempt = attempts[index]
    last, start, end = attempt.last, attempt.start, attempt.end
    work = last.get("work") or {}
    joules = {name: entry["joules"] for name, entry in attempt.joules.items()}
    total = total_joules(joules, options["total_energy_policy"])
    outcome = end["outcome"] if end else "lost"
    if total is None:
        warnings.append(f"attempt {start['attempt']}: its energy is not known, it ended before a source had a figure")
    if attempt.cut_lines:
        warnings.append(f"attempt {start['attempt']}: {attempt.cut_lines} ledger line(s) were cut and left out")
    useful = total if _survived(attempts, index) else _useful(attempts, index, options, merged)
    return AttemptRecord.model_validate(
        {
            "id": start["attempt"],
            "part": start.get("part"),
            "outcome": outcome,
            "exit_code": end["exit_code"] if end else None,
            "signal": end["signal"] if end else None,
            "start_time": start["time"],
            "end_time": start["time"] + last["elapsed_s"],
            "duration_seconds": last["elapsed_s"],
            "end_source": "meter" if end else "ledger",
            "host": start["host"],
            "hosts": [start["host"], *(host.start["host"] for host in attempt.hosts)],
            "slurm": start["slurm"],
            "joules": joules,
            "total_j": total,
            "devices": {name: entry["devices"] for name, entry in attempt.joules.items() if entry["devices"]},
            "useful_j": useful,
            "wasted_j": total - (useful or 0.0) if total is not None else None,
            "sampling": last.get("sampling"),
            "trace": last.get("trace") or start.get("trace"),
            "work": work.get("work"),
            "resumed_from": work.get("resumed"),
        }
    )


def _survived(attempts: Sequence[Attempt], index: int) -> bool:
    """Whether all the work of an attempt is in the result.

    It is when the attempt completed and is the last or was resumed, and when the next attempt that completed did no work of
    its own: that one restored what this one had published, even if this one was killed before it could end.
    """
    attempt, later = attempts[index], attempts[index + 1 :]
    if later and later[0].last.get("work") is None and later[0].last.get("outcome") == "completed":
        return True
    resumed = any((a.last.get("work") or {}).get("resumed") for a in later)
    return attempt.last.get("outcome") == "completed" and (not later or resumed)


def _useful(attempts: Sequence[Attempt], index: int, options: dict[str, Any], merged: bool) -> float | None:
    """Joules of an unfinished attempt up to the moment at which the last work that survived it was saved.

    Work survived when a later attempt resumed or, for an attempt at a part, when the parts were merged; an attempt that saved
    nothing, or whose saved work was not used, is waste.
    """
    saved = attempts[index].last.get("saved_joules")
    resumed = merged or any((a.last.get("work") or {}).get("resumed") for a in attempts[index + 1 :])
    useful = total_joules(saved, options["total_energy_policy"]) if saved and resumed else 0.0
    if useful and attempts[index].hosts:  # the moment of saving is known of the first host: the others are taken in proportion
        first = total_joules(
            {k: v["joules"] for k, v in attempts[index].last["joules"].items()}, options["total_energy_policy"]
        )
        everywhere = total_joules({k: v["joules"] for k, v in attempts[index].joules.items()}, options["total_energy_policy"])
        return useful * everywhere / first if first and everywhere is not None else None
    return useful


def _figures(attempts: Sequence[Attempt], options: dict[str, Any]) -> EnergyFigures:
    components = {name: _component(attempts, name, options) for name in ("gpu", "cpu", "dram", "node")}
    inside = [name for name in POLICIES[options["total_energy_policy"]] if components[name].joules is not None]
    joules = _sum(components[name].joules for name in inside)
    total = Total.model_validate(
        {
            "joules": joules,
            "class": worst(components[name].energy_class for name in inside),
            "boundary": inside,
            "reason": None if inside else "no source inside the boundary gave a figure",
        }
    )
    return EnergyFigures(**components, total=total)


def _component(attempts: Sequence[Attempt], name: str, options: dict[str, Any]) -> Component:
    scope = "device" if name == "gpu" else "host" if name == "node" else attempts[-1].start["scope"]
    entries = [entry for a in attempts if (entry := a.joules.get(name))]
    known = [entry for entry in entries if entry["joules"] is not None]
    share = entries[-1].get("share") if entries else None
    if not known:
        reasons = [entry["reason"] for entry in entries if entry["reason"]]
        reason = reasons[-1] if reasons else "not asked for" if name == "node" else "no attempt lived until the first flush"
        nothing = {"joules": None, "class": "unavailable", "method": None, "scope": scope, "share": share, "reason": reason}
        return Component.model_validate(nothing)
    joules = sum(entry["joules"] for entry in known)
    percent = sum(e["joules"] * _uncertainty(e["method"], scope, options) for e in known) / joules if joules else None
    return Component.model_validate(
        {
            "joules": joules,
            "class": worst(entry["class"] for entry in known),
            "method": known[-1]["method"],
            "scope": scope,
            "share": share,
            "host_joules": _sum(entry.get("host_joules") for entry in known),
            "uncertainty_pct": percent,
            "crosscheck": _sum(entry["crosscheck"] for entry in known),
        }
    )


def _uncertainty(method: str, scope: str, options: dict[str, Any]) -> float:
    """Relative uncertainty [%] of a figure by its method, the sharing-out by CPU time added in quadrature."""
    percent = options["uncertainty_pct"]
    basis = next(key for prefix, key in _UNCERTAINTY_KEYS if method.startswith(prefix))
    return math.hypot(percent[basis], percent["cpu_share"] if scope == "job" else 0.0)


def _above_idle(total: Total, duration: float, labels: dict[str, Any]) -> tuple[dict[str, Any] | None, float | None]:
    """The idle baseline and the joules above it over the same boundary, or the reason why there is none."""
    idle = labels["idle"]
    if idle is None:
        return None, None
    watts = [idle["watts"].get(name) for name in total.boundary]
    reason = None
    if total.joules is None:
        reason = total.reason
    elif labels["scope"] == "job":
        reason = "the baseline is the whole host's, the figure the job's share"
    elif not idle["stable"]:
        reason = f"the idle baseline is not stable: {idle['reason']}"
    elif not watts or any(value is None for value in watts):
        reason = "the idle baseline lacks a component of the boundary"
    if reason is not None or total.joules is None:
        return {**idle, "above_idle_reason": reason}, None
    return {**idle, "above_idle_reason": None}, total.joules - sum(watts) * duration


def _devices(at_start: list[dict[str, Any]], at_end: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """GPUs with the temperature at start and end, and foreign processes at either time."""
    later = {device["uuid"]: device for device in at_end}
    merged = []
    for device in at_start:
        other = later.get(device["uuid"], {})
        entry = {key: value for key, value in device.items() if key not in ("temperature_c", "other_processes")}
        entry["temperature_c_start"], entry["temperature_c_end"] = device.get("temperature_c"), other.get("temperature_c")
        entry["other_processes"] = sorted({*device.get("other_processes", []), *other.get("other_processes", [])})
        merged.append(entry)
    return merged


def _codecarbon(attempts: Sequence[Attempt]) -> dict[str, Any] | None:
    known = [found for a in attempts for found in a.codecarbon]
    if not known:
        return None
    return {key: sum(entry[key] for entry in known) for key in ("energy_kwh", "emissions_kg")}


def _carbon(joules: float | None, options: dict[str, Any]) -> dict[str, Any]:
    found = intensity(options)
    value = found["intensity_g_per_kwh"]
    grams = joules / 3.6e6 * options["pue"] * value if joules is not None and value is not None else None
    reason = found["reason"] or ("no energy figure" if joules is None else None)
    return {**found, "grams": grams, "pue": options["pue"], "reason": reason}


def _sum(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(sum(known)) if known else None
