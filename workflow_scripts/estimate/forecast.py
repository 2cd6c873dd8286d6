"""Predicted energy, time and carbon of the stale jobs, before anything runs.

    python -m workflow_scripts.estimate.forecast [--out FILE] [snakemake arguments: targets, --configfile … ]

What is stale, and with which settings and inputs, is taken from Snakemake's own dry run. A stage is priced from the records of
past stages of its name on comparable hardware, scaled by tokens and parameters; without any it is `unknown` with the reason,
and totals are lower bounds. Prints a table and writes <output.root>/forecast.json (`forecast/1`); the experiment summary then
sets it against the outcome. Starts nothing else.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tabulate import SEPARATING_LINE, tabulate

from workflow_scripts.accounting.prediction import Bounds, Forecast, ForecastRow, ForecastTotal
from workflow_scripts.artefact import ArtefactError, read_json, sha256, write_json
from workflow_scripts.estimate.artefacts import Artefacts
from workflow_scripts.estimate.history import Hardware, Past, read_history, setting
from workflow_scripts.estimate.pricing import ZERO, Cost, Sample, UnpricedError, from_history, within_budget
from workflow_scripts.estimate.work import TASKS, Task, Work, amount, done, expected
from workflow_scripts.pipelines import STAGES
from workflow_scripts.plan.dry_run import DryRunError, PlannedJob, planned
from workflow_scripts.plan.jobs import Job
from workflow_scripts.plan.slices import settings_fingerprint
from workflow_scripts.settings.load import deep_merge
from workflow_scripts.settings.runs import method_of

# What the joules of the same FLOPs depend on.
PACE = (
    "teacher.dtype",
    *("training.dtype", "training.optimizer", "training.gradient_checkpointing", "training.compile", "training.packing"),
    *("model.attn_implementation", *(f"evaluation.{key}" for key in TASKS)),
    *("synthetic_data.generation.backend", "dpo.generation.backend", "opd.generation.backend"),
    *("synthetic_data.generation.batch_size", "dpo.generation.batch_size", "opd.generation.batch_size"),
)
UNKNOWN = "unknown: run one small job first"


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan, price, print, write."""
    parser = argparse.ArgumentParser(prog="workflow_scripts.estimate.forecast", allow_abbrev=False, add_help=False)
    parser.add_argument("--out", type=Path)
    options, passed_on = parser.parse_known_args(sys.argv[1:] if arguments is None else arguments)
    try:
        jobs, folder = planned(passed_on)
        if not jobs:
            print("Nothing to forecast: no metered job is stale.")
            return 0
        folder = Path(os.path.relpath(folder))
        read_by_summary = folder / root_of(jobs) / "forecast.json"
        out = options.out or read_by_summary
        result = forecast(jobs, folder, passed_on, out, time.time())
        write_json(out, result.model_dump(mode="json", by_alias=True))
    except (DryRunError, ArtefactError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(render(result)))
    print(f"\nWritten to {out}; experiment_summary.json sets {read_by_summary} against the outcome.")
    return 0


def estimates(jobs: Sequence[PlannedJob], folder: Path) -> list[Cost | None]:
    """Each planned job by itself, None where nothing tells; `folder` is what the paths of the plan are relative to."""
    estimator = Estimator(jobs, folder)
    found: list[Cost | None] = []
    for job in jobs:
        try:
            found.append(estimator.cost([job])[0])
        except UnpricedError:
            found.append(None)
    return found


def forecast(jobs: Sequence[PlannedJob], folder: Path, arguments: Sequence[str], out: Path, now: float) -> Forecast:
    """Price all stages of a plan; rows of an older forecast at `out` for other records are kept as `earlier`."""
    estimator = Estimator(jobs, folder)
    rows = [row_of(group, estimator, now) for group in stages(jobs)]
    mine = {row.record for row in rows}
    return Forecast(
        made_at=now,
        arguments=list(arguments),
        hardware=f"{estimator.hardware} ({estimator.origin})",
        rows=rows,
        total=total_of(rows),
        earlier=[row for row in _earlier(out) if row.record not in mine],
        notes=estimator.notes,
    )


class Estimator:
    """Prices planned jobs from the past stages under their results folder."""

    def __init__(self, jobs: Sequence[PlannedJob], folder: Path) -> None:
        root = folder / root_of(jobs)
        self.history, self.notes = read_history(root)
        prerun = next((past.record for past in self.history if past.record.stage_id == "prerun"), None)
        self.hardware = Hardware.of(prerun) if prerun else Hardware.here()
        self.origin = "that of the newest prerun" if prerun else "this host, as there is no prerun yet"
        self.artefacts, self.made = Artefacts(jobs, folder), Artefacts([], folder)  # as planned, and as it lies on disk

    def cost(self, group: Sequence[PlannedJob]) -> tuple[Cost, Work]:
        """Energy and time of jobs that are one stage together, and its work: a part does its share, a merge next to nothing.

        Raises UnpricedError with the reason.
        """
        stage, settings = group[-1].stage, group[-1].settings
        alike = [past for past in self.history if past.record.stage_id == stage]
        like = [past for past in alike if self.hardware.comparable(Hardware.of(past.record))]
        samples = list(self.samples(group[-1], like))
        if not samples:
            nothing = f"{UNKNOWN} (no record of such a stage on {self.hardware})"
            raise UnpricedError("no record of such a stage has an energy figure and known work" if like else nothing)
        total, work = ZERO, Work()
        for job in (job for job in group if not job.parts):
            task = Task(stage, job.settings, job.inputs, self.artefacts, alike)
            work = expected(task)
            total = total + amount(task, work) * (1 / int(job.part.partition("-of-")[2]) if job.part else 1.0)
        cost = from_history(samples, total, len(group), self.devices(settings))
        budget = setting(settings, "training.energy_budget_kwh")
        return within_budget(cost, budget * 3.6e6) if budget else cost, work

    def samples(self, job: PlannedJob, like: Sequence[Past]) -> Iterator[Sample]:
        """Past stages with their work, and what makes each tell less of the planned one."""
        for past in like:
            try:
                work, doubts = done(past, self.made), tuple(self.doubts(job, past, like[0]))
            except UnpricedError:
                continue
            if work > 0 and (cost := past.cost()):
                yield Sample(work, *cost, 1 + (past.record.parts or 0), self.devices(past.settings), doubts)

    def doubts(self, job: PlannedJob, past: Past, newest: Past) -> Iterator[str]:
        """Why a past stage may tell little of the planned one; the boundary is that of the `newest` record."""
        boundary = past.record.energy.total.boundary
        if boundary != newest.record.energy.total.boundary:
            yield f"another boundary ({', '.join(boundary)})"
        if Hardware.of(past.record).cpu != self.hardware.cpu:
            yield f"another CPU ({Hardware.of(past.record).cpu})"
        if past.record.status != "complete":
            yield "unfinished stages"
        for key in PACE:
            before, now = setting(past.settings, key), setting(job.settings, key)
            if before != now and None not in (before, now):
                yield f"{key} {before}"
        if (often := _evaluated(past.settings)) != _evaluated(job.settings):
            yield f"a training that was evaluated {often}"
        if bool(setting(past.settings, "training.lora")) != bool(setting(job.settings, "training.lora")):
            yield "another training.lora"
        if job.stage in ("prepare_model", "prerun") and past.settings not in ({}, job.settings):
            yield "another model" if job.stage == "prepare_model" else "other prerun settings"
        if past.parameters is None and (changed := self.remade(past)):
            yield f"a model that was made again since ({changed})"

    def remade(self, past: Past) -> str | None:
        """Manifest of a prepared model that a past stage read and that is another one now."""
        for path in (past.inputs[name] for name in ("student", "policy", "model", "teacher") if name in past.inputs):
            facts, was = self.made.facts(path), (past.record.provenance.files or {}).get(path)
            trained = facts is None or facts.get("source") == "trained"
            if was and not trained and was.sha256 != sha256(self.made.folder / path):
                return path
        return None

    def devices(self, settings: dict[str, object]) -> int:
        """Devices that a stage keeps busy at once: GPUs of a training, else nodes."""
        per_node = setting(settings, "training.num_processes") or 1 if self.hardware.gpus else 1
        return int((setting(settings, "training.num_nodes") or 1) * per_node)


def _evaluated(settings: Mapping[str, Any]) -> str:
    """How often a training is evaluated on the way, in words."""
    units = {"eval_steps": "steps", "eval_joules": "J"}
    every = [f"every {value:g} {unit}" for key, unit in units.items() if (value := setting(settings, f"training.{key}"))]
    return every[0] if every else "never"


def root_of(jobs: Sequence[PlannedJob]) -> Path:
    """`output.root`: what is shared lies under it, as <root>/<kind>/<name>/<folder>/<file>."""
    kinds = ("models", "corpus", "teacher", "reference", "prerun")
    paths = [Path(path) for job in jobs for path in (*job.inputs.values(), job.record)]
    shared = [path.parents[3] for path in paths if len(path.parents) > 3 and path.parents[2].name in kinds]
    compared = [path.parents[2] for path in paths if len(path.parents) > 2 and path.parents[1].name == "comparison"]
    return [*shared, *compared, *(path.parents[2] for path in paths)][0]


def stages(jobs: Iterable[PlannedJob]) -> list[list[PlannedJob]]:
    """Jobs that one record will add up: a job alone, or the parts of a stage with the first merge that gathers them, last.

    Replicates have equal parts: each merge gathers a part once.
    """
    groups: list[list[PlannedJob]] = []
    for job in sorted(jobs, key=lambda job: job.part is not None):
        open_to = (group for group in groups if job.part not in {one.part for one in group})
        gathers = (group for group in open_to if job.part and _gathers(group[-1], job))
        if (group := next(gathers, None)) is not None:
            group.insert(0, job)
        else:
            groups.append([job])
    return groups


def _gathers(whole: PlannedJob, part: PlannedJob) -> bool:
    """Whether a merge reads a part: the settings of the part are some of its own."""
    same = (whole.stage, whole.inputs, bool(whole.parts)) == (part.stage, part.inputs, True)
    return same and deep_merge(whole.settings, part.settings) == whole.settings


def owner(job: PlannedJob) -> str:
    """Experiment, or the folder of a shared artefact."""
    return job.experiment or Path(job.record).parent.parent.name


def row_of(group: Sequence[PlannedJob], estimator: Estimator, now: float) -> ForecastRow:
    """The forecast of one stage; figures are null with a reason where it cannot be priced."""
    job = group[-1]
    row = ForecastRow(
        stage=job.stage,
        label=job.stage if owner(job) in ("comparison", "local") else f"{job.stage} {owner(job)}",
        record=job.record,
        jobs=dict(Counter(one.rule for one in group)),
        settings=settings_fingerprint(Job(job.settings).identity),
        made_at=now,
        **dict.fromkeys(("basis", "unit", "tokens", "kwh", "hours", "grams", "reason")),
        notes=[],
    )
    try:
        cost, work = estimator.cost(group)
    except UnpricedError as error:
        return row.model_copy(update={"reason": str(error)})
    kwh, carbon = cost.joules * (1 / 3.6e6), estimator.history[0].record.carbon
    grams = kwh * (carbon.pue * carbon.intensity_g_per_kwh) if carbon.intensity_g_per_kwh is not None else None
    figures = {"tokens": work.tokens(), "kwh": kwh, "hours": cost.seconds * (1 / 3600), "grams": grams}
    bounds = {key: Bounds(low=v.low, predicted=v.mid, high=v.high) if v else None for key, v in figures.items()}
    notes = [*cost.notes, *([f"grams: {carbon.reason}"] if grams is None else [])]
    return row.model_copy(update={"basis": cost.basis, "unit": work.unit, "notes": notes, **bounds})


def render(result: Forecast) -> list[str]:
    """Lines of the table. kWh and gCO2e: predicted, with the range; `-` stands for what does not apply."""
    rows: list[list[str] | str] = []
    notes: dict[str, list[str]] = {}  # each text once, with the labels that it holds for
    methods: dict[str, list[ForecastRow]] = {}
    for row in result.rows:
        tokens = "-" if row.tokens is None else f"{row.tokens.predicted:.0f} {row.unit}"
        rows.append([row.label, str(sum(row.jobs.values())), tokens, row.basis or "-", *_cells(row)])
        for text in (*row.notes, *([row.reason] if row.reason else [])):
            notes.setdefault(text, []).append(row.label)
        methods.setdefault(method_of(row.label.rpartition(" ")[2]), []).append(row)
    total, every = result.total, [row.label for row in result.rows]
    for method, own in methods.items():
        if len({row.label.rpartition(" ")[2] for row in own}) > 1:
            rows.append(_sum_row(f"all runs of {method}", own, total_of(own)))
    rows += [SEPARATING_LINE, _sum_row("total", result.rows, total)]
    head = ["stage", "jobs", "tokens", "basis", "kWh", "range", "hours", "gCO2e"]
    return [
        *tabulate(rows, head, tablefmt="simple", disable_numparse=True).splitlines(),
        *([f"The total is a lower bound, without {len(total.unpriced)} stage(s)."] if total.kwh and total.unpriced else []),
        f"Hardware: {result.hardware}. Hours: job hours, one after the other. Bounds of the total: bounds added up.",
        *(f"note: {'all' if labels == every else ', '.join(labels)}: {text}" for text, labels in notes.items()),
        *(f"note: {text}" for text in result.notes),
    ]


def _sum_row(label: str, rows: Sequence[ForecastRow], total: ForecastTotal) -> list[str]:
    return [label, str(sum(sum(row.jobs.values()) for row in rows)), "", "", *_cells(total, at_least=bool(total.unpriced))]


def _cells(figures: ForecastRow | ForecastTotal, at_least: bool = False) -> list[str]:
    kwh, hours, grams = figures.kwh, figures.hours, figures.grams
    if kwh is None or hours is None:
        return ["unknown", "-", "-", "-"]
    if at_least:
        return [f">= {kwh.low:.3g}", "-", f">= {hours.low:.2g}", f">= {grams.low:.3g}" if grams else "-"]
    carbon = f"{grams.predicted:.3g}" if grams else "-"
    return [f"{kwh.predicted:.3g}", f"{kwh.low:.2g} to {kwh.high:.2g}", f"{hours.predicted:.2g}", carbon]


def _earlier(out: Path) -> list[ForecastRow]:
    """Rows of the forecast that is replaced. Raises ArtefactError when the file is something else."""
    if not out.is_file():
        return []
    try:
        old = Forecast.model_validate(read_json(out))
    except ValidationError as error:
        fault = error.errors()[0]["msg"]
        raise ArtefactError(f"{out} is not a forecast/1, so it is not replaced: delete it ({fault})") from None
    return [*old.earlier, *old.rows]


def total_of(rows: Sequence[ForecastRow]) -> ForecastTotal:
    """Sum over the stages that are priced, bounds added up; no grams where one of them has none."""
    priced = [row for row in rows if row.kwh is not None]
    sums: dict[str, Bounds | None] = {}
    for key in ("kwh", "hours", "grams"):
        known = [bounds for row in priced if (bounds := getattr(row, key)) is not None]
        added = {bound: sum(getattr(each, bound) for each in known) for bound in Bounds.model_fields}
        sums[key] = Bounds(**added) if priced and len(known) == len(priced) else None
    unpriced = [row.label for row in rows if row.kwh is None and STAGES[row.stage].role != "accounting"]
    return ForecastTotal(**sums, unpriced=unpriced)


if __name__ == "__main__":
    sys.exit(main())
