"""Which run a file, a log or a row is of: its stage id and start, over all folders; runs of one stage are its attempts."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest

from tests.unit.importers import first_system as old
from workflow_scripts.importers.first_system.identity import result_settings

START, KWH = old.START, old.KWH


def tree(folder) -> None:
    """A run folder: a training that left an earlier attempt in a row, a text known by its summary, rows without a record."""
    stages = folder / "stages"
    record = old.stage(start=START + 5000)
    old.write(stages / "kd_x", record, settings=old.config("kd_x"), experiment_summary=old.summary("kd_x", record))
    text = old.stage("sft_t", start=START + 9000, tokens_processed=0)
    old.write(stages / "synthetic_t", settings=old.config("sft_t", "sft"), experiment_summary=old.summary("sft_t", text))
    log = old.write(stages / "kd_log", old.snapshot(100, "kd_log", seconds=100.0, gpu=20_000.0), settings=old.config("kd_log"))
    old.power_log(log / "power_log.csv", [(START + i, 200.0) for i in range(301)])
    rows = [
        old.row("kd_x", "r1", "2023-11-14T17:20:00", 100, 0.02, 0.04),
        old.row("synthetic_u", "r2", "2023-11-15T00:00:00", 9, 0.1, 0.5),
    ]
    old.emissions(folder / "codecarbon" / "emissions.csv", *rows)


def kwh(result) -> float:
    return sum(r["total_energy_joules"] for s in result.summaries.values() for r in s["stages"].values()) / KWH


def test_copies_in_any_order_add_nothing(tmp_path, run) -> None:
    """0.0656 of the training and 0.06 of its row, 0.0656 of the text, 60 kJ of the log, 0.6 of the other row."""
    tree(tmp_path / "run_b")
    for name in ("copy", "a_third"):
        shutil.copytree(tmp_path / "run_b", tmp_path / name)
    shutil.move(tmp_path / "a_third" / "stages" / "kd_x", tmp_path / "a_third" / "stages" / "kd_renamed")
    alone = run(str(tmp_path / "run_b"))
    assert kwh(alone) == pytest.approx(2 * 236_000 / KWH + 0.06 + 60_000 / KWH + 0.6)
    for names in itertools.permutations(("run_b", "copy", "a_third")):
        result = run(*(str(tmp_path / name) for name in names))
        assert set(result.summaries) == set(alone.summaries)
        assert kwh(result) == pytest.approx(kwh(alone), rel=1e-12), names
        assert all(len(s["stages"]) == 1 for s in result.summaries.values())
    assert [a["start_time"] for a in result.stage()["attempts"]] == [pytest.approx(START + 300), START + 5000]


@pytest.mark.parametrize("ended", [True, False])
def test_attempts_in_two_folders(tmp_path, run, ended) -> None:
    """The first was lost or ended, the second ended: one stage, useful is what the last that ended used."""
    first = old.stage(gpu=20_000.0) if ended else old.snapshot(100, gpu=20_000.0)
    old.write(tmp_path / "a" / "stages" / "kd_x", first, settings=old.config("kd_x"), host="node1")
    old.write(tmp_path / "b" / "stages" / "kd_x", old.stage(start=START + 9000), settings=old.config("kd_x"), host="node2")
    result = run(str(tmp_path / "b"), str(tmp_path / "a"))
    (summary,) = result.summaries.values()
    stage = summary["stages"]["student_train"]
    cost = 56_000 if ended else 20_000
    assert (stage["useful_j"], stage["wasted_j"]) == (pytest.approx(236_000), pytest.approx(cost))
    assert stage["total_energy_joules"] == pytest.approx(236_000 + cost)
    assert [a["host"] for a in stage["attempts"]] == ["node1", "node2"]


def test_other_seeds_are_no_attempts(tmp_path, run) -> None:
    for seed in (1, 2):
        settings = old.config("kd_x", experiment={"seed": seed})
        old.write(tmp_path / f"seed{seed}" / "stages" / f"kd_{seed}", old.stage(start=START + 5000 * seed), settings=settings)
    result = run(str(tmp_path / "seed1"), str(tmp_path / "seed2"))
    assert [len(s["stages"]["student_train"]["attempts"]) for s in result.summaries.values()] == [1, 1]


def test_a_debug_run_is_no_attempt_at_the_whole_one() -> None:
    def of(**experiment: object) -> dict:
        return result_settings({"experiment": {"name": "kd", "debug_max_steps": 40} | experiment, "training": {"epochs": 1}})

    assert of(debug_mode=False) == of() == {"training": {"epochs": 1}} and of(debug_mode=True) != of()


def test_a_generation_and_a_training_of_one_id_are_two_stages(stages, run) -> None:
    for folder, start in (("synthetic_t", START), ("sft_t", START + 5000)):
        old.write(stages / folder, old.stage("sft_t", start=start), settings=old.config("sft_t", "sft"))
    result = run()
    (summary,) = result.summaries.values()
    assert set(summary["stages"]) == {"teacher_generation", "student_train"}


def test_the_latest_file_is_the_one_that_ends_last(stages, run) -> None:
    """A reconstruction says step 9,800 and ends 500 s after the file of step 22,200: its 250 kJ hold all."""
    late = old.snapshot(9_800, seconds=2500, gpu=250_000.0, tokens_processed=230_000)
    old.write(stages / "kd_x", old.snapshot(22_200, seconds=2000, gpu=200_000.0), late, settings=old.config("kd_x"))
    result = run()
    assert (result.stage()["total_energy_joules"], result.stage()["tokens_processed"]) == (250_000, 230_000)
    assert "step 9800 holds their energy" in result.report


def test_rows_of_other_attempts_are_attempts_of_the_stage(tmp_path, stages, run) -> None:
    """Before and after the run that ended: wasted, on the bill of the stage; what came before, on that of its tokens."""
    old.write(
        stages / "kd_x",
        old.stage(start=START),
        settings=old.config("kd_x"),
        experiment_summary=old.summary("kd_x", old.stage()),
    )
    rows = [old.row("kd_x", f"r{hour}", f"2023-11-14T{hour}:00:00", 60, 0.02, 0.04) for hour in (12, 20)]
    old.emissions(tmp_path / "run" / "codecarbon" / "emissions.csv", *rows)
    result = run()
    stage = result.stage()
    assert list(result.summaries) == ["kd_x"]
    assert [a["outcome"] for a in stage["attempts"]] == ["lost", "completed", "lost"]
    assert (stage["useful_j"], stage["wasted_j"]) == (pytest.approx(236_000), pytest.approx(0.12 * KWH))
    assert (stage["status"], stage["tokens_processed"]) == ("complete", 50_000)
    assert stage["joules_per_token"] == pytest.approx((236_000 + 0.06 * KWH) / 50_000)


def test_the_longer_row_of_a_run_counts_in_whatever_folder(tmp_path, run) -> None:
    for name, seconds, cpu in (("a", 60, 0.1), ("b", 90, 0.2), ("c", 30, 0.05)):
        old.emissions(tmp_path / name / "emissions.csv", old.row("synthetic_y", "r", "2023-11-14T12:00:00", seconds, cpu, 0.5))
    for names in itertools.permutations("abc"):
        result = run(*(str(tmp_path / name) for name in names))
        stage = result.stage("synthetic_y", "teacher_generation")
        assert (stage["cpu_energy_joules"], stage["duration_seconds"]) == (pytest.approx(0.2 * KWH), pytest.approx(90))


def test_a_row_of_the_time_of_a_record_counts_once(tmp_path, stages, run) -> None:
    """The run was cut after its last snapshot; CodeCarbon's row of 1,300 s holds the snapshot's 1,000 s."""
    old.write(stages / "kd_x", old.snapshot(100), settings=old.config("kd_x"))
    old.emissions(
        tmp_path / "run" / "codecarbon" / "emissions.csv", old.row("kd_x", "r", "2023-11-14T17:35:00", 1300, 0.01, 0.07)
    )
    result = run()
    assert len(result.stage()["attempts"]) == 1
    assert "row r of kd_x, 1,300 s, is of the time of an attempt that has a record" in result.report


@pytest.mark.parametrize(("gpus", "mode", "scope"), [(4, "machine", "host"), (8, "process", "job")])
def test_a_row_says_how_many_gpus_and_what_was_modelled(tmp_path, run, gpus, mode, scope) -> None:
    row = old.row("synthetic_y", "r", "2023-11-14T12:00:00", 60, 0.1, 0.5).replace("1,1 x NVIDIA", f"{gpus},{gpus} x NVIDIA")
    old.emissions(tmp_path / "run" / "emissions.csv", f"{row},{mode}", header=f"{old.HEADER_3},tracking_mode")
    stage = run().stage("synthetic_y", "teacher_generation")
    assert [d["name"] for d in stage["devices"]] == ["NVIDIA H100 80GB HBM3"] * gpus
    assert (stage["energy"]["cpu"]["scope"], stage["energy"]["dram"]["scope"]) == (scope, scope)
    assert any("whole host" in text for text in stage["warnings"]) == (scope == "host")


def test_other_hardware_inside_a_pipeline_and_a_stage(tmp_path, stages, run) -> None:
    """A cache on an A100, two attempts of the training on one and on two H100."""
    cache, cpu = (
        old.write(stages / "kd_logit", old.stage("kd_logit"), settings=old.config("kd_x"), host=None),
        old.environment("n0"),
    )
    cpu["gpus"][0]["name"] = "NVIDIA A100"
    (cache / "environment_kd_logit__kd_logit.json").write_text(json.dumps(cpu))
    for n, gpus in ((1, 1), (2, 2)):
        folder = old.write(
            stages / f"kd_x{n}", old.stage("kd_x", start=START + 5000 * n), settings=old.config("kd_x"), host=None
        )
        (folder / "environment_kd_x__kd_x.json").write_text(json.dumps(old.environment("n1", gpus)))
    (summary,) = run().summaries.values()
    training = summary["stages"]["student_train"]["warnings"]
    assert "attempts ran on different hardware: 1 x NVIDIA H100 80GB HBM3; 2 x NVIDIA H100 80GB HBM3" in training
    text = "GPUs differ between the stages: logit_caching: NVIDIA A100; student_train: NVIDIA H100 80GB HBM3"
    assert text in summary["warnings"]
