"""What an import cannot read is named and counted, and the rest goes on."""

from __future__ import annotations

import json

import pytest

from tests.unit.importers import first_system as old

START = old.START


def test_bad_input_is_named_counted_and_the_rest_goes_on(tmp_path, stages, run) -> None:
    """A cut record whose summary is whole, a cut record without, a partial record, no header, a cut row, a foreign file."""
    whole = old.stage("kd_cut")
    text = json.dumps(whole)
    folder = old.write(stages / "kd_cut", settings=old.config("kd_cut"), kd_cut=text[: len(text) // 2])
    (folder / "experiment_summary.json").write_text(json.dumps(old.summary("kd_cut", whole)))
    old.write(stages / "kd_gone", settings=old.config("kd_gone"), kd_gone=text[:50])
    partial = {"stage_id": "kd_part", "stage_name": "kd_part", "gpu_energy_joules": 5.0}
    old.write(stages / "kd_part", partial, settings=old.config("kd_part"))
    old.write(stages / "kd_ok", old.stage("kd_ok"), settings=old.config("kd_ok"), notes={"hello": 1}, listed=[1])
    old.power_log(stages / "kd_ok" / "power_log.csv", [(START, 1.0), (START + 1, 1.0)], header=False)
    codecarbon = tmp_path / "run" / "codecarbon"
    good = old.row("kd_ok", "r1", "2023-11-14T22:30:02", 1000.0, 0.01, 0.0555)
    old.emissions(codecarbon / "emissions.csv", good, good[:60])
    old.emissions(codecarbon / "emissions.csv.bak", good, header=None)
    result = run()
    assert result.code == 0
    assert set(result.summaries) == {"kd_cut", "kd_ok"}
    assert result.stage("kd_cut")["total_energy_joules"] == pytest.approx(236_000)
    assert result.stage("kd_ok")["total_energy_joules"] == pytest.approx(236_000)
    assert "stage kd_cut has no whole file of its own: taken from this summary" in result.report
    for file, reason in (
        ("kd_cut.json", "is not whole JSON"),
        ("kd_gone.json", "is not whole JSON"),
        ("kd_part.json", "partial record: no start and end"),
        ("notes.json", "no stage of the first system (keys hello)"),
        ("listed.json", "a JSON list, expected an object"),
        ("power_log.csv", "has no timestamp and total_power_w"),
        ("emissions.csv", "line 3 does not fit its header (11 of 24 columns)"),
        ("emissions.csv.bak", "the file has no header: its 1 line(s) are not guessed at"),
    ):
        assert any(file in line and reason in line for line in result.report.splitlines()), (file, reason)
    assert result.counted("refused") == 8
    assert f"{stages / 'kd_gone'}: the stage began, and left no record, snapshot or power log" in result.report


def test_a_record_whose_times_are_impossible(stages, run) -> None:
    """A missing start follows from end and duration; an end before the start is refused."""
    late = {key: value for key, value in old.stage("kd_late").items() if key != "start_time"}
    old.write(stages / "kd_late", late)
    old.write(stages / "kd_back", old.stage("kd_back") | {"end_time": START - 1})
    result = run()
    assert (result.stage("kd_late")["start_time"], list(result.summaries)) == (START, ["kd_late"])
    assert "partial record: no start and end that a stage can have" in result.report


def test_nothing_to_import(tmp_path, run) -> None:
    (tmp_path / "empty").mkdir()
    result = run(str(tmp_path / "empty"), str(tmp_path / "nowhere"))
    assert (result.code, result.printed, result.counted("refused")) == (1, [], 2)
    assert "nothing could be imported from 2 folder(s)" in result.report


def test_results_of_this_program_are_neither_imported_nor_replaced(tmp_path, stages, run) -> None:
    ours = {"schema": "energy-stage/1", "stage_id": "student_train", "provenance": {"host": "h"}}
    old.write(stages, old.stage("student_train"), ours=ours, host=None)
    target = tmp_path / "out" / "run" / "stages" / "student_train.json"
    target.parent.mkdir(parents=True)
    target.write_text(json.dumps(ours))
    result = run()
    assert (result.code, result.summaries, json.loads(target.read_text())) == (1, {}, ours)
    assert "energy-stage/1 is a result of this program" in result.report
    assert f"{target} exists and was not imported: it is not replaced" in result.report
    target.write_text("{")
    assert "exists and cannot be read" in run().report
    target.unlink()
    assert run().code == 0
