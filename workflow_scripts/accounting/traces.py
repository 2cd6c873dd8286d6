"""Energy over the course of a stage, from the files that the meter keeps of each attempt in the state folder.

Power over time, loss over joules, what intermediate evaluations of a training cost, and what a token costs when it is served.

`traces/<attempt>.csv.gz` has cumulative joules per component at every sample (of the whole host, where the job is charged a
share of it), `attempts/<attempt>.jsonl` has, a few times a minute or more, joules, work and metrics of one instant. Both are
scaled per component so that they end at what the attempt's record charges.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workflow_scripts.accounting.model import hardware_of, sum_of
from workflow_scripts.accounting.quality import (
    DeployedComponent,
    Deployment,
    Evaluation,
    EvaluationPoint,
    Generation,
    IntermediateEvaluations,
)
from workflow_scripts.energy.model import AttemptRecord, IntermediateEvaluation, StageRecord
from workflow_scripts.energy.pauses import PAUSE_S
from workflow_scripts.energy.uncertainty import instrument
from workflow_scripts.errors import UserError

BINS = 120  # of a power curve at most
SLOWEST_S = 2.0  # finer bins would show the steps of counters that are renewed once a second, not the power


class TraceError(UserError):
    """A trace or ledger that is not there or cannot be read; the text names it."""


def locate(named: str, near: Path) -> Path:
    """A file that a record names relative to the working directory of its run: here, or in a folder above `near`.

    A trace may have been compressed after it was named. Raises TraceError when it is nowhere.
    """
    path = Path(named)
    other = path.with_suffix("") if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")
    for folder in (Path(), *near.absolute().parents):
        for candidate in (folder / path, folder / other):
            if candidate.is_file():
                return candidate
    raise TraceError(f"{named} is not there any more")


def energy_curve(record: StageRecord, attempt: AttemptRecord, near: Path) -> pd.DataFrame:
    """Columns `elapsed_s` and `joules`, cumulative energy [J] of one attempt over the record's boundary, and `work`.

    `work` are the joules of the work phase as the meter saw them, NaN where it did not. The first point is 0 at the start, the
    next the first sample at which every component of the boundary has a figure. Raises TraceError.
    """
    if not attempt.trace:
        raise TraceError(f"attempt {attempt.id} kept no trace")
    path = locate(attempt.trace, near)
    try:
        samples = pd.read_csv(path, on_bad_lines="skip").apply(pd.to_numeric, errors="coerce")
    except (OSError, EOFError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise TraceError(f"{path} cannot be read ({error})") from None
    boundary = _charged(record, attempt)
    columns = [f"{name}_j" for name in boundary]
    if not boundary or not {"elapsed_s", *columns} <= set(samples):
        raise TraceError(f"{path} has not the columns of the boundary {'+'.join(boundary) or '(none)'}")
    samples = samples.dropna(subset=["elapsed_s", *columns])
    if samples.empty:
        raise TraceError(f"{path} has no sample with every component of {'+'.join(boundary)}")
    seconds, energy = samples["elapsed_s"].to_numpy(dtype=float), np.zeros(len(samples))
    suspended = attempt.end_time - attempt.start_time - attempt.duration_seconds > PAUSE_S
    stood_still = np.diff(seconds, prepend=seconds[0]) > (PAUSE_S if suspended else math.inf)
    for name, charged in boundary.items():
        own = np.cumsum(np.where(stood_still, 0.0, np.diff(samples[f"{name}_j"].to_numpy(dtype=float), prepend=0.0)))
        energy += own * (charged / own[-1] if own[-1] > 0 else 1.0)
    work = samples["work_j"].to_numpy(dtype=float) if "work_j" in samples else np.full(len(samples), math.nan)
    columns_of = {"elapsed_s": seconds, "joules": energy, "work": work}
    return pd.DataFrame({name: np.concatenate([[0.0], values]) for name, values in columns_of.items()})


def _charged(record: StageRecord, attempt: AttemptRecord) -> dict[str, float]:
    """Joules that the attempt is charged of the components of the record's boundary; a short attempt may lack one."""
    return {name: joules for name in record.energy.total.boundary if (joules := attempt.joules.get(name)) is not None}


def power_curve(curve: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Edges [s], [n + 1], and mean power [W], [n], of an energy curve in equal bins; the area is the energy."""
    first, last = curve["elapsed_s"].iloc[0], curve["elapsed_s"].iloc[-1]
    count = max(1, min(BINS, math.floor((last - first) / SLOWEST_S)))
    edges = np.linspace(first, last, count + 1)
    joules = np.interp(edges, curve["elapsed_s"], curve["joules"])
    return edges, np.diff(joules) / np.diff(edges)


def joules_between(curve: pd.DataFrame, begin: float, end: float) -> float | None:
    """Energy [J] between two times [s since the attempt began]; None where the curve does not cover them."""
    times = curve["elapsed_s"].to_numpy()
    if begin < times[0] or end > times[-1] + 1e-3 or end <= begin:
        return None
    joules = np.interp([begin, end], times, curve["joules"].to_numpy())
    return float(joules[1] - joules[0])


def loss_curve(record: StageRecord, metric: str, near: Path) -> list[tuple[float, float]]:
    """Points (joules spent so far, metric) of a training, from the ledgers of all its attempts in order.

    A point's joules are those of the first ledger line that has the new value: at most one flush period late. Energy of
    attempts that were repeated is in them, so a resumed training goes on further to the right. Raises TraceError.
    """
    if record.provenance.imported is not None:
        raise TraceError("imported: no loss was kept with the energy")
    points = []
    before = 0.0
    for attempt in record.attempts:
        boundary = _charged(record, attempt)
        lines = list(_ledger(attempt, near))
        # with several hosts the ledger is the first one's, and the record charges all
        last = next((total for line in reversed(lines) if (total := _sum(line, boundary))), None)
        factor = attempt.total_j / last if last and attempt.total_j is not None else 1.0
        known: Any = None
        for line in lines:
            work = line.get("work") or {}
            value, joules = (work.get("metrics") or {}).get(metric), _sum(line, boundary)
            measured = (work.get("measured") or {}).get(metric, value)  # older ledgers do not say at which step
            if value is None or joules is None or measured == known:
                continue
            known = measured
            points.append((before + joules * factor, float(value)))
        before += attempt.total_j or 0.0
    return points


def _ledger(attempt: AttemptRecord, near: Path) -> Iterator[dict[str, Any]]:
    """Lines of an attempt's ledger that have joules; a line cut by a kill is left out."""
    if not attempt.trace:
        raise TraceError(f"attempt {attempt.id} names no trace, so its ledger is not found")
    folder = Path(attempt.trace).parents[1]
    path = locate(str(folder / "attempts" / f"{attempt.id}.jsonl"), near)
    with path.open(encoding="utf-8", errors="replace") as handle:
        for text in handle:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict) and "joules" in line:
                yield line


def _sum(line: dict[str, Any], boundary: Iterable[str]) -> float | None:
    return sum_of([(line["joules"].get(name) or {}).get("joules") for name in boundary])


def intermediate_evaluations(record: StageRecord, near: Path) -> IntermediateEvaluations | None:
    """Cost and points of a training's evaluations (step, loss and time are the training's), or None where it made none.

    The joules are null with a `reason` where no trace covers an evaluation; `training_joules` of a point are what its attempt
    had used when the evaluation began, and what survived of earlier ones, without earlier evaluations. Those that a killed
    attempt repeated later are counted once.
    """
    evaluations = record.metrics.evaluations
    if not evaluations:
        return None
    found = IntermediateEvaluations(
        count=len(evaluations),
        seconds=math.fsum(evaluation.seconds for evaluation in evaluations),
        joules=None,
        reason=None,
        points=[EvaluationPoint(step=e.step, eval_loss=e.eval_loss, training_joules=None) for e in evaluations],
    )
    spent = 0.0
    try:
        for point, evaluation in zip(found.points, evaluations, strict=True):
            before, own, point.work_joules = _joules(record, evaluation, near)
            point.training_joules = before - spent
            spent += own
        found.joules = spent
    except TraceError as error:
        found.reason = str(error)
    return found


def _joules(record: StageRecord, evaluation: IntermediateEvaluation, near: Path) -> tuple[float, float, float | None]:
    """Joules until an evaluation began, its own, and those of the work phase. Raises TraceError when no trace covers it."""
    earlier = 0.0
    for attempt in record.attempts:
        if attempt.id == evaluation.attempt and evaluation.start_s is not None and evaluation.end_s is not None:
            curve = energy_curve(record, attempt, near)
            before = joules_between(curve, 0.0, evaluation.start_s)
            own = joules_between(curve, evaluation.start_s, evaluation.end_s)
            if before is not None and own is not None:
                return earlier + before, own, _work(record, curve, (evaluation.start_s + evaluation.end_s) / 2)
        earlier += (attempt.total_j if attempt.useful_j is None else attempt.useful_j) or 0.0
    raise TraceError(f"no power trace covers the evaluation at step {evaluation.step}")


def _work(record: StageRecord, curve: pd.DataFrame, at: float) -> float | None:
    """Joules of the work phase until `at` [s], which stand still in an evaluation; None of several attempts."""
    phase, traced = record.work_phase, curve["work"].to_numpy()
    if len(record.attempts) > 1 or phase is None or phase.joules is None or not traced[-1] > 0:
        return None
    return float(np.interp(at, curve["elapsed_s"].to_numpy(), traced)) * phase.joules / float(traced[-1])


def deployed_cost(evaluation: Evaluation, record: StageRecord | None, near: Path) -> Deployment:
    """Joules per generated token [J], mean power [W] and how they were obtained; null with a `reason`.

    The energy of the generation's seconds comes from the meter's trace; where that is gone, or does not say when they were,
    from the mean power of the whole evaluation, which loading the model lowers or raises (`method` says which).
    `components` splits the figure by component, in the proportion of the stage's record, with each one's instrument.
    """
    generation = evaluation.generation or Generation()
    tokens, seconds = generation.generated_tokens, generation.seconds
    if not tokens or not seconds:
        return Deployment(reason=generation.reason or "the evaluation generated no text")
    spent = record.spent if record is not None else None
    if record is None or spent is None or not spent.value:
        return Deployment(reason="the evaluation has no energy figure")
    begin, traced = generation.start_s, None
    if begin is not None and record.attempts:
        with contextlib.suppress(TraceError):  # the mean power stands in for it, and `method` says so
            traced = joules_between(energy_curve(record, record.attempts[-1], near), begin, begin + seconds)
    joules = spent.value / record.duration_seconds * seconds if traced is None else traced
    components = [
        DeployedComponent(
            component=name,
            joules_per_token=joules / tokens * (part.joules or 0.0) / spent.value,
            instrument=instrument(part.method),
            whose=record.place(name, record.attempts[-1]),
            uncertainty_pct=part.uncertainty_pct,
        )
        for name, part in record.inside.items()
    ]
    return Deployment(
        joules_per_token=joules / tokens,
        tokens=tokens,
        seconds=seconds,
        watts=joules / seconds,
        boundary=record.energy.total.boundary,
        hardware=hardware_of([record]),
        components=components,
        method="mean power of the evaluation" if traced is None else "trace",
    )
