"""Schema `forecast/1`, and what became of a forecast; `forecast_schema.json` is generated from it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workflow_scripts.energy.documents import Closed, Document


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
