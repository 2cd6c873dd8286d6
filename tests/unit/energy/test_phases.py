"""Phases: marks of the stage, joules of the meter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.meter_bench import Bench, python
from workflow_scripts.energy.phases import Phases
from workflow_scripts.progress import Progress


def said(marks: list[tuple[str, float]], **tokens: int) -> dict:
    return {"phases": {"marks": marks, "tokens": tokens}}


def test_joules_between_samples_are_divided_by_time() -> None:
    """10 W throughout; the stage starts until 3.0 s, works until 7.5, evaluates until 8.25, works again."""
    phases, marks = Phases(0.0), []
    for now in range(1, 11):
        marks += [mark for mark in (("work", 3.0), ("evaluate", 7.5), ("work", 8.25)) if now - 1 < mark[1] <= now]
        phases.tick(now, 10.0 * now, said(marks, work=30))
    assert phases.work_joules == pytest.approx(62.5)
    assert phases.content() == {
        "start": {"joules": pytest.approx(30.0), "seconds": pytest.approx(3.0), "tokens": 0},
        "work": {"joules": pytest.approx(62.5), "seconds": pytest.approx(6.25), "tokens": 30},
        "evaluate": {"joules": pytest.approx(7.5), "seconds": pytest.approx(0.75), "tokens": 0},
    }


def test_a_mark_that_came_late_counts_from_when_it_is_known_and_nothing_is_counted_twice() -> None:
    phases = Phases(0.0)
    phases.tick(1.0, 10.0, None)
    phases.tick(2.0, 20.0, said([("work", 0.9)]))
    assert phases.content()["start"]["joules"] == 10.0 and phases.work_joules == 10.0


def test_joules_that_are_not_known_at_the_end_are_null_and_the_seconds_are_there() -> None:
    phases = Phases(0.0)
    phases.tick(1.0, None, said([("work", 0.5)]))
    phases.tick(2.0, None, said([("work", 0.5)], work=7), final=True)
    assert phases.content()["work"] == {"joules": None, "seconds": 1.5, "tokens": 7}


def test_a_stage_marks_start_work_evaluations_and_saving(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("STAGE_PROGRESS", str(tmp_path / "progress.json"))
    with Progress("loss") as progress:
        progress.resume(loss=100)
        progress.add(loss=40)
        before = progress.phase("evaluate")
        progress.phase(before)
        progress.add(loss=2)
    found = json.loads((tmp_path / "progress.json").read_text())["phases"]
    assert [name for name, _ in found["marks"]] == ["work", "evaluate", "work", "save"]
    assert found["tokens"]["work"] == 42, "what an earlier attempt had done is not this one's work"


def test_phases_of_a_real_stage_are_in_its_record(tmp_path: Path) -> None:
    bench = Bench(tmp_path, total_energy_policy="codecarbon")
    code = """
import time
from workflow_scripts.progress import Progress
time.sleep(0.4)
with Progress("loss") as progress:
    for _ in range(8):
        progress.add(loss=10)
        time.sleep(0.1)
time.sleep(0.3)
"""
    assert bench.run(*python(code)).returncode == 0
    record = bench.record()
    phases = record["phases"]
    assert list(phases) == ["start", "work", "save"]
    assert phases["work"]["tokens"] == 80 and phases["work"]["seconds"] == pytest.approx(0.8, abs=0.3)
    assert sum(phase["joules"] for phase in phases.values()) == pytest.approx(record["total_energy_joules"], rel=1e-6)
    assert sum(phase["seconds"] for phase in phases.values()) == pytest.approx(record["duration_seconds"], rel=1e-6)
    assert record["work_joules_per_token"] == pytest.approx(phases["work"]["joules"] / 80)
    assert record["work_joules_per_token"] < record["joules_per_token"]
    assert Path(record["attempts"][0]["trace"]).exists()
