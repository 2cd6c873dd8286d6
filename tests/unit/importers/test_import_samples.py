"""Import of the real run folders beside the repository, where they are there: the right answers of their README, by hand."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from pathlib import Path

import jsonschema
import pandas as pd
import pytest

from workflow_scripts.importers import import_runs
from workflow_scripts.stages import comparison

REPOSITORY = Path(__file__).parents[3]
SAMPLES = next((p for up in (1, 2) if (p := REPOSITORY.parents[up - 1] / "shared" / "samples").is_dir()), None)
pytestmark = pytest.mark.skipif(SAMPLES is None, reason="the samples ../shared/samples are not there")
PACKAGE = REPOSITORY / "workflow_scripts"
RUNS = {
    "kd_alpha08": "kd_olmo2_32b_to_1b_alpha08",
    "kd_adamw": "kd_olmo2_32b_to_1b",
    "sft": "sft_32b_to_1b_tulu_nosft",
    "synthetic": "sft_32b_to_1b_tulu_256",
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("imported")
    assert import_runs.main([str(SAMPLES / "run_a"), str(SAMPLES / "run_b"), "--out", str(out)]) == 0
    return out


def summary(imported: Path, run: str) -> dict:
    return json.loads((imported / RUNS[run] / "experiment_summary.json").read_text())


def record(run: str) -> dict:
    """The first system's own record of a stage of run_b."""
    folders = {
        "kd_adamw": "kd_olmo2_32b_to_1b_adamw",
        "sft": "sft_32b_to_1b_tulu",
        "synthetic": "synthetic_tulu_generation_256",
    }
    return json.loads((SAMPLES / "run_b" / "stages" / folders[run] / f"{RUNS[run]}.json").read_text())


def gpu_and_cpu(run: str) -> float:
    return (record(run)["gpu_energy_joules"] + record(run)["cpu_energy_joules"]) / 3.6e6


def test_everything_written_is_of_the_schemas(imported) -> None:
    record = json.loads((PACKAGE / "energy" / "record_schema.json").read_text())
    whole = json.loads((PACKAGE / "accounting" / "summary_schema.json").read_text())
    records, summaries = sorted(imported.glob("*/stages/*.json")), sorted(imported.glob("*/experiment_summary.json"))
    assert len(records) == len(summaries) == 11, "four stages with records, seven projects with rows of CodeCarbon only"
    for path in records:
        jsonschema.validate(json.loads(path.read_text()), record)
    for path in summaries:
        jsonschema.validate(json.loads(path.read_text()), whole)


def test_run_a_is_known_by_its_log_and_its_latest_snapshot(imported) -> None:
    """The trapezoid of the log is added up here once more, row by row, and cut at the end of step 10200."""
    folder = SAMPLES / "run_a" / "stages" / "kd_olmo2_32b_to_1b_alpha08"
    latest = json.loads((folder / "kd_olmo2_32b_to_1b_alpha08__step_10200.json").read_text())
    rows = [tuple(map(float, line.split(",")[::2])) for line in (folder / "power_log.csv").read_text().splitlines()[1:]]
    period = statistics.median(t1 - t0 for (t0, _), (t1, _) in itertools.pairwise(rows))
    joules = until = gaps = 0.0
    for (t0, w0), (t1, w1) in itertools.pairwise(rows):
        area = (w0 + w1) / 2 * (t1 - t0)
        joules += area
        gaps += area if t1 - t0 > 2 * period else 0.0
        until += area if t1 <= latest["end_time"] else 0.0
        if t0 <= latest["end_time"] < t1:
            until += w0 * (latest["end_time"] - t0)
    stage = summary(imported, "kd_alpha08")["stages"]["student_train"]
    assert joules / 3.6e6 == pytest.approx(1.040310, abs=5e-7)
    assert until == pytest.approx(latest["gpu_energy_joules"], rel=5e-6)
    assert stage["total_energy_kwh"] == pytest.approx(joules / 3.6e6, rel=1e-9)
    assert stage["tokens_processed"] == latest["tokens_processed"], "of step 10200, not of 9800"
    assert stage["joules_per_token"] == pytest.approx(until / latest["tokens_processed"], rel=1e-9)
    assert stage["attempts"][0]["sampling"]["j_in_gaps"] == pytest.approx(gaps)
    assert (stage["status"], stage["energy"]["total"]["class"], stage["energy"]["total"]["boundary"]) == (
        "partial",
        "integrated",
        ["gpu"],
    )
    assert "at every step (200, 9800, 10000, 10200)" in stage["energy"]["cpu"]["reason"]


def test_run_b(imported) -> None:
    kd, sft, synthetic = (summary(imported, run) for run in ("kd_adamw", "sft", "synthetic"))
    stage = kd["stages"]["student_train"]
    assert kd["total_energy_kwh"] == pytest.approx(0.180505, abs=5e-7)
    assert (stage["tokens_processed"], stage["tokens_unit"]) == (1_148_748, "loss")
    assert stage["joules_per_token"] == pytest.approx(0.565676, abs=5e-7)
    assert (stage["energy"]["cpu"]["class"], stage["energy"]["gpu"]["class"]) == ("modelled", "integrated")
    assert stage["energy"]["cpu"]["joules"] == pytest.approx(record("kd_adamw")["codecarbon_cpu_energy_kwh"] * 3.6e6)
    stage = sft["stages"]["student_train"]
    assert sft["total_energy_kwh"] == pytest.approx(0.153801, abs=5e-7)
    assert (stage["tokens_processed"], stage["joules_per_token"], stage["tokens_per_second"]) == (None, None, None)
    stage = synthetic["stages"]["teacher_generation"]
    assert synthetic["total_energy_kwh"] == pytest.approx(1.133047, abs=5e-7)
    assert (stage["tokens_processed"], stage["work"]["generated"], stage["role"]) == (None, None, "teacher")
    assert "409 per prompt of 3,500, at max_new_tokens = 256" in " ".join(stage["warnings"])


def test_rows_of_codecarbon_are_attempts_of_their_projects(imported) -> None:
    """cpu_energy + gpu_energy of every line of every rotated file, by project; none of them is an attempt that has a record."""
    sums: dict[str, float] = {}
    for path in (SAMPLES / "run_b" / "codecarbon").iterdir():
        header, *lines = (line.split(",") for line in path.read_text().splitlines())
        for line in lines:
            cells = dict(zip(header, line, strict=True))
            sums[cells["project_name"]] = (
                sums.get(cells["project_name"], 0.0) + float(cells["cpu_energy"]) + float(cells["gpu_energy"])
            )
    sums["kd_olmo2_32b_to_1b-codecarbon"] = sums.pop("kd_olmo2_32b_to_1b")
    found = {p.parent.name: json.loads(p.read_text()) for p in imported.glob("*/experiment_summary.json")}
    rows = {name: s for name, s in found.items() if name not in RUNS.values()}
    assert {name: s["total_energy_kwh"] for name, s in rows.items()} == pytest.approx(sums)
    (long,) = [
        a
        for a in rows["synthetic_codeforces_generation"]["stages"]["teacher_generation"]["attempts"]
        if a["duration_seconds"] > 100
    ]
    assert long["end_time"] == pytest.approx(pd.Timestamp("2026-01-20T23:04:06-05:00").timestamp()), (
        "local time of the other files"
    )


def test_imported_runs_are_compared_like_any_other(imported, tmp_path, capsys) -> None:
    """Three runs of run_b and one of run_a. No pipeline is whole, so there are energies and no totals, and that is said."""
    paths = [str(imported / name / "experiment_summary.json") for name in RUNS.values()]
    out = tmp_path / "comparison.json"
    assert comparison.main(["--summary", *paths, "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    rows = {row["experiment"]: row for row in result["experiments"]}
    kwh = {
        RUNS["kd_alpha08"]: (None, 1.0403097),
        RUNS["kd_adamw"]: (None, gpu_and_cpu("kd_adamw")),
        RUNS["sft"]: (None, gpu_and_cpu("sft")),
        RUNS["synthetic"]: (gpu_and_cpu("synthetic"), None),
    }
    for name, (teacher, student) in kwh.items():
        assert rows[name]["teacher_kwh"] == (pytest.approx(teacher, rel=1e-7) if teacher else None)
        assert rows[name]["student_kwh"] == (pytest.approx(student, rel=1e-7) if student else None)
        assert (rows[name]["total_kwh"], rows[name]["charged_kwh"]) == (None, None)
    assert result["campaign"]["kwh"] == pytest.approx(1.0403097 + 0.1805052 + 0.1538014 + 1.1330465, abs=1e-6)
    table = pd.read_csv(tmp_path / "stage_energy.csv").set_index("experiment")
    said = record("kd_adamw")
    half_width = math.hypot(0.1 * said["gpu_energy_joules"], 0.5 * said["cpu_energy_joules"])
    assert table.loc[RUNS["kd_adamw"], "uncertainty_j"] == pytest.approx(half_width, rel=1e-9)
    assert table.loc[RUNS["kd_alpha08"], "boundary"] == "gpu"
    assert list(table["energy_class"]) == ["integrated", "modelled", "modelled", "modelled"]
    warnings = "\n".join(result["warnings"])
    for text in (
        "kd_olmo2_32b_to_1b: stage logit_caching is missing, so it has no total",
        "sft_32b_to_1b_tulu_256: stage student_train is missing, so it has no total",
        "kd_olmo2_32b_to_1b_alpha08: stage student_train is partial: its energy is a lower bound",
        "boundary differs: kd_olmo2_32b_to_1b_alpha08: gpu; kd_olmo2_32b_to_1b: gpu+cpu",
        "energy class differs: kd_olmo2_32b_to_1b_alpha08: integrated; kd_olmo2_32b_to_1b: modelled",
        "optimizer differs: kd_olmo2_32b_to_1b_alpha08: adafactor; kd_olmo2_32b_to_1b: adamw",
        "effective batch differs: kd_olmo2_32b_to_1b_alpha08: 64; kd_olmo2_32b_to_1b: 32",
        "no Pareto front",
    ):
        assert text in warnings
    assert result["counts"]["left_out"] == 0


def test_a_teacher_from_another_folder_makes_a_total(tmp_path) -> None:
    """sft on the 256-token text: 1.133047 + 0.153801 kWh, and a tenth of the first where ten trainings use the text."""
    into = ["synthetic_tulu_generation_256=sft", "sft_32b_to_1b_tulu=sft", "kd_olmo2_32b_to_1b_adamw=kd"]
    options = [word for text in into for word in ("--into", text)]
    assert import_runs.main([str(SAMPLES / "run_b"), "--out", str(tmp_path), *options]) == 0
    paths = [str(tmp_path / name / "experiment_summary.json") for name in ("sft", "kd")]
    out = tmp_path / "comparison" / "comparison.json"
    assert comparison.main(["--summary", *paths, "--out", str(out)]) == 0
    rows = {row["experiment"]: row for row in json.loads(out.read_text())["experiments"]}
    assert rows["sft"]["total_kwh"] == pytest.approx(1.1330465 + 0.1538014, abs=1e-6)
    amortised = pd.read_csv(out.parent / "amortised.csv").set_index(["experiment", "reuses"])["amortised_kwh"]
    assert amortised["sft", 10] == pytest.approx(1.1330465 / 10 + 0.1538014, abs=1e-6)
