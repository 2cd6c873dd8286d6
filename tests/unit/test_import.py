"""Import of run folders of the first system: figures worked out by hand from what the tests write."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from tests.unit import first_system as old
from workflow_scripts.accounting.import_runs import main

PACKAGE = Path(__file__).parents[2] / "workflow_scripts"
RECORD = json.loads((PACKAGE / "energy" / "record_schema.json").read_text())
SUMMARY = json.loads((PACKAGE / "accounting" / "summary_schema.json").read_text())
START = old.START


class Result:
    """What an import wrote and printed; everything written is checked against its schema."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.out = folder / "out"
        self.code = main([*arguments, "--out", str(self.out)])
        captured = capsys.readouterr()
        self.printed, self.report = captured.out.split(), captured.err
        self.summaries = {p.parent.name: json.loads(p.read_text()) for p in self.out.glob("*/experiment_summary.json")}
        for summary in self.summaries.values():
            jsonschema.validate(summary, SUMMARY)
        for path in self.out.glob("*/stages/*.json") if self.code == 0 else ():
            record = json.loads(path.read_text())
            jsonschema.validate(record, RECORD)
            assert record == {k: v for k, v in self.stage(path.parents[1].name, path.stem).items() if k != "shared_by"}

    def stage(self, experiment: str = "kd_x", stage: str = "student_train") -> dict:
        return self.summaries[experiment]["stages"][stage]

    def counted(self, kind: str) -> int:
        return int(next(line for line in self.report.splitlines() if line.startswith(kind)).rsplit(": ", 1)[1])


@pytest.fixture
def run(tmp_path, capsys):
    return lambda *arguments: Result(tmp_path, capsys, *(arguments or (str(tmp_path / "run"),)))


@pytest.fixture
def stages(tmp_path) -> Path:
    return tmp_path / "run" / "stages"


def test_whole_stage(stages, run) -> None:
    """200,000 J by samples + 0.01 kWh = 36,000 J by CodeCarbon: 236,000 J, 4.72 J per token; RAM stays out."""
    record = old.stage()
    old.write(stages / "kd_x", record, settings=old.config("kd_x"), experiment_summary=old.summary("kd_x", record))
    result = run()
    stage, summary = result.stage(), result.summaries["kd_x"]
    assert (result.code, result.counted("set to null"), result.counted("refused")) == (0, 0, 0)
    assert result.printed == [str(result.out / "kd_x" / "experiment_summary.json")]
    assert stage["total_energy_joules"] == pytest.approx(236_000) == stage["useful_j"] == summary["total_energy_joules"]
    assert (stage["tokens_processed"], stage["tokens_unit"], stage["work"]["loss"]) == (50_000, "loss", 50_000)
    assert stage["joules_per_token"] == pytest.approx(4.72) == stage["joules_per_token_by_type"]["loss"]
    assert stage["tokens_per_second"] == pytest.approx(50)
    assert (stage["role"], stage["status"], stage["wasted_j"]) == ("student", "complete", 0)
    energy = stage["energy"]
    assert energy["total"] | {"uncertainty_j": 0, "uncertainty_pct": 0} == {
        "joules": pytest.approx(236_000),
        "class": "modelled",
        "boundary": ["gpu", "cpu"],
        "uncertainty_j": 0,
        "uncertainty_pct": 0,
        "reason": None,
    }
    assert (energy["gpu"]["class"], energy["gpu"]["method"]) == ("integrated", "NVML power over time")
    assert energy["gpu"]["crosscheck"] == pytest.approx(200_000)
    assert (energy["cpu"]["class"], energy["cpu"]["method"]) == ("modelled", "CodeCarbon"), "whatever the label says"
    assert energy["dram"]["joules"] == pytest.approx(3600)
    assert energy["total"]["uncertainty_j"] == pytest.approx((20_000**2 + 18_000**2) ** 0.5), "10 % of samples, 50 % of a model"
    assert stage["carbon"]["grams"] == pytest.approx(236_000 / 3.6e6 * stage["carbon"]["intensity_g_per_kwh"])
    assert stage["codecarbon_emissions_kg"] == 0.01
    assert (stage["provenance"]["host"], stage["provenance"]["cpu"]) == ("node1", "Some CPU")
    assert stage["devices"][0]["name"] == "NVIDIA H100 80GB HBM3"
    assert summary["comparable"]["effective batch"] == 32
    teacher, student = summary["roles"]["teacher"], summary["roles"]["student"]
    assert (teacher["joules"], teacher["stages"], teacher["class"]) == (None, 0, None)
    assert (student["joules"], student["class"], student["boundary"]) == (pytest.approx(236_000), "modelled", ["gpu+cpu"])
    assert "stage logit_caching is missing" in result.report


def test_snapshots_go_by_number_and_a_cpu_that_stands_still_is_unknown(stages, run) -> None:
    """By name step 9800 would be the last: 1.4 J per token where step 10200 has 2.0."""
    snapshots = [old.snapshot(step, seconds=step / 10, gpu=20.0 * step, cpu_energy_joules=77.0) for step in (200, 9800, 10200)]
    old.write(stages / "kd_x", *snapshots, settings=old.config("kd_x"))
    result = run()
    stage = result.stage()
    assert stage["total_energy_joules"] == 204_000
    assert (stage["tokens_processed"], stage["joules_per_token"]) == (102_000, 2.0)
    assert (stage["status"], stage["useful_j"], stage["wasted_j"]) == ("partial", None, None)
    assert stage["attempts"][0]["outcome"] == "lost"
    assert stage["energy"]["cpu"]["joules"] is None
    assert "cpu_energy_joules = 77 at every step (200, 9800, 10200)" in stage["energy"]["cpu"]["reason"]
    assert (stage["energy"]["total"]["boundary"], stage["energy"]["total"]["class"]) == (["gpu"], "integrated")
    assert stage["codecarbon_energy_kwh"] is None, "in a snapshot CodeCarbon's row is an earlier attempt's"
    assert "2 earlier snapshot(s) of kd_x: step 10200 holds their energy" in result.report


def test_power_log_goes_on_after_the_last_snapshot(stages, run) -> None:
    """100 W for 100 s and then 300 W for 20 s more; the snapshot is of second 100.

    Whole: 100 x 100 + (100 + 300) / 2 x 0.5 + 300 x 19.5 = 15,950 J. J per token belongs to 10,000 J and 1,000 tokens.
    """
    folder = old.write(stages / "kd_x", old.snapshot(100, seconds=100, gpu=10_000.0), settings=old.config("kd_x"))
    old.power_log(folder / "power_log.csv", [(START + i / 2, 100.0 if i <= 200 else 300.0) for i in range(241)])
    result = run()
    stage = result.stage()
    assert stage["total_energy_joules"] == pytest.approx(15_950)
    assert stage["joules_per_token"] == pytest.approx(10.0)
    assert stage["tokens_per_second"] == pytest.approx(10.0)
    assert (stage["duration_seconds"], stage["gpu_peak_power_watts"]) == (120, 400)
    assert "10,000 J and 1,000 tokens; the other 5,950 J came after it" in " ".join(stage["warnings"])
    assert result.summaries["kd_x"]["overall_joules_per_token"] is None, "its tokens are of an earlier instant than its energy"
    assert stage["attempts"][0]["sampling"] == {
        "period_s": 0.5,
        "n": 241,
        "expected": 241,
        "missed_pct": 0,
        "max_gap_s": 0.5,
        "j_in_gaps": 0,
    }


def test_power_log_that_contradicts_the_record_is_named(stages, run) -> None:
    folder = old.write(stages / "kd_x", old.stage(gpu=200_000.0), settings=old.config("kd_x"))
    old.power_log(folder / "power_log.csv", [(START + i, 100.0) for i in range(1001)])
    stage = run().stage()
    assert stage["gpu_energy_joules"] == 200_000
    assert "the power log gives 100,000 J up to the record's end, the record 200,000 J" in " ".join(stage["warnings"])


def test_a_restarted_log_keeps_the_attempt_that_left_no_record(stages, run) -> None:
    """300 s at 100 W without a record, an hour of queue, 1,001 s at 200 W with one: 30 kJ + 200.2 kJ, nothing for the hour."""
    start = START + 3900
    folder = old.write(stages / "kd_x", old.stage(start=start), settings=old.config("kd_x"))
    first = [(START + i, 100.0) for i in range(301)]
    old.power_log(folder / "power_log.csv", [*first, *((start - 0.2 + i, 200.0) for i in range(1002))])
    result = run()
    stage = result.stage()
    lost, completed = stage["attempts"]
    assert (lost["outcome"], lost["total_j"], lost["duration_seconds"]) == ("lost", pytest.approx(30_000), 300)
    assert completed["outcome"] == "completed"
    assert (lost["host"], completed["host"]) == ("unknown host of kd_x/kd_x", "node1"), "the environment is the last attempt's"
    assert completed["joules"]["gpu"] == pytest.approx(200_200), "1,001 s of samples"
    assert stage["total_energy_joules"] == pytest.approx(30_000 + 200_200 + 36_000)
    assert (stage["wasted_j"], lost["wasted_j"]) == (pytest.approx(30_000), pytest.approx(30_000)), "nothing was resumed"
    assert stage["span_seconds"] > stage["duration_seconds"] == pytest.approx(300 + 1000.8)
    assert "300 s from 1700000000 on are an attempt without a record" in result.report


def test_attempts_by_start_time_add_up(stages, run) -> None:
    """Two attempts left snapshots only, the third ended: 20 + 30 + 236 kJ; without resuming the first two are wasted."""
    first = old.snapshot(100, gpu=20_000.0)
    second = old.snapshot(150, start=START + 5000, gpu=30_000.0)
    old.write(stages / "kd_x", first, second, old.stage(start=START + 9000), settings=old.config("kd_x"))
    stage = run().stage()
    assert [a["total_j"] for a in stage["attempts"]] == [20_000, 30_000, pytest.approx(236_000)]
    assert [a["start_time"] for a in stage["attempts"]] == [START, START + 5000, START + 9000]
    assert stage["total_energy_joules"] == pytest.approx(286_000)
    assert (stage["wasted_j"], stage["useful_j"]) == (50_000, pytest.approx(236_000))
    assert stage["joules_per_token"] == pytest.approx(286_000 / 50_000), "what was wasted on the way is on the bill"


def test_tokens_of_a_resumed_stage_are_unknown(stages, run) -> None:
    settings = old.config("kd_x", training={"resume_from_checkpoint": True})
    old.write(stages / "kd_x", old.snapshot(100), old.stage(start=START + 9000), settings=settings)
    stage = run().stage()
    assert (stage["tokens_processed"], stage["joules_per_token"], stage["useful_j"]) == (None, None, None)
    assert "2 attempts, and the last resumed" in " ".join(stage["warnings"])
    assert stage["total_energy_joules"] == pytest.approx(436_000)


def test_copies_count_once(tmp_path, stages, run) -> None:
    """A copy of a record, a whole copied run folder, and the same folder named twice: 236 kJ, once."""
    record = old.stage()
    for folder in (stages, tmp_path / "copy" / "stages"):
        target = old.write(folder / "kd_x", record, settings=old.config("kd_x"), old_kd_x=dict(reversed(record.items())))
        old.power_log(target / "power_log.csv", [(START + i, 200.0) for i in range(1001)])
    result = run(str(tmp_path / "run"), str(tmp_path / "copy"), str(tmp_path / "run"))
    assert list(result.summaries) == ["kd_x"]
    assert len(result.stage()["attempts"]) == 1
    assert result.stage()["total_energy_joules"] == pytest.approx(236_000)
    assert result.counted("dropped") == 4, "one copy in each folder, the record and the log of the copied folder"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokens_processed": 0}, "tokens_processed = 0: energy was spent"),
        ({"joules_per_token": 99.0}, "are not of one instant: the record's own joules_per_token = 99"),
        ({"tokens_processed": None, "joules_per_token": 0.0}, "tokens_processed is missing"),
        ({"tokens_processed": -3}, "tokens_processed = -3"),
    ],
)
def test_impossible_token_counts_are_null(stages, run, change, reason) -> None:
    old.write(stages / "kd_x", {**old.stage(), **change}, settings=old.config("kd_x"))
    result = run()
    stage = result.stage()
    assert (stage["tokens_processed"], stage["joules_per_token"], stage["tokens_per_second"]) == (None, None, None)
    assert reason in " ".join(stage["warnings"])
    assert reason in result.report
    assert stage["total_energy_joules"] == pytest.approx(236_000), "the energy is known all the same"


def test_tokens_and_energy_of_different_instants(stages, run) -> None:
    late = old.snapshot(300, snapshot_time="2023-11-14T18:07:00")
    old.write(stages / "kd_late", late | {"stage_id": "kd_late"}, settings=old.config("kd_late"))
    still = [old.snapshot(n, "kd_still", seconds=10.0 * n, gpu=100.0 * n, tokens_processed=5) for n in (1, 2)]
    old.write(stages / "kd_still", *still, settings=old.config("kd_still"))
    falls = [old.snapshot(n, "kd_falls", seconds=10.0 * n, gpu=100.0 * n, tokens_processed=5 - n) for n in (1, 2)]
    old.write(stages / "kd_falls", *falls, settings=old.config("kd_falls"))
    result = run()
    reasons = {name: " ".join(result.stage(name)["warnings"]) for name in result.summaries}
    assert all(result.stage(name)["tokens_processed"] is None for name in result.summaries)
    assert "snapshot_time and end_time are" in reasons["kd_late"]
    assert "tokens_processed = 5 at every step while energy was spent" in reasons["kd_still"]
    assert "tokens_processed falls from 4 at step 1 to 3 at step 2" in reasons["kd_falls"]


def test_padded_counts_of_a_generation(stages, run) -> None:
    """100 prompts at 256 new tokens are 25,600 tokens at most; 25,601 hold padding."""
    for name, tokens in (("synthetic_a", 25_600), ("synthetic_b", 25_601)):
        old.write(stages / name, old.stage(name, tokens_processed=tokens), settings=old.config(name, "sft"))
    result = run()
    kept, padded = (result.stage(name, "teacher_generation") for name in ("synthetic_a", "synthetic_b"))
    assert (kept["tokens_processed"], kept["tokens_unit"], kept["role"]) == (25_600, "generated", "teacher")
    assert (padded["tokens_processed"], padded["work"]["generated"]) == (None, None)
    assert padded["provenance"]["imported"]["tokens_claimed"] == 25_601
    assert "25,601 is 256 per prompt of 100, at max_new_tokens = 256: padded positions" in " ".join(padded["warnings"])
    assert result.summaries["synthetic_a"]["joules_per_token"] is None, "it is no training"


def test_preprocessing_counted_examples(stages, run) -> None:
    old.write(stages / "tulu_preprocess", old.stage("tulu_preprocess_dataset", tokens_processed=900))
    stage = run().stage("tulu_preprocess_dataset", "preprocess")
    assert (stage["tokens_processed"], stage["work"]["examples"], stage["role"]) == (None, 900, "data")


def test_rapl_read_at_both_ends_counts_only_where_it_cannot_have_wrapped(stages, run) -> None:
    """The smallest package range, 65,533 J, at 500 W lasts 131 s."""
    for name, seconds in (("kd_short", 130.0), ("kd_long", 140.0)):
        record = old.stage(name, seconds=seconds, cpu_energy_joules=5000.0)
        old.write(stages / name, record, settings=old.config(name))
    result = run()
    short, long = (result.stage(name)["energy"] for name in ("kd_short", "kd_long"))
    assert (short["cpu"]["joules"], short["cpu"]["class"], short["total"]["class"]) == (5000, "measured", "integrated")
    assert short["total"]["joules"] == 205_000
    assert (long["cpu"]["joules"], long["total"]["boundary"]) == (None, ["gpu"])
    assert "may have wrapped any number of times" in long["cpu"]["reason"]


def test_cpu_figure_without_origin_and_without_value(stages, run) -> None:
    bare = {key: value for key, value in old.stage("kd_bare").items() if not key.startswith("codecarbon")}
    old.write(stages / "kd_bare", bare)
    old.write(stages / "kd_zero", old.stage("kd_zero", codecarbon_cpu_energy_kwh=0.0))
    nothing = old.stage("kd_nothing", codecarbon_cpu_energy_kwh=0.0, gpu=0.0, codecarbon_gpu_energy_kwh=0.0)
    old.write(stages / "kd_nothing", nothing)
    result = run()
    assert "RAPL's or CodeCarbon's" in result.stage("kd_bare")["energy"]["cpu"]["reason"]
    assert "no energy of a CPU that ran" in result.stage("kd_zero")["energy"]["cpu"]["reason"]
    empty = result.stage("kd_nothing")
    assert (empty["total_energy_joules"], empty["gpu_energy_joules"], empty["joules_per_token"]) == (None, None, None)
    assert empty["energy"]["total"]["class"] == "unavailable"
    assert "gpu_energy_joules is 0 or missing" in empty["energy"]["total"]["reason"]


def test_codecarbon_figures_of_another_attempt(tmp_path, stages, run) -> None:
    """The last row of a project was stamped on every later record: the counter beside it, or its own length, gives it away."""
    old.write(stages / "kd_far", old.stage("kd_far", codecarbon_gpu_energy_kwh=0.01), settings=old.config("kd_far"))
    old.write(stages / "kd_row", old.stage("kd_row"), settings=old.config("kd_row"))
    old.emissions(
        tmp_path / "run" / "codecarbon" / "emissions.csv", old.row("kd_row", "r1", "2023-11-14T12:00:00", 77, 0.01, 0.05)
    )
    result = run()
    far, stamped = result.stage("kd_far"), result.stage("kd_row")
    assert (far["cpu_energy_joules"], far["codecarbon_energy_kwh"], far["energy"]["gpu"]["crosscheck"]) == (None, None, None)
    assert "CodeCarbon's GPU figure beside it is 36,000 J where the samples give 200,000 J" in far["energy"]["cpu"]["reason"]
    assert stamped["cpu_energy_joules"] is None
    assert "that of CodeCarbon's run r1, which took 77 s: another attempt" in stamped["energy"]["cpu"]["reason"]
    other = result.stage("kd_row-codecarbon")
    assert other["total_energy_kwh"] == pytest.approx(0.06)
    assert "1 row(s) of CodeCarbon of the same name, but of another time or length" in result.report


def test_rows_of_all_rotated_files_are_attempts(tmp_path, stages, run) -> None:
    """START is 22:13:20 UTC, 17:13:20 where the snapshots were taken. The stage ran 1,000 s, to 17:30:00.

    r1 is the stage's own (its end, its length), so its CPU is known after all: 0.02 kWh. r2 and r3 are of a project without a
    record: 0.1 + 0.5 and 0.2 + 1.0 kWh. r3 is in two files, and longer in one.
    """
    old.write(stages / "kd_x", old.snapshot(100), settings=old.config("kd_x"))
    folder = tmp_path / "run" / "codecarbon"
    old.emissions(folder / "emissions.csv", old.row("kd_x", "r1", "2023-11-14T17:30:02", 1001.0, 0.02, 0.0556))
    old.emissions(
        folder / "emissions.csv.bak", old.row("synthetic_y", "r2", "2023-11-14T12:00:00", 60, 0.1, 0.5, 2), header=old.HEADER_2
    )
    old.emissions(folder / "emissions.csv_0.bak", old.row("synthetic_y", "r3", "2023-11-14T13:00:00", 90, 0.1, 0.4))
    old.emissions(folder / "emissions.csv_1.bak", old.row("synthetic_y", "r3", "2023-11-14T13:01:00", 150, 0.2, 1.0))
    result = run()
    own, rows = result.stage(), result.stage("synthetic_y", "teacher_generation")
    assert own["cpu_energy_joules"] == pytest.approx(0.02 * 3.6e6)
    assert own["energy"]["gpu"]["crosscheck"] == pytest.approx(0.0556 * 3.6e6)
    assert own["total_energy_joules"] == pytest.approx(200_000 + 72_000)
    assert rows["total_energy_kwh"] == pytest.approx(0.1 + 0.5 + 0.2 + 1.0)
    assert rows["energy"]["gpu"]["class"] == "measured", "CodeCarbon reads the counter"
    assert rows["energy"]["total"]["class"] == "modelled"
    assert [a["duration_seconds"] for a in rows["attempts"]] == [pytest.approx(60), pytest.approx(150)]
    assert rows["start_time"] == pytest.approx(START - 5 * 3600 - 800 - 60 + 5 * 3600 - 12_000 - 6_000), (
        "12:00 local, minus 60 s"
    )
    assert (rows["status"], rows["useful_j"], rows["tokens_processed"]) == ("partial", None, None)
    assert result.counted("dropped") == 1


def test_times_without_zone_are_named(tmp_path, run) -> None:
    path = tmp_path / "run" / "codecarbon" / "emissions.csv"
    old.emissions(path, old.row("kd_y", "r", "2023-11-14T22:13:20", 100, 0.0, 0.5))
    result = run()
    assert "taken as UTC" in result.report
    assert result.stage("kd_y")["end_time"] == pytest.approx(START)
    assert result.stage("kd_y")["energy"]["cpu"]["joules"] is None, "0 is what a model says that saw nothing"
    result = run(str(tmp_path / "run"), "--utc-offset", "-5")
    assert "taken as UTC" not in result.report
    assert result.stage("kd_y")["end_time"] == pytest.approx(START + 5 * 3600)


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


def test_importing_again_writes_the_same(tmp_path, stages, run) -> None:
    folder = old.write(stages / "kd_x", old.stage(), settings=old.config("kd_x"))
    old.power_log(folder / "power_log.csv", [(START + i, 200.0) for i in range(1001)])
    run()
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert len(before) == 3
    assert run().code == 0
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


def test_guide_layout_of_one_run_folder(tmp_path, run) -> None:
    """stages/<stage>.json with the guide's names and one summary: an experiment of the run folder's summary."""
    teacher = old.stage("logit_caching", gpu=360_000.0)
    student = old.stage("student_train", start=START + 5000)
    old.write(tmp_path / "run" / "stages", teacher, student, host=None)
    (tmp_path / "run" / "experiment_summary.json").write_text(json.dumps(old.summary("kd_guide", teacher, student)))
    result = run()
    (summary,) = result.summaries.values()
    assert (summary["experiment_name"], summary["pipeline"]) == ("kd_guide", "kd")
    assert summary["roles"]["teacher"]["joules"] == pytest.approx(396_000)
    assert summary["total_energy_joules"] == pytest.approx(396_000 + 236_000)
    assert result.counted("missing") == 0


def test_second_stage_of_one_process_is_the_training(stages, run) -> None:
    """The first system called both by the experiment's name: sft_z generated, sft_z__2 trained."""
    first, second = old.stage("sft_z"), old.stage("sft_z__2", start=START + 2000)
    for record in (first, second):
        old.write(stages / record["stage_id"], record, settings=old.config("sft_z", "sft"))
    result = run()
    assert result.stage("sft_z", "teacher_generation")["start_time"] == START
    assert result.stage("sft_z", "student_train")["start_time"] == START + 2000


def test_same_experiment_in_two_folders_is_two_experiments(stages, run) -> None:
    old.write(stages / "kd_x", old.stage(), settings=old.config("kd_x"))
    old.write(stages / "kd_x_adamw", old.stage(start=START + 5000), settings=old.config("kd_x"))
    result = run()
    assert set(result.summaries) == {"kd_x", "kd_x_adamw"}
    assert "a second student_train of experiment kd_x: it becomes experiment kd_x_adamw" in result.report


def test_user_says_what_a_stage_is(tmp_path, stages, run, capsys) -> None:
    old.write(stages / "mystery", old.stage("mystery"))
    result = run(str(tmp_path / "run"), "--stage", "mystery=logit_caching")
    assert result.stage("mystery", "logit_caching")["role"] == "teacher"
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--out", "x", "--stage", "mystery=guess"])
    assert "expected NAME=STAGE with STAGE one of prerun, preprocess, logit_caching" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--out", "x", "--into", "mystery=../up"])
    result = run(str(tmp_path / "run"), "--stage", "mistery=logit_caching")
    assert "mistery: no stage or stage folder of this name was read (mystery)" in result.report


def test_what_is_not_kept_is_named(stages, run) -> None:
    """Without configuration and environment; 1,000 samples of the 2,000 that 1,000 s at 500 ms should have."""
    record = old.stage("train_me", gpu_power_samples=[200.0] * 1000)
    changed = old.summary("train_me", record | {"tokens_processed": 7})
    old.write(stages / "train_me", record, host=None, experiment_summary=changed)
    result = run()
    stage, warnings = result.stage("train_me"), " ".join(result.stage("train_me")["warnings"])
    assert result.summaries["train_me"]["pipeline"] == "unknown"
    assert (stage["carbon"]["grams"], stage["carbon"]["reason"]) == (None, "the run names no country")
    assert (stage["provenance"]["cpu"], stage["devices"], result.summaries["train_me"]["comparable"]) == (None, [], {})
    assert "no environment file" in warnings
    assert "no configuration file" in warnings
    assert "1,000 power samples of 2,000: 50.0% are missing" in warnings
    assert "stage train_me: tokens_processed = 7, its own file 50000, which is used" in result.report


def test_a_total_of_another_policy_is_named(stages, run) -> None:
    """total_energy_policy: codecarbon made 0.001 kWh of RAM part of the total; here it is not."""
    total = 236_000 + 3600
    record = old.stage(total_energy_joules=total, joules_per_token=total / 50_000)
    old.write(stages / "kd_x", record, settings=old.config("kd_x", energy={"total_energy_policy": "codecarbon"}))
    stage = run().stage()
    assert (stage["total_energy_joules"], stage["joules_per_token"]) == (pytest.approx(236_000), pytest.approx(4.72))
    assert "the record's own total is 239,600 J, here it is 236,000 J" in stage["warnings"]


def test_gpus_of_others(stages, run) -> None:
    """The node's eight GPUs were seen, the job had one."""
    folder = old.write(stages / "kd_x", old.stage(), settings=old.config("kd_x"), host=None)
    (folder / "environment_kd_x__kd_x.json").write_text(json.dumps(old.environment("node1", gpus=8)))
    assert "8 GPUs were seen and the job had 1: those of others may be in the energy" in run().stage()["warnings"]


def test_pipeline_and_settings_are_those_of_the_training(tmp_path, stages, run) -> None:
    """A cache in a folder that names no pipeline, given to kd_x, whose folder comes later."""
    old.write(stages / "a_cache", old.stage("a_cache"))
    old.write(stages / "kd_x", old.stage(start=START + 5000), settings=old.config("kd_x"))
    result = run(str(tmp_path / "run"), "--stage", "a_cache=logit_caching", "--into", "a_cache=kd_x")
    (summary,) = result.summaries.values()
    assert (summary["pipeline"], summary["comparable"]["optimizer"], list(summary["stages"])) == (
        "kd",
        "adamw",
        ["logit_caching", "student_train"],
    )
    assert {r["pipeline"] for r in summary["stages"].values()} == {"kd"}
    assert result.counted("missing") == 0
