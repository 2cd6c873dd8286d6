"""Stages of the first system as records, experiments as summaries, and their files.

Results that were not imported are never replaced.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workflow_scripts.accounting.model import ExperimentSummary, Reuse, SummaryStage, sum_of
from workflow_scripts.accounting.summary import fingerprint
from workflow_scripts.artefact import ArtefactError, read_json, write_json
from workflow_scripts.energy import model
from workflow_scripts.energy.carbon import intensity
from workflow_scripts.energy.uncertainty import KWH, worst
from workflow_scripts.importers.first_system.checks import BOUNDARY, Judged, judge, unknown
from workflow_scripts.importers.first_system.files import SUMMARY, Attempt, Source
from workflow_scripts.importers.first_system.identity import Experiment, comparable, result_settings
from workflow_scripts.importers.first_system.logs import PowerLog
from workflow_scripts.importers.first_system.values import Report, nested
from workflow_scripts.pipelines import IN_SUMMARY
from workflow_scripts.progress import TOKEN_TYPES

POLL_MS = 500  # its default
GPU = {"name": "name", "power_limit_watts": "power_limit_watts", "driver": "driver_version"}
PACKAGES = {"pytorch_version": "torch", "transformers_version": "transformers", "codecarbon_version": "codecarbon"}
TokensTold = tuple[int | None, str | None, float | None]  # tokens, why they are not known, joules at their instant


def summarise(experiment: Experiment, report: Report) -> ExperimentSummary:
    """The summary `experiment-summary/1`. Quality is empty: the first system kept none beside the energy."""
    stages = {stage: _record(experiment, stage, source, report) for stage, source in experiment.stages.items()}
    shared = {stage: source.shared_by for stage, source in experiment.stages.items() if len(source.shared_by) > 1}
    settings = result_settings(experiment.config)
    marks = {stage: record.provenance.fingerprint for stage, record in stages.items()}
    return ExperimentSummary(
        experiment_id=f"{experiment.name}-imported-{fingerprint(marks)}",
        experiment_name=experiment.name,
        pipeline=experiment.pipeline,
        description=str(nested(experiment.config, "experiment.description") or "imported from the first system"),
        reuse={stage: Reuse(experiments=len(names), names=names) for stage, names in shared.items()},
        comparable=comparable(experiment.config),
        config_fingerprint=fingerprint(experiment.config),
        seedless_fingerprint=fingerprint({**settings, "stages": sorted(stages)}) if settings else None,
        stages=stages,
    )


def _record(experiment: Experiment, stage: str, source: Source, report: Report) -> SummaryStage:
    """The record of all attempts of a stage, oldest first."""
    attempts = source.attempts
    judged = [judge(attempt, stage, source, report) for attempt in attempts]
    last = next((j for j in reversed(judged) if j.attempt.finished), judged[-1])
    until = judged[: judged.index(last) + 1]  # what came after is on the bill, but not on that of the tokens
    energy = _energy(judged)
    total = energy.total.joules
    tokens, no_tokens = last.tokens, last.no_tokens
    if tokens is not None and len(until) > 1 and (resumed := _resumes(source)) is not False:
        word = "resumed" if resumed else "may have resumed"
        no_tokens = f"{len(until)} attempts, and the last {word}: how many of its tokens were new is not known"
        tokens = None
    at_tokens = sum_of([*(j.total for j in until[:-1]), last.joules_at_tokens]) if tokens else None
    per_token = at_tokens / tokens if at_tokens is not None and tokens else None
    entries = [_attempt(one, source, one is last) for one in judged]
    wasted = sum_of([entry.wasted_j for entry in entries])
    warnings = _warnings(judged, last, source, total, (tokens, no_tokens, at_tokens))
    seconds = sum(a.seconds for a in attempts)
    end = max(a.end for a in attempts)
    peaks = [a.said.gpu_peak_power_watts for a in attempts] + [a.log.watts.max() for a in attempts if a.log is not None]
    work = dict.fromkeys(model.Work.model_fields) | {"loss": tokens}
    if stage == "preprocess" and (claimed := last.attempt.said.tokens_processed) and claimed == int(claimed):
        work["examples"] = int(claimed)
    until_tokens = (last.attempt.file.rank[0] if last.attempt.file is not None else last.attempt.end) - last.attempt.start
    useful = sum_of([entry.useful_j for entry in entries]) if wasted is not None else None
    start, status = attempts[0].start, "complete" if last.attempt.finished else "partial"
    names = {"stage_id": stage, "stage_name": stage, "experiment": experiment.name, "pipeline": experiment.pipeline}
    times = {"start_time": start, "end_time": end, "duration_seconds": seconds, "span_seconds": end - start, "status": status}
    counts = {"tokens_processed": tokens, "tokens_unit": "loss" if tokens else None, "work": work}
    rates = {"joules_per_token": per_token, "joules_per_token_by_type": dict.fromkeys(TOKEN_TYPES) | {"loss": per_token}}
    joules = {"gpu_energy_joules": energy.gpu.joules, "cpu_energy_joules": energy.cpu.joules, "total_energy_joules": total}
    shares = {"energy": energy, "useful_j": useful, "wasted_j": wasted, "above_idle_j": None, "idle": None}
    rest: dict[str, Any] = {
        "role": IN_SUMMARY[stage].role,
        "tokens_per_second": tokens / until_tokens if tokens else None,
        "gpu_peak_power_watts": max((watts for watts in peaks if watts), default=None),
        "nvml_poll_interval_ms": _poll(source, attempts),
        "codecarbon_energy_kwh": sum_of([one.codecarbon.get("energy_consumed") or None for one in judged]),
        "codecarbon_emissions_kg": sum_of([one.codecarbon.get("emissions") or None for one in judged]),
        "attempts": entries,
        "devices": _devices(source, attempts),
        "carbon": _carbon(total, source.config),
        "provenance": _provenance(source, attempts, last),
        "metrics": model.Metrics(),
        "overhead": {},
        "warnings": list(dict.fromkeys([*warnings, *(text for one in judged for text in one.remarks)])),
        "shared_by": source.shared_by,
    }
    return SummaryStage.model_validate({**rest, **names, **times, **counts, **rates, **joules, **shares})


def _energy(judged: Sequence[Judged]) -> model.EnergyFigures:
    parts = {name: _component([j.figures[name] for j in judged]) for name in judged[0].figures}
    inside = [name for name in BOUNDARY if parts[name].joules is not None]
    total = model.Total(
        joules=sum_of([parts[name].joules for name in inside]),
        energy_class=worst(parts[name].energy_class for name in inside),
        boundary=inside,
        reason=None if inside else parts["gpu"].reason,
    )
    return model.EnergyFigures(**parts, node=unknown("the first system did not ask for it", "host"), total=total)


def _component(figures: Sequence[model.Component]) -> model.Component:
    """Sum over the attempts that have a figure, with the worst class."""
    known = [(f, f.joules) for f in figures if f.joules is not None]
    if not known:
        return figures[-1]
    joules = sum(j for _, j in known)
    update = {
        "joules": joules,
        "energy_class": worst(f.energy_class for f, _ in known),
        "uncertainty_pct": sum(j * (f.uncertainty_pct or 0.0) for f, j in known) / joules,
        "crosscheck": sum_of([f.crosscheck for f, _ in known]),
    }
    return known[-1][0].model_copy(update=update)


def _resumes(source: Source) -> bool | None:
    """Whether the configuration let an attempt go on from a checkpoint."""
    said = [nested(source.config, f"{section}.resume_from_checkpoint") for section in ("training", "output")]
    known = [value for value in said if value is not None]
    return any(value not in (False, "None", "") for value in known) if known else None


def _warnings(judged: Sequence[Judged], last: Judged, source: Source, total: float | None, told: TokensTold) -> list[str]:
    """What a reader of the record must know; the `total` is that of all attempts [J]."""
    tokens, why, at = told
    warnings = [f"imported from the first system: {source.folder.name}/{source.stage_id}"]
    for name in last.figures:
        reasons = [j.figures[name].reason for j in judged if j.figures[name].joules is None]
        some = f" of {len(reasons)} of {len(judged)} attempts" if len(reasons) < len(judged) else ""
        warnings += [f"{name}{some} is not known: {reasons[-1]}"] if reasons else []
    if any(j.figures["dram"].joules is not None for j in judged):
        warnings.append("dram is CodeCarbon's model and not in the total, as in the first system")
    if tokens is None:
        warnings.append(f"tokens are not known: {why}")
    for one in judged:  # totals that the files themselves state; a log goes further anyway
        said = one.attempt.said.total_energy_joules
        if said and one.attempt.log is None and abs((one.total or 0.0) - said) > 1e-6 * said:
            ours = "unknown" if one.total is None else f"{one.total:,.0f} J"
            warnings.append(f"the record's own total is {said:,.0f} J, here it is {ours}")
    if total is not None and at is not None and abs(total - at) > 1e-6 * total:
        instant, rest = f"{at:,.0f} J and {tokens:,} tokens", f"{total - at:,.0f} J"
        warnings.append(f"joules per token are those of one instant, {instant}; the other {rest} came after it")
    if not last.attempt.finished:
        warnings.append("the last attempt has no final record: how much of its work was used is not known")
    if not last.attempt.environment and last.attempt.row is None:
        warnings.append("no environment file: host, CPU and GPUs are not known")
    if not source.config:
        warnings.append("no configuration file: seed, optimizer, budget and grid are not known")
    kinds = [Counter(str(gpu.get("name")) for gpu in _gpus(j.attempt)) for j in judged]
    machines = dict.fromkeys(", ".join(f"{n} x {gpu}" for gpu, n in sorted(kind.items())) for kind in kinds if kind)
    if len(machines) > 1:
        warnings.append(f"attempts ran on different hardware: {'; '.join(machines)}")
    gpus, asked = _gpus(last.attempt), str(nested(last.attempt.environment, "slurm_info.gpus"))
    if asked.isdigit() and len(gpus) > int(asked):
        warnings.append(f"{len(gpus)} GPUs were seen and the job had {asked}: those of others may be in the energy")
    return warnings


def _attempt(judged: Judged, source: Source, last: bool) -> model.AttemptRecord:
    """An attempt's entry: useful as a whole when it ended the stage, wasted when the next began anew, else not known."""
    attempt, total, host = judged.attempt, judged.total, _host(source, judged.attempt)
    useful = (total if attempt.finished else None) if last else 0.0 if _resumes(source) is False else None
    times = {"start_time": attempt.start, "end_time": attempt.end, "duration_seconds": attempt.seconds}
    joules = {name: figure.joules for name, figure in judged.figures.items()}
    wasted = total - useful if total is not None and useful is not None else None
    unkept = dict.fromkeys(("exit_code", "signal", "trace", "resumed_from"))
    told: dict[str, Any] = {
        "id": f"imported-{re.sub('[^A-Za-z0-9.-]+', '_', host)}-{attempt.start:.0f}",
        "outcome": "completed" if attempt.finished else "lost",
        "end_source": "meter" if attempt.finished else "ledger",
        "slurm": {str(key): str(value) for key, value in (nested(attempt.environment, "slurm_info") or {}).items()},
        "sampling": _sampling(source, attempt),
        "work": {"loss": judged.tokens} if judged.tokens is not None else None,
    }
    energy = {"joules": joules, "total_j": total, "useful_j": useful, "wasted_j": wasted, "devices": {}}
    return model.AttemptRecord.model_validate({**told, **times, **energy, **unkept, "host": host, "hosts": [host]})


def _sampling(source: Source, attempt: Attempt) -> model.Sampling | None:
    if attempt.log is None:
        return None
    period = _poll(source, [attempt]) / 1000
    _, _, joules, longest = attempt.log.gaps()
    expected, n = round(attempt.seconds / period) + 1, len(attempt.log.times)
    missed = max(0.0, 100 * (1 - n / expected))
    return model.Sampling(period_s=period, n=n, expected=expected, missed_pct=missed, max_gap_s=longest, j_in_gaps=joules)


def _poll(source: Source, attempts: Sequence[Attempt]) -> int:
    """Sampling period [ms]: of the record, the configuration, the power log, else the first system's default."""
    said = [a.said.nvml_poll_interval_ms for a in attempts] + [nested(source.config, "energy.nvml_poll_interval_ms")]
    said += [a.log.period_s * 1000 for a in attempts if a.log is not None]
    return next((round(value) for value in said if isinstance(value, int | float) and value > 0), POLL_MS)


def _carbon(joules: float | None, config: Any) -> model.Carbon:
    """Emissions of the total by the country that the configuration names, at PUE 1."""
    country = nested(config, "energy.country_iso_code")
    named = isinstance(country, str)
    found = intensity({"carbon_intensity_g_per_kwh": None, "region": None, "country_iso_code": country if named else None})
    value: float | None = found["intensity_g_per_kwh"]
    grams = joules / KWH * value if joules is not None and value is not None else None
    reason = (found["reason"] if named else "the run names no country") or ("no energy figure" if joules is None else None)
    return model.Carbon.model_validate({**found, "grams": grams, "pue": 1.0, "reason": reason})


def _host(source: Source, attempt: Attempt) -> str:
    """Host's name; where it was not kept, one that no other stage has, as sensors of two hosts do not err together."""
    return str(attempt.environment.get("hostname") or f"unknown host of {source.folder.name}/{source.stage_id}")


def _gpus(attempt: Attempt) -> list[dict[str, Any]]:
    """GPUs as the environment has them, else as CodeCarbon's row counts them ("4 x NAME")."""
    if seen := attempt.environment.get("gpus"):
        return list(seen)
    cells = attempt.row.cells if attempt.row is not None else {}
    number, _, name = cells.get("gpu_model", "").rpartition(" x ")
    counted = [text for text in (cells.get("gpu_count", "").partition(".")[0], number) if text.isdigit()]
    return [{"index": i, "name": name} for i in range(int(counted[0]) if counted else 1)] if name else []


def _devices(source: Source, attempts: Sequence[Attempt]) -> list[model.Device]:
    """GPUs of all attempts. No UUID was kept: host and index stand for it, else errors of different cards would seem common."""
    found = {}
    for attempt in attempts:
        for gpu in _gpus(attempt):
            uuid = f"not recorded: {_host(source, attempt)} index {gpu.get('index')}"
            found[uuid] = model.Device.model_validate({"uuid": uuid} | {key: gpu.get(said) for key, said in GPU.items()})
    return list(found.values())


def _provenance(source: Source, attempts: Sequence[Attempt], last: Judged) -> model.Provenance:
    """Versions, host and commit as the first system wrote them; `imported` names what the record was made from.

    The fingerprint is the same for copies of the same run folder, so that a stage that was imported twice is charged once.
    """
    said = last.attempt.environment
    software = {key: str(value) for key, value in (said.get("software") or {}).items() if value is not None}
    rows = [a.row for a in attempts if a.row is not None]
    cells = rows[-1].cells if rows else {}
    parts = [a.file.digest if a.file is not None else a.row.run_id if a.row is not None else f"{a.start:.3f}" for a in attempts]
    software |= {"codecarbon_version": version} if (version := cells.get("codecarbon_version")) else {}
    files = sorted({a.file.path.name for a in attempts if a.file is not None})
    run = {"system": "first", "run": source.run.resolve().name, "stage_id": source.stage_id, "files": files}
    kept = {"codecarbon_rows": [row.run_id for row in rows], "power_log": any(a.log is not None for a in attempts)}
    return model.Provenance(
        fingerprint=hashlib.sha256("\0".join((source.stage_id, *parts)).encode()).hexdigest()[:12],
        git_commit=nested(said, "git_info.commit_hash"),
        git_dirty=nested(said, "git_info.is_dirty"),
        host=_host(source, last.attempt),
        cpu=nested(said, "cpu.brand") or cells.get("cpu_model"),
        cpu_count=nested(said, "cpu.logical_cores"),
        platform=software.get("os_version") or cells.get("os"),
        python=software.get("python_version") or cells.get("python_version"),
        packages={name: software[key] for key, name in PACKAGES.items() if key in software},
        imported={**run, **kept, "tokens_claimed": last.attempt.said.tokens_processed},
    )


def refusal(folder: Path) -> str | None:
    """Why a folder must not be written to, or None: results that were not imported, or a way out of the folder."""
    for path in (folder, *sorted(folder.rglob("*"))):
        if path.is_symlink() or (path == folder and path.exists() and not path.is_dir()):
            return f"{path} is a link or a file: nothing is written through it, choose another --out"
    for path in filter(Path.is_file, (folder / SUMMARY, *sorted((folder / "stages").glob("*.json")))):
        try:
            content = read_json(path)
        except (ArtefactError, UnicodeDecodeError):
            return f"{path} exists and cannot be read: move it away or choose another --out"
        records = list((nested(content, "stages") or {}).values()) if path.name == SUMMARY else [content]
        if not records or not all(isinstance(nested(r, "provenance.imported"), dict) for r in records):
            return f"{path} exists and was not imported: it is not replaced, choose another --out"
    return None


def write(folder: Path, summary: ExperimentSummary, experiment: Experiment) -> None:
    """Write the power traces, the records and, last, the summary. Stages of an earlier import that are gone are removed."""
    for old in (folder / "stages").glob("*.json"):
        if old.stem not in summary.stages:
            old.unlink()
    for stage, record in summary.stages.items():
        for attempt, entry in zip(experiment.stages[stage].attempts, record.attempts, strict=True):
            if attempt.log is not None and entry.joules["gpu"] is not None:
                entry.trace = f"{folder.name}/traces/{stage}-{entry.id}.csv.gz"
                _trace(folder.parent / entry.trace, attempt.log, attempt.start)
        write_json(folder / "stages" / f"{stage}.json", record.model_copy(update={"shared_by": None}).content())
    write_json(folder / SUMMARY, summary.content())


def _trace(path: Path, log: PowerLog, start: float) -> None:
    """Cumulative joules at every sample of a power log, as the meter's own traces have them; the same bytes every time."""
    lines = [f"{max(0.0, time - start):.3f},{joules:.3f}" for time, joules in zip(log.times, log.curve(), strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(("\n".join(["elapsed_s,gpu_j", *lines]) + "\n").encode(), mtime=0))
