"""Schema `forecast/1`, and what became of a forecast; `forecast_schema.json` is generated from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from workflow_scripts.artefact import ArtefactError
from workflow_scripts.energy.documents import Closed, Document
from workflow_scripts.energy.model import StageRecord


class Bounds(Closed):
    """A predicted figure between its bounds."""

    low: float
    predicted: float
    high: float


class ForecastRow(Closed):
    """One planned stage. Figures are null with a `reason` where it cannot be priced.

    `record` is the file that will say what it has cost; `jobs` counts the planned jobs (the parts of a stage and their merge);
    `settings` marks the stage's settings, so that the outcome of others is not compared with it.
    """

    stage: str
    label: str
    record: str
    jobs: dict[str, int]
    settings: str
    made_at: float
    basis: str | None
    unit: str | None
    tokens: Bounds | None
    kwh: Bounds | None
    hours: Bounds | None
    grams: Bounds | None
    reason: str | None
    notes: list[str]


class ForecastTotal(Closed):
    """Sum over the priced stages, bounds added up; `unpriced` names the stages that are not in it."""

    kwh: Bounds | None
    hours: Bounds | None
    grams: Bounds | None
    unpriced: list[str]


class Forecast(Document):
    """`forecast/1`: what the stale jobs of one plan will cost. `earlier` keeps the rows of records outside this plan."""

    schema_: Literal["forecast/1"] = Field("forecast/1", alias="schema")
    made_at: float
    arguments: list[str]
    hardware: str
    rows: list[ForecastRow]
    total: ForecastTotal
    earlier: list[ForecastRow]
    notes: list[str]


class Outcome(Closed):
    """Forecast against outcome, kWh; `actual` is null where the record has no figure, and then nothing is `inside`."""

    predicted: float
    low: float
    high: float
    actual: float | None
    inside: bool | None


class ForecastOutcome(Closed):
    """The forecast stages of an experiment, and their sum. Stages that were not forecast are in neither."""

    unit: Literal["kWh"]
    stages: dict[str, Outcome]
    total: Outcome


def read_forecast(path: str | None, fingerprints: dict[str, str]) -> dict[str, ForecastRow]:
    """Priced rows of the forecast by record file; none when no forecast was made.

    `fingerprints` are those of the settings that records were made with: a row for others is left out.
    Raises ArtefactError when the file is no forecast.
    """
    if path is None or not Path(path).is_file():
        return {}
    try:
        forecast = Forecast.read(Path(path))
    except ArtefactError as error:
        raise ArtefactError(f"{path} is not a forecast/1: delete it and run again ({error})") from None
    rows = [row for row in (*forecast.earlier, *forecast.rows) if row.kwh is not None]
    return {row.record: row for row in rows if fingerprints.get(row.record, row.settings) == row.settings}


def compare_forecast(
    rows: Mapping[str, ForecastRow], paths: Mapping[str, str], records: Mapping[str, StageRecord]
) -> ForecastOutcome | None:
    """Forecast against outcome of the stages that were forecast before they ended; None when no stage was.

    `paths` are the record files by stage, as the forecast names them.
    """
    found: dict[str, tuple[Bounds, float | None]] = {}
    for stage, path in paths.items():
        row = rows.get(path)
        whole = row is not None and sum(row.jobs.values()) > (
            records[stage].parts or 0
        )  # not of parts that were still to be done
        if row is not None and whole and row.kwh is not None and row.made_at <= records[stage].end_time:
            found[stage] = (row.kwh, records[stage].total_energy_kwh)
    if not found:
        return None
    actual = [outcome for _, outcome in found.values()]
    sums = {key: sum(getattr(bounds, key) for bounds, _ in found.values()) for key in ("low", "predicted", "high")}
    total = _outcome(Bounds.model_validate(sums), None if None in actual else math.fsum(a for a in actual if a is not None))
    return ForecastOutcome(unit="kWh", stages={stage: _outcome(*pair) for stage, pair in found.items()}, total=total)


def _outcome(bounds: Bounds, actual: float | None) -> Outcome:
    inside = None if actual is None else bounds.low <= actual <= bounds.high
    return Outcome(**bounds.model_dump(), actual=actual, inside=inside)
