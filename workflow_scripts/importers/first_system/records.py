"""One stage of the first system as a record `energy-stage/1`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from workflow_scripts.accounting.model import sum_of
from workflow_scripts.energy.carbon import intensity
from workflow_scripts.energy.model import StageRecord, Work
from workflow_scripts.importers.first_system import checks
from workflow_scripts.importers.first_system.attempts import Attempt
from workflow_scripts.importers.first_system.checks import KWH, Tokens
from workflow_scripts.importers.first_system.emissions import Row
from workflow_scripts.importers.first_system.files import Source
from workflow_scripts.importers.first_system.judged import COMPONENTS, Judged, Whole, judge, resumes, whole
from workflow_scripts.importers.first_system.naming import ROLES, Experiment
from workflow_scripts.importers.first_system.origin import devices, host_of, provenance, slurm
from workflow_scripts.importers.first_system.report import Report
from workflow_scripts.importers.first_system.values import nested, number
from workflow_scripts.progress import TOKEN_TYPES

POLL_MS = 500  # its default


def build(
    experiment: Experiment, stage: str, source: Source, attempts: list[Attempt], rows: Sequence[Row], report: Report
) -> StageRecord:
    """The record of all attempts of a stage, oldest first."""
    judged, remarks = [], []
    for attempt in attempts:
        where = f"{source.folder} ({source.stage_id})"
        one, texts = judge(attempt, stage, experiment.config, rows, where, report)
        judged.append(one)
        remarks += texts
    known = whole(judged, source)
    last = judged[-1]
    total, gpu = known.total, known.energy["gpu"]["joules"]
    duration = sum(a.end - a.start for a in attempts)
    until_tokens = (last.attempt.file_end or last.attempt.end) - last.attempt.start
    return StageRecord.model_validate(
        {
            "stage_id": stage,
            "stage_name": stage,
            "start_time": attempts[0].start,
            "end_time": max(a.end for a in attempts),
            "duration_seconds": duration,
            "span_seconds": max(a.end for a in attempts) - attempts[0].start,
            "tokens_processed": known.tokens,
            "tokens_unit": known.unit,
            "gpu_energy_joules": gpu,
            "gpu_avg_power_watts": gpu / duration if gpu is not None else None,
            "gpu_peak_power_watts": max((w for a in attempts if (w := _peak(a)) is not None), default=None),
            "cpu_energy_joules": known.energy["cpu"]["joules"],
            "codecarbon_energy_kwh": _emissions(attempts, rows, "energy_consumed"),
            "codecarbon_emissions_kg": _emissions(attempts, rows, "emissions"),
            "total_energy_joules": total,
            "total_energy_kwh": total / KWH if total is not None else None,
            "kwh_total": total / KWH if total is not None else None,
            "joules_per_token": known.joules_per_token,
            "tokens_per_second": known.tokens / until_tokens if known.tokens else None,
            "nvml_poll_interval_ms": _poll(source, attempts),
            "experiment": experiment.name,
            "pipeline": experiment.pipeline,
            "role": ROLES[stage],
            "status": "complete" if known.complete else "partial",
            "energy": known.energy,
            "useful_j": known.useful_j,
            "wasted_j": known.wasted_j,
            "above_idle_j": None,
            "joules_per_token_by_type": {kind: known.joules_per_token if kind == known.unit else None for kind in TOKEN_TYPES},
            "attempts": [_attempt(one, source, one is last) for one in judged],
            "devices": devices(source, attempts),
            "work": {key: _count(stage, key, known, last.tokens) for key in Work.model_fields},
            "metrics": {},
            "carbon": _carbon(total, experiment.config),
            "idle": None,
            "overhead": {},
            "provenance": provenance(source, attempts, _mark(source, attempts), last.tokens.claimed),
            "warnings": list(dict.fromkeys([*known.warnings, *remarks])),
        }
    )


def _attempt(judged: Judged, source: Source, last: bool) -> dict[str, Any]:
    """An attempt's entry: useful as a whole when it ended the stage, wasted when the next began anew, else not known."""
    attempt, log = judged.attempt, judged.attempt.log
    host = host_of(source, attempt)
    useful = None
    if last:
        useful = judged.total if attempt.finished else None
    elif resumes(source) is False:
        useful = 0.0
    return {
        "id": f"imported-{_safe(host)}-{attempt.start:.0f}",
        "outcome": "completed" if attempt.finished else "lost",
        "exit_code": None,
        "signal": None,
        "start_time": attempt.start,
        "end_time": attempt.end,
        "duration_seconds": attempt.end - attempt.start,
        "end_source": "meter" if attempt.finished else "ledger",
        "host": host,
        "hosts": [host],
        "slurm": slurm(source),
        "joules": {name: judged.figures[name].joules for name in COMPONENTS},
        "total_j": judged.total,
        "devices": {},
        "useful_j": useful,
        "wasted_j": judged.total - useful if judged.total is not None and useful is not None else None,
        "sampling": _sampling(source, attempt) if log is not None else None,
        "trace": None,
        "work": {judged.tokens.unit: judged.tokens.value} if judged.tokens.value is not None else None,
        "resumed_from": None,
    }


def _sampling(source: Source, attempt: Attempt) -> dict[str, Any] | None:
    if attempt.log is None:
        return None
    period = _poll(source, [attempt]) / 1000
    _, _, joules, longest = attempt.log.gaps()
    expected = round((attempt.end - attempt.start) / period) + 1
    n = len(attempt.log.times)
    return {
        "period_s": period,
        "n": n,
        "expected": expected,
        "missed_pct": max(0.0, 100 * (1 - n / expected)),
        "max_gap_s": longest,
        "j_in_gaps": joules,
    }


def _poll(source: Source, attempts: Sequence[Attempt]) -> int:
    """Sampling period [ms]: of the record, the configuration, the power log, else the first system's default."""
    said = [number(a.file.content, "nvml_poll_interval_ms") for a in attempts if a.file is not None]
    said += [
        nested(source.config, "energy.nvml_poll_interval_ms"),
        *(a.log.period_s * 1000 for a in attempts if a.log is not None),
    ]
    return next((round(value) for value in said if isinstance(value, int | float) and value > 0), POLL_MS)


def _peak(attempt: Attempt) -> float | None:
    said = number(attempt.file.content, "gpu_peak_power_watts") if attempt.file is not None else None
    sampled = float(attempt.log.watts.max()) if attempt.log is not None else None
    return max((w for w in (said, sampled) if w), default=None)


def _count(stage: str, key: str, known: Whole, last: Tokens) -> int | None:
    if stage == "preprocess" and key == "examples" and last.claimed and last.claimed == int(last.claimed):
        return int(last.claimed)
    return known.tokens if key == known.unit else None


def _emissions(attempts: Sequence[Attempt], rows: Sequence[Row], key: str) -> float | None:
    """CodeCarbon's own sum over the attempts; None as soon as one has none."""
    own = [checks.own_codecarbon(attempt, rows).get(key) or None for attempt in attempts]
    return sum_of(own)


def _carbon(joules: float | None, config: dict[str, Any]) -> dict[str, Any]:
    """Emissions of the total by the country that the configuration names, at PUE 1."""
    country = nested(config, "energy.country_iso_code")
    options = {"carbon_intensity_g_per_kwh": None, "region": None, "country_iso_code": country}
    nothing = {"intensity_g_per_kwh": None, "source": None, "year": None, "region": None, "reason": "the run names no country"}
    found: dict[str, Any] = intensity(options) if isinstance(country, str) else nothing
    value: float | None = found["intensity_g_per_kwh"]
    grams = joules / KWH * value if joules is not None and value is not None else None
    return {**found, "grams": grams, "pue": 1.0, "reason": found["reason"] or ("no energy figure" if joules is None else None)}


def _mark(source: Source, attempts: Sequence[Attempt]) -> str:
    """The same for copies of the same run folder, so that a stage that was imported twice is charged once."""
    parts = [a.file.digest if a.file is not None else a.row.run_id if a.row is not None else f"{a.start:.3f}" for a in attempts]
    return hashlib.sha256("\0".join((source.stage_id, *parts)).encode()).hexdigest()[:12]


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text)
