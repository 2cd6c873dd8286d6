"""What an import cannot read is named and counted, and the rest goes on."""

from __future__ import annotations

import json

import pytest

from tests.unit.importers import first_system as old
from workflow_scripts.errors import UserError
from workflow_scripts.importers.import_runs import main

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
    good = old.row("kd_ok", "r1", "2023-11-14T17:30:02", 1000.0, 0.01, 0.0555)
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
    assert (result.code, result.counted("imported"), result.counted("refused")) == (1, 0, 2)
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


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config_kd_bad__kd_bad", {"config": {"experiment": "x"}}, "config: config.experiment = 'x', expected an object"),
        ("config_kd_bad__kd_bad", {"experiment": "x"}, "config: experiment = 'x', expected an object"),
        ("config_kd_bad__kd_bad", {"config": [1]}, "config: config = [1], expected an object"),
        ("config_kd_bad__kd_bad", {"config": {"pipeline": ["kd"]}}, "config: config.pipeline = ['kd'], expected a str"),
        ("config_kd_bad__kd_bad", {"config": None}, "config: it has no config"),
        ("environment_kd_bad__kd_bad", {"software": [1]}, "environment: software = [1], expected an object"),
        ("environment_kd_bad__kd_bad", {"gpus": 5}, "environment: gpus = 5, expected a list"),
        ("environment_kd_bad__kd_bad", {"gpus": [{"name": 5}], "software": {}}, "environment: gpus has {'name': 5}"),
        (
            "environment_kd_bad__kd_bad",
            {"gpus": [], "software": {}, "git_info": {"commit_hash": 5}},
            "git_info.commit_hash = 5",
        ),
        ("environment_kd_bad__kd_bad", {"software": {"python_version": 3}, "hostname": []}, "hostname = [], expected a str"),
        ("experiment_summary", {"stages": [1]}, "summary: stages = [1], expected an object"),
        ("experiment_summary", {"stages": None}, "summary: it has no stages"),
        ("experiment_summary", {"stages": {"kd_bad": 5}}, "stage kd_bad: a JSON int, expected an object"),
        ("kd_other", {"stage_id": ["a"], "start_time": 1}, "stage: stage_id = ['a'], expected a str"),
        ("deep", "[" * 100_000, "recursion"),
        ("binary", "\udcff\udcfe", "codec can't decode byte 0xff"),
    ],
)
def test_a_malformed_file_is_named_and_the_rest_is_imported(stages, run, file, content, reason) -> None:
    folder = old.write(stages / "kd_bad", old.stage("kd_bad"), host=None)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / f"{file}.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    old.write(stages / "kd_ok", old.stage("kd_ok"), settings=old.config("kd_ok"))
    result = run()
    assert (result.code, set(result.summaries)) == (0, {"kd_bad", "kd_ok"})
    assert result.stage("kd_bad")["total_energy_joules"] == pytest.approx(236_000)
    assert any(f"{file}.json" in line and reason in line for line in result.report.splitlines()), result.report
    assert result.counted("refused") == 1


def test_a_power_log_in_milliseconds_is_refused(stages, run) -> None:
    folder = old.write(stages / "kd_x", old.stage(), settings=old.config("kd_x"))
    old.power_log(folder / "power_log.csv", [((START + i) * 1000, 100.0) for i in range(100)])
    result = run()
    assert "power_log.csv: 100 time stamp(s) are no Unix seconds (milliseconds?)" in result.report
    assert (result.counted("refused"), len(result.stage()["attempts"])) == (1, 1)


def test_a_stage_folder_alone_has_its_configuration(tmp_path, stages, run) -> None:
    """Also where only its summary is whole."""
    folder = old.write(stages / "a", settings=old.config("kd_x"), experiment_summary=old.summary("kd_x", old.stage()))
    result = run(str(folder))
    assert result.summaries["kd_x"]["comparable"]["optimizer"] == "adamw"
    assert not [text for text in result.stage()["warnings"] if "no configuration" in text]


def test_nothing_is_written_outside_out(tmp_path, stages, run) -> None:
    """An experiment called `..`, a link in --out, and an --out that is a file."""
    settings = old.config("kd_x", experiment={"name": ".."})
    old.write(stages / "..kd", old.stage(), settings=settings)
    old.write(stages / "kd_y", old.stage("kd_y"), settings=old.config("kd_y"))
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kd_y").symlink_to(outside)
    before = {path for path in tmp_path.rglob("*") if tmp_path / "out" not in path.parents}
    result = run()
    assert list(result.summaries) == ["experiment"]
    assert "kd_y is a link or a file: nothing is written through it" in result.report
    assert {path for path in tmp_path.rglob("*") if tmp_path / "out" not in path.parents} == before
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for out in (taken, taken / "below"):
        with pytest.raises(UserError, match="a file or a link is in the way"):
            main([str(tmp_path / "run"), "--out", str(out)])
    assert taken.read_text() == "mine"


def test_the_report_is_a_line_for_each_kind(tmp_path, stages, run) -> None:
    for n in range(30):
        old.write(stages / f"kd_{n}", old.stage(f"kd_{n}", start=START + 5000 * n), settings=old.config(f"kd_{n}"), bad=[n])
    result = run()
    assert (len(result.printed.splitlines()), result.counted("imported"), result.counted("refused")) == (8, 30, 30)
    assert (tmp_path / "out" / "import_report.txt").read_text().count("a JSON list, expected an object") == 30
