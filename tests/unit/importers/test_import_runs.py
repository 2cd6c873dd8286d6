"""Import of run folders of the first system: figures worked out by hand from what the tests write."""

from __future__ import annotations

import json

import pytest

from tests.unit.importers import first_system as old
from workflow_scripts.energy.model import Device
from workflow_scripts.errors import UserError
from workflow_scripts.importers.import_runs import main

START = old.START


def test_whole_stage(stages, run) -> None:
    """200,000 J by samples + 0.01 kWh = 36,000 J by CodeCarbon: 236,000 J, 4.72 J per token; RAM stays out."""
    record = old.stage()
    old.write(stages / "kd_x", record, settings=old.config("kd_x"), experiment_summary=old.summary("kd_x", record))
    result = run()
    stage, summary = result.stage(), result.summaries["kd_x"]
    assert (result.code, result.counted("set to null"), result.counted("refused")) == (0, 0, 0)
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
    words = Device.model_validate(stage["devices"][0]).words
    assert words == "NVIDIA H100 80GB HBM3 (limit 700 W, driver 570.1)", "what makes hardware comparable"
    assert summary["comparable"]["effective batch"] == 32
    teacher, student = summary["roles"]["teacher"], summary["roles"]["student"]
    assert (teacher["joules"], teacher["stages"], teacher["class"]) == (None, 0, None)
    assert (student["joules"], student["class"], student["boundary"]) == (pytest.approx(236_000), "modelled", ["gpu+cpu"])
    assert "stage logit_caching is missing" in result.report


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
    assert "the run of kd_x from 1700000000 on is in" in result.report


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


def test_importing_again_writes_the_same(tmp_path, stages, run) -> None:
    folder = old.write(stages / "kd_x", old.stage(), settings=old.config("kd_x"))
    old.power_log(folder / "power_log.csv", [(START + i, 200.0) for i in range(1001)])
    run()
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert len(before) == 4
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


def test_other_settings_in_another_folder_are_another_experiment(stages, run) -> None:
    old.write(stages / "kd_x", old.stage(), settings=old.config("kd_x", training={"optimizer": "adafactor"}))
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
    assert "expected NAME=STAGE with STAGE one of prerun, prepare_model, preprocess" in capsys.readouterr().err
    for name in ("../up", "..", ".", "-x", ""):
        with pytest.raises(SystemExit):
            main([str(tmp_path), "--out", "x", "--into", f"mystery={name}"])
    for option in ("--stage=mistery=logit_caching", "--into=mistery=kd_y"):
        with pytest.raises(UserError, match="mistery: no stage or stage folder of this name was read, there are mystery"):
            run(str(tmp_path / "run"), option)


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
    assert f"stage train_me: tokens_processed = 7, {stages / 'train_me' / 'train_me.json'} says 50000" in result.report


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
