"""What a forecast said of the stages of an experiment, against what they have cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from workflow_scripts.accounting.prediction import Bounds, Forecast, ForecastOutcome, ForecastRow, Outcome
from workflow_scripts.artefact import ArtefactError
from workflow_scripts.energy.model import StageRecord


class ForecastError(ArtefactError):
    """A file that is no forecast."""


def read_forecast(path: str | None, fingerprints: dict[str, str]) -> dict[str, ForecastRow]:
    """Priced rows of the forecast by record file; none when no forecast was made.

    `fingerprints` are those of the settings that records were made with: a row for others is left out.
    Raises ForecastError when the file is no forecast.
    """
    if path is None or not Path(path).is_file():
        return {}
    try:
        forecast = Forecast.read(Path(path))
    except ArtefactError as error:
        raise ForecastError(f"{path} is not a forecast/1: delete it and run again ({error})") from None
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
        if row is not None and row.kwh is not None and row.made_at <= records[stage].end_time:
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
