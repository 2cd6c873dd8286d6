"""A forecast against what became of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.summaries import stage
from workflow_scripts.accounting.prediction import Bounds, Forecast, ForecastRow, compare_forecast, read_forecast
from workflow_scripts.artefact import ArtefactError
from workflow_scripts.energy.model import StageRecord


def a_row(record: str, kwh: tuple[float, float, float] | None, made_at: float = 10.0, settings: str = "s") -> ForecastRow:
    bounds = None if kwh is None else Bounds(low=kwh[0], predicted=kwh[1], high=kwh[2])
    nothing = dict.fromkeys(("basis", "unit", "tokens", "hours", "grams", "reason"))
    own = {
        "stage": "x",
        "label": "x",
        "record": record,
        "jobs": {"x": 1},
        "settings": settings,
        "made_at": made_at,
        "notes": [],
    }
    return ForecastRow.model_validate(nothing | own | {"kwh": bounds})


def test_forecast_against_outcome() -> None:
    rows = {r.record: r for r in (a_row("a", (1, 2, 3)), a_row("b", (1, 2, 3)), a_row("late", (1, 2, 3), made_at=99))}
    spent = {"A": 2.5, "B": 5.0, "L": 2.0, "N": 1.0}
    records = {
        name: StageRecord.model_validate(stage(kwh * 3.6e6, "data", name, start_time=10.0)) for name, kwh in spent.items()
    }
    found = compare_forecast(rows, {"A": "a", "B": "b", "L": "late", "N": "never"}, records)
    assert found is not None
    assert {stage: outcome.inside for stage, outcome in found.stages.items()} == {"A": True, "B": False}
    total = found.total
    assert (total.low, total.predicted, total.high, total.actual, total.inside) == (2.0, 4.0, 6.0, 7.5, False)
    records["B"].total_energy_joules = None
    unknown = compare_forecast(rows, {"A": "a", "B": "b"}, records)
    assert unknown is not None
    assert (unknown.stages["B"].inside, unknown.total.actual, unknown.total.inside) == (None, None, None)
    assert compare_forecast(rows, {"N": "never"}, records) is None
    merged = {"A": records["A"].model_copy(update={"parts": 1})}
    assert compare_forecast(rows, {"A": "a"}, merged) is None, "of the merge alone; the record has its part, too"


def test_a_forecast_holds_for_its_settings_only(tmp_path: Path) -> None:
    path = tmp_path / "forecast.json"
    assert read_forecast(str(path), {}) == {}
    total = {"kwh": None, "hours": None, "grams": None, "unpriced": []}
    rows = [a_row("a", (1, 2, 3)), a_row("b", (1, 2, 3)), a_row("unpriced", None)]
    content = Forecast.model_validate(
        {
            "made_at": 1,
            "arguments": [],
            "hardware": "",
            "rows": rows,
            "total": total,
            "earlier": [a_row("c", (1, 2, 3))],
            "notes": [],
        }
    )
    path.write_text(content.model_dump_json(by_alias=True))
    assert set(read_forecast(str(path), {"a": "s", "b": "other"})) == {"a", "c"}
    path.write_text("{}")
    with pytest.raises(ArtefactError, match="is not a forecast/1: delete it"):
        read_forecast(str(path), {})
