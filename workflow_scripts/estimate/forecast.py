"""Predicted energy, time and carbon of the stale jobs, before anything runs.

    python -m workflow_scripts.estimate.forecast [--out FILE] [snakemake arguments: targets, --configfile … ]

What is stale, and with which settings and inputs, is taken from Snakemake's own dry run. A stage is priced from the records of
past stages of its name, scaled by tokens and parameters; without any, from FLOPs and the device's power. A stage that cannot be
priced is `unknown` with the reason. Prints a table and writes <output.root>/forecast.json (`forecast/1`); the experiment
summary then sets it against the outcome. Starts nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workflow_scripts.accounting.model import Bounds, Forecast, ForecastRow, ForecastTotal
from workflow_scripts.artefact import ArtefactError, read_json, write_json
from workflow_scripts.energy.carbon import intensity
from workflow_scripts.estimate.artefacts import Artefacts, UnpricedError
from workflow_scripts.estimate.device import Target, device, target
from workflow_scripts.estimate.history import Past, read_history
from workflow_scripts.estimate.pricing import Estimate, Range, Sample, add, from_flops, from_history, within_budget
from workflow_scripts.estimate.work import GENERATING, TASKS, Work, done, expected
from workflow_scripts.plan.dry_run import DryRunError, PlannedJob, planned
from workflow_scripts.plan.slices import settings_mark

# What the joules of the same FLOPs depend on, by section of a stage's settings.
PACE = {
    "training": ("optimizer", "gradient_checkpointing", "compile", "packing", "eval_steps"),
    "evaluation": TASKS,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan, price, print, write."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.estimate.forecast", allow_abbrev=False, add_help=False)
    parser.add_argument("--out", type=Path)
    options, passed_on = parser.parse_known_args(sys.argv[1:] if arguments is None else arguments)
    out = options.out.absolute() if options.out else None
    try:
        jobs, folder = planned(passed_on)
        os.chdir(folder)  # the paths of the plan are relative to Snakemake's working directory
        if not jobs:
            print("Nothing to forecast: no metered job is stale.")
            return 0
        read_by_summary = root_of(jobs) / "forecast.json"
        out = out or read_by_summary
        result = forecast(jobs, passed_on, out, time.time())
        write_json(out, result.model_dump(mode="json", by_alias=True))
    except (DryRunError, ArtefactError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(render(result)))
    print(f"\nWritten to {out}; experiment_summary.json sets {read_by_summary} against the outcome.")
    return 0


def root_of(jobs: Sequence[PlannedJob]) -> Path:
    """`output.root`, from the meter's command line."""
    return Path(jobs[0].meter["state"][0]).parent


def forecast(jobs: Sequence[PlannedJob], arguments: Sequence[str], out: Path, now: float) -> Forecast:
    """Price all stages of a plan; rows of an older forecast at `out` for other records are kept as `earlier`."""
    history, notes = read_history(root_of(jobs))
    where = target(*prerun_files(jobs))
    artefacts = Artefacts(jobs)
    rows = [price(group, artefacts, history, where, now) for group in stages(jobs)]
    mine = {row.record for row in rows}
    return Forecast(
        made_at=now,
        arguments=list(arguments),
        hardware=f"{describe(where.key)} ({where.origin})",
        rows=rows,
        total=ForecastTotal(
            kwh=_total(row.kwh for row in rows),
            hours=_total(row.hours for row in rows),
            grams=_total(row.grams for row in rows) if all(row.grams for row in rows if row.kwh) else None,
            unpriced=[row.label for row in rows if row.kwh is None],
        ),
        earlier=[row for row in _earlier(out) if row.record not in mine],
        notes=notes,
    )


def stages(jobs: Iterable[PlannedJob]) -> list[list[PlannedJob]]:
    """Jobs that one record will add up: a job alone, or the parts of a stage with their merge, which comes last."""
    groups: dict[tuple[str, ...], list[PlannedJob]] = {}
    for job in jobs:
        split = "part" in job.meter or "parts" in job.meter
        key = (job.name, job.meter["codecarbon"][0]) if split else (job.meter["record"][0],)
        groups.setdefault(key, []).append(job)
    return [sorted(group, key=lambda job: "part" not in job.meter) for group in groups.values()]


def prerun_files(jobs: Sequence[PlannedJob]) -> tuple[Path, Path]:
    """Record and result of the prerun that the planned stages name."""
    results = [Path(job.meter["idle"][0]) for job in jobs if "idle" in job.meter]
    own = [Path(job.stage["out"][0]) for job in jobs if job.name == "prerun"]
    result = (results + own + [root_of(jobs) / "prerun" / "none" / "validation.json"])[0]
    return result.parent / "stages" / "prerun.json", result


def price(group: Sequence[PlannedJob], artefacts: Artefacts, history: Sequence[Past], where: Target, now: float) -> ForecastRow:
    """The forecast of one stage; figures are null with a reason where it cannot be priced."""
    job = group[-1]
    row: dict[str, Any] = {
        "stage": job.name,
        "label": label(job),
        "record": job.meter["record"][0],
        "jobs": dict(Counter(one.rule for one in group)),
        "settings": settings_mark(job.stage.get("settings", [""])[0]),
        "made_at": now,
    }
    nothing = dict.fromkeys(("basis", "unit", "tokens", "kwh", "hours", "grams", "reason"))
    try:
        work = expected(job, artefacts, history)
        found = estimate(group, work, artefacts, history, where)
        if budget := job.settings.get("training", {}).get("energy_budget_kwh"):
            found = within_budget(found, budget * 3.6e6)
    except UnpricedError as error:
        return ForecastRow.model_validate(row | nothing | {"reason": str(error), "notes": []})
    kwh = found.joules * (1 / 3.6e6)
    energy = json.loads(job.meter["options"][0])
    carbon = intensity(energy)
    grams = carbon["intensity_g_per_kwh"]
    priced = {
        "basis": found.basis,
        "unit": work.unit,
        "tokens": _bounds(work.tokens) if work.tokens else None,
        "kwh": _bounds(kwh),
        "hours": _bounds(found.seconds * (1 / 3600)),
        "grams": _bounds(kwh * (energy["pue"] * grams)) if grams is not None else None,
        "notes": [*found.notes, *([f"grams: {carbon['reason']}"] if grams is None else [])],
    }
    return ForecastRow.model_validate(row | nothing | priced)


def estimate(group: Sequence[PlannedJob], work: Work, artefacts: Artefacts, history: Sequence[Past], where: Target) -> Estimate:
    """Energy and time of a stage: from history, else from FLOPs. Raises UnpricedError when there is neither."""
    job, devices = group[-1], devices_of(group[-1].settings, where)
    samples = []
    for past in (p for p in history if p.stage == job.name):
        try:
            amount = done(past, artefacts)
        except UnpricedError:
            continue
        if amount > 0:
            joules, seconds = past.cost()
            processes = 1 + (past.record["parts"] or 0)
            doubts = tuple(differences(job, past, artefacts, where, work.driver == "flops"))
            samples.append(Sample(amount, joules, seconds, processes, devices_of(past.settings, where), doubts))
    if samples:
        return from_history(samples, work.amount, len(group), devices)
    if work.driver != "flops":
        raise UnpricedError("there is no record of such a stage with a figure, and its work is not counted in FLOPs")
    return from_flops(work.amount, len(group), devices, device(where, history, job.name in GENERATING))


def differences(job: PlannedJob, past: Past, artefacts: Artefacts, where: Target, by_parameters: bool) -> list[str]:
    """Why a past stage may tell little of the planned one; a model that has changed matters `by_parameters` only."""
    found = []
    if past.hardware != where.key:
        found.append(f"other hardware ({describe(past.hardware)})")
    policy = json.loads(job.meter["options"][0])["total_energy_policy"]
    if past.options["total_energy_policy"] != policy:
        found.append(f"energy.total_energy_policy {past.options['total_energy_policy']}")
    if past.record["status"] != "complete":
        found.append("unfinished stages")
    if _dtype(past.settings) != _dtype(job.settings):
        found.append(f"training.dtype {_dtype(past.settings)}")
    found += [f"{key} {value}" for key, value in other_pace(past.settings, job.settings)]
    if job.name in ("prepare_model", "prerun") and past.settings != job.settings:
        found.append("another model" if job.name == "prepare_model" else "other prerun settings")
    if by_parameters and past.published is None and (changed := remade(past, artefacts)):
        found.append(f"a model that was made again since ({changed})")
    return found


def other_pace(past: dict[str, Any], planned: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings that change the cost of the same work, with the value of the past stage, where the two differ."""
    for section, keys in PACE.items():
        before, now = past.get(section) or {}, planned.get(section) or {}
        for key in keys:
            if key in before and key in now and before[key] != now[key]:
                yield f"{section}.{key}", before[key]


def remade(past: Past, artefacts: Artefacts) -> str | None:
    """Manifest of a prepared model that a past stage read and that is newer than the stage, or is made again."""
    for name in ("student", "policy", "model", "teacher"):
        path = past.inputs.get(name)
        facts = artefacts.facts(path) if path else None
        if path is None or facts is None or facts.get("source") == "trained":
            continue
        if artefacts.is_planned(path) or Path(path).stat().st_mtime > past.record["end_time"]:
            return path
    return None


def devices_of(settings: dict[str, Any], where: Target) -> int:
    """Devices that a stage keeps busy at once: GPUs of a training, else nodes."""
    training = settings.get("training", {})
    per_node = training.get("num_processes", 1) if where.gpus else 1
    return int(training.get("num_nodes", 1) * per_node)


def label(job: PlannedJob) -> str:
    """Name of a stage with what it belongs to: the experiment, or the folder of the shared artefact."""
    if "experiment" in job.meter:
        return f"{job.name} {job.meter['experiment'][0]}"
    folder = Path(job.meter["record"][0]).parent
    owner = folder.parent.name
    return job.name if owner in ("comparison", "local") else f"{job.name} {owner}"


def describe(key: tuple[Any, ...]) -> str:
    """Hardware in words."""
    cpu, count, gpus = key
    return ", ".join([f"{cpu or 'unknown CPU'} x {count}", *(f"{gpus.count(name)} x {name}" for name in sorted(set(gpus)))])


def render(result: Forecast) -> list[str]:
    """Lines of the table. kWh and gCO2e: predicted, with the range; `-` stands for what does not apply."""
    rows = [["stage", "jobs", "tokens", "basis", "kWh", "range", "hours", "gCO2e"]]
    for row in result.rows:
        tokens = "-" if row.tokens is None else f"{row.tokens.predicted:.0f} {row.unit}"
        figures = _cells(row.kwh, row.hours, row.grams) if row.kwh else ["unknown", "-", "-", "-"]
        rows.append([row.label, str(sum(row.jobs.values())), tokens, row.basis or "-", *figures])
    total = result.total
    rows.append(["total", str(sum(sum(row.jobs.values()) for row in result.rows)), "", ""])
    rows[-1] += _cells(total.kwh, total.hours, total.grams) if total.kwh else ["unknown", "-", "-", "-"]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    rule = "  ".join("-" * w for w in widths)
    lines = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
    if total.unpriced:
        lines.append(f"The total is without {len(total.unpriced)} stage(s) that cannot be priced:")
    unpriced = _grouped((row.reason, row.label) for row in result.rows if row.reason)
    lines += [f"  {labels}: {reason}" for reason, labels in unpriced]
    lines.append(f"Hardware: {result.hardware}. Hours: job hours, one after the other. Bounds of the total: bounds added up.")
    notes = _grouped((text, row.label) for row in result.rows for text in row.notes)
    return lines + [f"note: {labels}: {text}" for text, labels in notes] + [f"note: {text}" for text in result.notes]


def _grouped(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each text once, with the labels that it holds for."""
    groups: dict[str, list[str]] = {}
    for text, name in pairs:
        groups.setdefault(text, []).append(name)
    return [(text, ", ".join(names)) for text, names in groups.items()]


def _cells(kwh: Bounds | None, hours: Bounds | None, grams: Bounds | None) -> list[str]:
    assert kwh and hours
    carbon = f"{grams.predicted:.3g}" if grams else "-"
    return [f"{kwh.predicted:.3g}", f"{kwh.low:.2g} to {kwh.high:.2g}", f"{hours.predicted:.2g}", carbon]


def _earlier(out: Path) -> list[ForecastRow]:
    """Rows of the forecast that is replaced. Raises ArtefactError when the file is something else."""
    if not out.is_file():
        return []
    try:
        old = Forecast.model_validate(read_json(out))
    except ValidationError as error:
        raise ArtefactError(
            f"{out} is not a forecast/1, so it is not replaced: delete it ({error.errors()[0]['msg']})"
        ) from None
    return [*old.earlier, *old.rows]


def _dtype(settings: dict[str, Any]) -> str | None:
    found: str | None = settings.get("dtype") or settings.get("training", {}).get("dtype")
    return found


def _bounds(value: Range) -> Bounds:
    return Bounds(low=value.low, predicted=value.mid, high=value.high)


def _total(values: Iterable[Bounds | None]) -> Bounds | None:
    known = [Range(v.low, v.predicted, v.high) for v in values if v is not None]
    return _bounds(add(known)) if known else None


if __name__ == "__main__":
    sys.exit(main())
