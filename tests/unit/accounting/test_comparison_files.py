"""The command of the comparison: what it reads, refuses and writes."""

from __future__ import annotations

import json

import pandas as pd

from tests.helpers.summaries import baseline, kd, served, write
from tests.unit.accounting.test_comparison import seeds
from workflow_scripts.accounting.load import load
from workflow_scripts.stages.comparison import main

FIGURES = ("energy_by_stage", "energy_quality", "quality_by_row", "cost_by_reuse", "power", "loss_by_joules")
TABLES = ("comparison", "stage_energy", "amortised", "runs", "break_even", "repayment", "energy_to_quality", "qualities")


def run(folder, paths: list[str], *options: str) -> tuple[int, dict]:
    out = folder / "out" / "comparison.json"
    code = main(["--summary", *paths, "--baseline", "gold", "--out", str(out), *options])
    return code, json.loads(out.read_text()) if out.is_file() else {}


def test_bad_input_is_named_and_the_rest_goes_on(tmp_path, capsys) -> None:
    headless = kd("headless", 600, 700)
    del headless["stages"]["logit_caching"]
    partial = kd("partial", 600, 700, cache="p")
    partial["stages"]["student_train"]["status"] = "partial"
    broken = kd("broken", 600, 700, cache="b")
    broken["stages"]["student_train"]["total_energy_joules"] = -1.0
    paths = write(
        tmp_path, baseline(), kd("kd", 600, 700), headless, partial, broken, {"experiment_name": "alien", "schema": "x/1"}
    )
    cut = tmp_path / "cut.json"
    cut.write_text(json.dumps(baseline())[:200])
    code, comparison = run(tmp_path, [*paths, paths[0], str(cut), str(tmp_path / "nowhere.json")])
    assert code == 0
    assert (comparison["counts"]["read"], comparison["counts"]["left_out"]) == (5, 3)
    assert comparison["counts"]["warnings"] == len(comparison["warnings"])
    said = "\n".join(comparison["warnings"])
    for text in (
        "headless: stage logit_caching is missing, so it has no total",
        "partial: stage student_train is partial: its energy is a lower bound",
        "broken: stage student_train: total_energy_joules = -1.0 is no energy",
        "schema 'x/1', this program reads experiment-summary/1",
        f"{cut} is not whole JSON",
        "nowhere.json does not exist",
        f"{paths[0]} was named twice: it counts once",
    ):
        assert text in said
    said = {row["experiment"]: row for row in comparison["answers"]}
    assert (said["kd"]["kind"], said["kd"]["cause"]) == ("undetermined", "no curve")
    assert {name: said[name]["refusals"][0]["what"] for name in ("partial", "broken")} == dict.fromkeys(
        ("partial", "broken"), "energy"
    )
    totals = {row["experiment"]: row["total_kwh"] for row in comparison["experiments"]}
    assert totals["headless"] is None and totals["broken"] is None and totals["partial"] is not None
    assert "warning: headless" in capsys.readouterr().err


def test_nothing_readable_is_an_error(tmp_path, capsys) -> None:
    (tmp_path / "a.json").write_text("[1, 2")
    code, comparison = run(tmp_path, [str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert (code, comparison) == (1, {})
    assert "error: none of the 2 summaries can be read" in capsys.readouterr().err


def test_two_experiments_of_one_name_are_told_apart(tmp_path) -> None:
    write(tmp_path / "one", baseline())
    write(tmp_path / "two", baseline(student=2000.0))
    loaded = load([tmp_path / folder / "gold" / "experiment_summary.json" for folder in ("one", "two")])
    assert [s.experiment_name for s in loaded.summaries] == ["gold", "gold#2"]
    assert "is called gold#2 here" in loaded.warnings[0]


def test_tables_are_tidy_and_the_same_twice(tmp_path) -> None:
    deployment = {"teacher": served(12.0), "model": served(2.0)}
    paths = write(tmp_path, baseline(), *[s | {"deployment": deployment} for s in seeds(690.0, 710.0)])
    assert run(tmp_path, paths)[0] == 0
    folder = tmp_path / "out"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {f"{name}.svg" for name in FIGURES} | {f"{name}.csv" for name in TABLES} <= set(before)
    assert run(tmp_path, paths)[0] == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not list(folder.glob("*.parquet"))
    sizes = {name: pd.read_csv(folder / f"{name}.csv").shape[0] for name in TABLES}
    assert sizes["comparison"] == 3 and sizes["stage_energy"] == 1 + 2 + 2 and sizes["runs"] == 2
    frame = pd.read_csv(folder / "stage_energy.csv")
    assert frame.groupby("experiment")["joules"].sum().to_dict() == {"gold": 1000, "kd_seed1": 1290, "kd_seed2": 1310}
    assert not frame.duplicated(["experiment", "stage"]).any()
    assert not pd.read_csv(folder / "amortised.csv").duplicated(["experiment", "reuses"]).any()


def test_a_single_experiment_without_baseline_has_all_files(tmp_path) -> None:
    out = tmp_path / "out" / "comparison.json"
    assert main(["--summary", *write(tmp_path, baseline()), "--out", str(out)]) == 0
    for name in TABLES:
        assert list(pd.read_csv(out.with_name(f"{name}.csv")).columns), name
    assert json.loads(out.read_text())["answers"] == []


def test_a_summary_without_lineage_and_quality_is_compared(tmp_path) -> None:
    bare = kd("bare", 600, 700)
    for key in ("lineage", "quality", "references", "comparable", "deployment"):
        del bare[key]
    code, comparison = run(tmp_path, write(tmp_path, baseline(), bare))
    assert code == 0 and comparison["counts"]["read"] == 2
    assert [refusal["what"] for refusal in comparison["answers"][0]["refusals"]] == ["evaluation split"]


def test_a_missing_stage_is_named_at_its_bar(tmp_path) -> None:
    """By the stage's name, whatever its problem's sentence says."""
    headless = kd("headless", 600, 700)
    del headless["stages"]["logit_caching"]
    broken = kd("broken", 600, 700)
    broken["stages"]["student_train"]["total_energy_joules"] = -1.0
    assert run(tmp_path, write(tmp_path, baseline(), headless, broken))[0] == 0
    text = (tmp_path / "out" / "energy_by_stage.svg").read_text()
    assert "<!-- no figure: logit_caching -->" in text and "<!-- no figure: student_train -->" in text
