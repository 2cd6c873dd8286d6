"""Imported runs in the comparison: shares, break-even and refusals worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers import summaries
from tests.unit.importers import first_system as old
from workflow_scripts.importers import import_runs
from workflow_scripts.stages import comparison

KWH = 3.6e6


def compare(folder: Path, paths: list[str], baseline: str) -> dict:
    out = folder / "comparison" / "comparison.json"
    assert comparison.main(["--summary", *paths, "--baseline", baseline, "--out", str(out)]) == 0
    return json.loads(out.read_text())


@pytest.fixture
def imported(tmp_path) -> Path:
    """A text of 700 kJ that two trainings of 300 and 500 kJ used, and one of 900 kJ on gold data; 36 kJ of CPU in each."""
    stages = tmp_path / "run" / "stages"
    teacher = old.stage("sft_text", gpu=700_000.0, tokens_processed=20_000)
    old.write(stages / "synthetic_text", teacher, settings=old.config("sft_text", "sft"), host="t")
    for name, pipeline, joules in (("sft_a", "sft", 300_000.0), ("sft_b", "sft", 500_000.0), ("gold", "baseline", 900_000.0)):
        record = old.stage(name, start=old.START + 5000 + joules, gpu=joules)
        old.write(stages / name, record, settings=old.config(name, pipeline, data={"path": name}), host="s")
    options = ["--into", "synthetic_text=sft_a", "--into", "synthetic_text=sft_b"]
    assert import_runs.main([str(tmp_path / "run"), "--out", str(tmp_path / "out"), *options]) == 0
    return tmp_path / "out"


def test_shared_teacher_and_break_even(imported, tmp_path) -> None:
    """Teacher 736 kJ once; students 336, 536, gold 936 kJ. N*: 736 / (936 - 336) = 1.2267 and 736 / (936 - 536) = 1.84."""
    paths = [str(imported / name / "experiment_summary.json") for name in ("sft_a", "sft_b", "gold")]
    result = compare(tmp_path, paths, "gold")
    rows = {row["experiment"]: row for row in result["experiments"]}
    assert rows["sft_a"]["total_kwh"] == pytest.approx((736_000 + 336_000) / KWH)
    assert rows["sft_b"]["total_kwh"] == pytest.approx((736_000 + 536_000) / KWH)
    assert rows["sft_a"]["teacher_users"] == 2
    assert rows["sft_a"]["charged_kwh"] == pytest.approx((736_000 / 2 + 336_000) / KWH)
    assert result["campaign_kwh"] == pytest.approx((736_000 + 336_000 + 536_000 + 936_000) / KWH)
    found = {row["experiment"]: row["equal_tokens"] for row in result["answers"]}
    assert found == pytest.approx({"sft_a": 736 / 600, "sft_b": 736 / 400})
    amortised = pd.read_csv(tmp_path / "comparison" / "amortised.csv").set_index(["experiment", "reuses"])
    assert amortised.loc[("sft_b", 5), "amortised_kwh"] == pytest.approx((736_000 / 5 + 536_000) / KWH)
    assert rows["gold"]["joules_per_token"] == pytest.approx(936_000 / 50_000)
    text = json.loads(Path(paths[0]).read_text())
    assert text["reuse"]["teacher_generation"] == {"experiments": 2, "names": ["sft_a", "sft_b"]}
    assert not [w for w in result["warnings"] if w.startswith(("boundary", "energy class", "optimizer", "hardware", "seed"))]
    assert any("no power over time of 4 attempt(s)" in w for w in result["warnings"])


def test_seeds_of_one_run_are_one_group(tmp_path) -> None:
    """Equal settings but for the seed: 936 and 1,036 kJ are mean 986 kJ and sample deviation 70.7 kJ."""
    for seed, joules in ((1, 900_000.0), (2, 1_000_000.0)):
        record = old.stage(f"gold_seed{seed}", start=old.START + seed * 5000, gpu=joules)
        settings = old.config(f"gold_seed{seed}", "baseline", experiment={"seed": seed})
        old.write(tmp_path / "run" / "stages" / record["stage_id"], record, settings=settings)
    assert import_runs.main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    result = compare(tmp_path, [str(p) for p in sorted((tmp_path / "out").glob("*/experiment_summary.json"))], "gold")
    (group,) = result["groups"]
    assert (group["group"], group["runs"]) == ("gold", 2)
    assert group["student_kwh_mean"] == pytest.approx(986_000 / KWH)
    assert group["student_kwh_sd"] == pytest.approx(70_710.678 / KWH)


def test_an_imported_and_a_metered_run_are_not_subtracted(imported, tmp_path) -> None:
    """Boundary gpu+cpu against cpu: a warning, and no break-even."""
    (gold,) = summaries.write(tmp_path / "ours", summaries.baseline("ours", 900_000.0))
    result = compare(tmp_path, [str(imported / "sft_a" / "experiment_summary.json"), gold], "ours")
    (row,) = result["answers"]
    assert (row["kind"], row["reuses"]) == ("not comparable", None)
    assert (
        row["refusals"][0] | {"what": "boundary", "value": "boundaries differ (cpu: ours; gpu+cpu: sft_a)"} in row["refusals"]
    )
    assert "boundary differs: sft_a: gpu+cpu; ours: cpu" in result["warnings"]


def test_power_over_time_is_drawn_from_the_power_log(tmp_path) -> None:
    """The trace that the import writes ends at the energy of its attempt."""
    record = old.snapshot(100, seconds=100, gpu=20_000.0)
    folder = old.write(tmp_path / "run" / "stages" / "kd_x", record, settings=old.config("kd_x"))
    old.power_log(folder / "power_log.csv", [(old.START + i / 2, 200.0) for i in range(201)])
    assert import_runs.main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    path = tmp_path / "out" / "kd_x" / "experiment_summary.json"
    attempt = json.loads(path.read_text())["stages"]["student_train"]["attempts"][0]
    trace = pd.read_csv(tmp_path / "out" / attempt["trace"])
    assert (len(trace), trace["gpu_j"].iloc[-1], trace["elapsed_s"].iloc[-1]) == (
        201,
        pytest.approx(20_000),
        pytest.approx(100),
    )
    result = compare(tmp_path, [str(path)], "kd_x")
    assert not [w for w in result["warnings"] if "no power over time" in w]
    assert "no loss over joules of 1 training(s): kd_x (imported: no loss was kept with the energy)" in result["warnings"]
