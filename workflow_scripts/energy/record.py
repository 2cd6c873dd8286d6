"""The stage record: what one stage cost, made from the ledger of all its attempts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workflow_scripts.energy.carbon import intensity
from workflow_scripts.energy.host import IDLE_DAYS, days_old
from workflow_scripts.energy.ledger import POLICIES, Attempt, total_joules
from workflow_scripts.energy.model import AttemptRecord, Component, CpuTime, EnergyFigures, StageRecord, Total, Work
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
FOREIGN_PCT = 5.0


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
    parts.sort(key=lambda part: (part.id == labels["attempt"], part.start_time, part.id))  # the newest last, by any clock
    attempts = sorted((a for group, _ in groups for a in group), key=lambda a: (a is newest, a.start["time"], a.path.name))
    began, ended = min(part.start_time for part in parts), max(part.end_time for part in parts)
    figures = _figures(attempts, options)
    warnings += _contention(parts)
    devices = [d for a in (newest, *newest.hosts) for d in _devices(a.start["devices"], a.last.get("devices", []))]
    warnings += [
        f"other processes were on {device.get('name')} ({device['uuid']}): {', '.join(map(str, device['other_processes']))}"
        for device in devices
        if device["other_processes"]
    ]
    work: dict[str, Any] = next((w for a in reversed(own) if (w := a.last.get("work"))), {})
    counts = work.get("work") or {}
    unit = work.get("unit")
    tokens = (counts.get(unit) if unit else None) or None
    duration = sum(part.duration_seconds for part in parts)
    total = figures.total.joules
    wasted = _sum(part.wasted_j for part in parts) if total is not None else None
    codecarbon, carbon = _sum(each["energy_kwh"] for a in attempts for each in a.codecarbon), _carbon(total, options)
    grams = carbon["intensity_g_per_kwh"]
    peak = [a.gpu_peak_watts for a in attempts if a.gpu_peak_watts is not None]
    idle, above_idle = _above_idle(figures, attempts, parts)
    if idle is not None and (days := days_old(idle, parts[-1].start_time)) > IDLE_DAYS:
        warnings.append(f"the idle baseline is {days:.0f} days old: the next run measures it anew")
    statuses = {"completed": "complete", "lost": "partial"}
    return StageRecord.model_validate(
        {
            "stage_id": labels["stage"],
            "stage_name": labels["stage"],
            "start_time": began,
            "end_time": ended,
            "duration_seconds": duration,
            "span_seconds": ended - began,
            "parts": labels.get("parts"),
            "tokens_processed": tokens,
            "tokens_unit": unit,
            "gpu_energy_joules": figures.gpu.joules,
            "gpu_peak_power_watts": max(peak, default=None),
            "cpu_energy_joules": figures.cpu.joules,
            "codecarbon_energy_kwh": codecarbon,
            "codecarbon_emissions_kg": codecarbon * grams / 1000 if codecarbon is not None and grams is not None else None,
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
            "devices": devices,
            "work": {key: counts.get(key) for key in Work.model_fields},
            "metrics": work.get("metrics", {}),
            "carbon": carbon,
            "phases": _phases(attempts),
            "cpu": _cpu(part.cpu for part in parts),
            "power_models": _power_models(attempts),
            "idle": idle,
            "overhead": overhead,
            "provenance": labels["provenance"],
            "warnings": list(
                dict.fromkeys([*warnings, *(w for a in (newest, *newest.hosts) for w in a.last.get("warnings", []))])
            ),
        }
    )


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
            "end_time": start["time"] + last["elapsed_s"] + last.get("suspended", {"seconds": 0.0})["seconds"],
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
            "cpu": _cpu(a.last.get("cpu") for a in (attempt, *attempt.hosts)),
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


def lost(entries: Sequence[Mapping[str, Any]]) -> str | None:
    """Why a component's sum over attempts (or hosts) is not known: the reason of one that lacks it where another has it.

    A component that none has is no part of the sum; one that some lack would make it smaller than what was spent.
    """
    known = [entry for entry in entries if entry["joules"] is not None]
    missing = [entry for entry in entries if entry["joules"] is None]
    return str(missing[-1].get("reason") or "no figure") if known and missing else None


def _figures(attempts: Sequence[Attempt], options: dict[str, Any]) -> EnergyFigures:
    names = ["gpu", "cpu", "dram", "node", *(["module"] if any("module" in a.joules for a in attempts) else [])]
    components = {name: _component(attempts, name, options) for name in names}
    policy = [name for name in POLICIES[options["total_energy_policy"]] if name in components]
    inside = [name for name in policy if components[name].joules is not None]
    reasons = [f"{name}: {reason}" for name in policy if (reason := _lost(attempts, name))]
    joules = None if reasons else _sum(components[name].joules for name in inside)
    total = Total.model_validate(
        {
            "joules": joules,
            "class": worst(components[name].energy_class for name in inside) if joules is not None else "unavailable",
            "boundary": inside,
            "reason": "; ".join(reasons) or (None if inside else "no source inside the boundary gave a figure"),
        }
    )
    return EnergyFigures(**components, total=total)


def _lost(attempts: Sequence[Attempt], name: str) -> str | None:
    """Why a component that had a figure is not known of all attempts, or not to their end.

    An attempt that ended before its first flush has no entry (a warning names it).
    """
    entries = [
        {"joules": entry["joules"], "reason": f"attempt {a.start['attempt']}: {entry['reason']}"}
        for a in attempts
        if (entry := a.joules.get(name))
    ]
    missing = [entry["reason"] for entry in entries if entry["joules"] is None]
    lines = (tick for a in attempts for each in (a, *a.hosts) for tick in each.ticks)
    had = any((tick["joules"].get(name) or {}).get("joules") is not None for tick in lines)  # a figure that was lost at the end
    return lost(entries) or (missing[-1] if missing and had else None)


def _component(attempts: Sequence[Attempt], name: str, options: dict[str, Any]) -> Component:
    scope = "device" if name in ("gpu", "module") else "host" if name == "node" else attempts[-1].start["scope"]
    entries = [entry for a in attempts if (entry := a.joules.get(name))]
    known = [entry for entry in entries if entry["joules"] is not None]
    reason = _lost(attempts, name)
    if not known or reason:
        reasons = [entry["reason"] for entry in entries if entry["reason"]]
        nothing = "not asked for" if name == "node" else "no attempt lived until the first flush"
        reason = (reason if known else None) or (reasons[-1] if reasons else nothing)
        return Component.model_validate(
            {"joules": None, "class": "unavailable", "method": None, "scope": scope, "reason": reason}
        )
    joules = sum(entry["joules"] for entry in known)
    widths = sum(_half_width(entry, scope, options) for entry in known)
    host_joules = _sum(entry.get("host_joules") for entry in known)
    return Component.model_validate(
        {
            "joules": joules,
            "class": worst(entry["class"] for entry in known),
            "method": known[-1]["method"],
            "scope": scope,
            "share": joules / host_joules if scope == "job" and host_joules else None,
            "host_joules": host_joules,
            "uncertainty_pct": 100 * widths / joules if joules else None,
            "crosscheck": _sum(entry["crosscheck"] for entry in known),
        }
    )


def _half_width(entry: Mapping[str, Any], scope: str, options: dict[str, Any]) -> float:
    """Half-width of a figure [J]: by its method, of a modelled one at least the distance to the second model; the sharing-out
    is added in quadrature.
    """
    percent, joules = options["uncertainty_pct"], entry["joules"]
    basis = next(key for prefix, key in _UNCERTAINTY_KEYS if entry["method"].startswith(prefix))
    width = joules * percent[basis] / 100
    if entry["class"] == "modelled" and entry["crosscheck"] is not None:
        width = max(width, abs(joules - entry["crosscheck"]))
    return math.hypot(width, joules * percent["cpu_share"] / 100 if scope == "job" else 0.0)


def _phases(attempts: Sequence[Attempt]) -> dict[str, dict[str, Any]]:
    """Joules, seconds and tokens of each phase over all attempts; of several hosts, the first one's joules in proportion."""
    phases: dict[str, dict[str, Any]] = {}
    for attempt in attempts:
        own = total_joules(
            {k: v["joules"] for k, v in attempt.last["joules"].items()}, attempt.start["energy"]["total_energy_policy"]
        )
        whole = total_joules(
            {k: v["joules"] for k, v in attempt.joules.items()}, attempt.start["energy"]["total_energy_policy"]
        )
        factor = whole / own if own and whole is not None else None
        for name, phase in (attempt.last.get("phases") or {}).items():
            entry = phases.setdefault(name, {"joules": 0.0, "seconds": 0.0, "tokens": 0})
            known = factor is not None and phase["joules"] is not None and entry["joules"] is not None
            entry["joules"] = entry["joules"] + phase["joules"] * factor if known else None
            entry["seconds"] += phase["seconds"]
            entry["tokens"] += phase["tokens"]
    return phases


def _cpu(found: Iterable[CpuTime | dict[str, Any] | None]) -> CpuTime | None:
    """CPU seconds summed over hosts or attempts; the part of other work is the greatest of them."""
    times = [CpuTime.model_validate(each) for each in found if each is not None]
    if not times:
        return None
    return CpuTime(
        job_s=sum(t.job_s for t in times),
        foreign_s=sum(t.foreign_s for t in times),
        steal_s=sum(t.steal_s for t in times),
        foreign_pct=max((t.foreign_pct for t in times if t.foreign_pct is not None), default=None),
        host_cpus=max(t.host_cpus for t in times),
        job_cpus=max((t.job_cpus for t in times if t.job_cpus is not None), default=None),
    )


def _contention(parts: Sequence[AttemptRecord]) -> list[str]:
    """One warning for the attempt that other work disturbed most, where that was more than FOREIGN_PCT of the CPUs."""
    disturbed = [(cpu.foreign_pct, part) for part in parts if (cpu := part.cpu) is not None and cpu.foreign_pct is not None]
    worst_pct, part = max(disturbed, key=lambda each: each[0], default=(0.0, None))
    if part is None or part.cpu is None or worst_pct <= FOREIGN_PCT or part.duration_seconds < 1:
        return []
    return [
        f"other work ran on the host: {part.cpu.foreign_s:.0f} CPU s, {worst_pct:.0f} % of its {part.cpu.host_cpus} CPUs "
        f"during attempt {part.id}: time and host-level joules are not the stage's alone"
    ]


def _power_models(attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    """Each different model of the hosts."""
    found = [m for a in attempts for each in (a, *a.hosts) if (m := each.start.get("power_model"))]
    return [model for i, model in enumerate(found) if model not in found[:i]]


def _above_idle(
    figures: EnergyFigures, attempts: Sequence[Attempt], parts: Sequence[AttemptRecord]
) -> tuple[dict[str, Any] | None, float | None]:
    """The idle baseline and the joules above it over the same boundary, or the reason why there is none."""
    labels, total = attempts[-1].start, figures.total
    idle = labels["idle"]
    if idle is None:
        return None, None
    watts = [idle["watts"].get(name) for name in total.boundary]
    hosts = {host for part in parts for host in part.hosts or [part.host]}
    gpus = {str(device.get("uuid")) for a in attempts for each in (a, *a.hosts) for device in each.start["devices"]}
    reason = None
    if total.joules is None:
        reason = total.reason
    elif any(a.start["scope"] == "job" for a in attempts):
        reason = "the baseline is the whole host's, the figure the job's share"
    elif hosts != {idle.get("host")}:
        reason = f"the baseline is of host {idle.get('host')}, the stage ran on {', '.join(sorted(hosts))}"
    elif {"gpu", "module"} & set(total.boundary) and gpus != set(idle.get("gpus", [])):
        of = ", ".join(idle.get("gpus", [])) or "(none)"
        reason = f"the baseline is of the GPUs {of}, the stage had {', '.join(sorted(gpus)) or '(none)'}"
    elif not idle["stable"]:
        reason = f"the idle baseline is not stable: {idle['reason']}"
    elif not watts or any(value is None for value in watts):
        reason = "the idle baseline lacks a component of the boundary"
    if reason is not None or total.joules is None:
        return {**idle, "above_idle_reason": reason}, None
    seconds = sum(part.duration_seconds for part in parts)
    return {**idle, "above_idle_reason": None}, total.joules - sum(watts) * seconds


def _devices(at_start: list[dict[str, Any]], at_end: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """GPUs with the temperature at start and end, and foreign processes at either time."""
    later = {device["uuid"]: device for device in at_end}
    merged = []
    for device in at_start:
        other = later.get(device["uuid"], {})
        entry = {key: value for key, value in device.items() if key not in ("temperature_c", "other_processes")}
        entry["temperature_c_start"], entry["temperature_c_end"] = device.get("temperature_c"), other.get("temperature_c")
        known = [found for d in (device, other) if (found := d.get("other_processes")) is not None]
        entry["other_processes"] = sorted({pid for found in known for pid in found}) if known else None
        merged.append(entry)
    return merged


def _carbon(joules: float | None, options: dict[str, Any]) -> dict[str, Any]:
    found = intensity(options)
    value = found["intensity_g_per_kwh"]
    grams = joules / 3.6e6 * options["pue"] * value if joules is not None and value is not None else None
    reason = found["reason"] or ("no energy figure" if joules is None else None)
    return {**found, "grams": grams, "pue": options["pue"], "reason": reason}


def _sum(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(sum(known)) if known else None
