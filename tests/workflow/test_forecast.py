"""The forecast on a finished run: its jobs are those of `snakemake -n`, and writing it makes nothing stale."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

from tests.conftest import Workflow


def forecast(workflow: Workflow, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workflow_scripts.estimate.forecast", *arguments, "--configfile", str(workflow.overlay)]
    return subprocess.run(command, cwd=workflow.folder, capture_output=True, text=True, check=False, env=dict(os.environ))


def rules(workflow: Workflow, *arguments: str) -> dict[str, int]:
    """Planned jobs by rule, from the table of `snakemake -n`, without the targets that only collect."""
    output = workflow.snakemake("-n", *arguments).stdout
    table = re.search(r"^Job stats:\n.*?\n-.*?\n(.*?)\n\n", output, re.MULTILINE | re.DOTALL)
    counts = {} if table is None else {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)", table[1], re.MULTILINE)}
    return {name: n for name, n in counts.items() if name not in ("total", "all", "demo_kd")}


def test_a_fresh_run_has_nothing_to_forecast(finished: Workflow) -> None:
    result = forecast(finished)
    assert result.returncode == 0, result.stderr
    assert "Nothing to forecast" in result.stdout
    assert not (finished.folder / "results" / "forecast.json").exists()


def test_a_deleted_training_is_forecast_and_set_against_its_outcome(finished: Workflow) -> None:
    """The record is put back for the job: what the training would have cost is what it has cost."""
    folder = finished.folder / "results" / "demo_kd"
    actual = json.loads((folder / "stages" / "student_train.json").read_text())
    state = finished.folder / "results" / "state" / "student_train" / actual["provenance"]["fingerprint"]
    aside = finished.folder / "aside"
    own = folder / "stages" / "student_train.json"
    shutil.move(state, aside / "state")  # so that the forecast rests on the other experiments' trainings alone
    shutil.move(own, aside / "record.json")
    shutil.move(folder / "final_model", aside / "final_model")
    result = forecast(finished, "demo_kd")
    assert result.returncode == 0, result.stderr
    found = finished.json("results/forecast.json")
    planned: dict[str, int] = {}
    for row in found["rows"]:
        for rule, count in row["jobs"].items():
            planned[rule] = planned.get(rule, 0) + count
    assert planned == rules(finished, "demo_kd")
    row = next(row for row in found["rows"] if row["stage"] == "student_train")
    assert row["basis"] == "history n=2"
    kwh = actual["total_energy_kwh"]
    assert kwh / 3 < row["kwh"]["predicted"] < kwh * 3, "two trainings of other experiments tell the third's cost"

    shutil.move(aside / "final_model", folder / "final_model")
    shutil.move(aside / "state", state)
    shutil.move(aside / "record.json", own)
    assert rules(finished, "demo_kd") == {}, "a forecast file makes nothing stale"
    for entry in found["rows"]:
        entry["made_at"] = 0.0  # as if it had been made before the run
    (finished.folder / "results" / "forecast.json").write_text(json.dumps(found))
    summaries = []
    for _ in range(2):
        finished.snakemake("--cores", "1", "results/demo_kd/experiment_summary.json", "--forcerun", "experiment_summary")
        summaries.append((folder / "experiment_summary.json").read_bytes())
    assert summaries[0] == summaries[1]
    outcome = json.loads(summaries[0])["forecast"]
    assert outcome["stages"]["student_train"] == {
        "predicted": row["kwh"]["predicted"],
        "low": row["kwh"]["low"],
        "high": row["kwh"]["high"],
        "actual": kwh,
        "inside": row["kwh"]["low"] <= kwh <= row["kwh"]["high"],
    }
    assert set(outcome["stages"]) == {"student_train", "evaluation"}


def test_an_unplannable_target_is_snakemakes_own_error(finished: Workflow) -> None:
    result = forecast(finished, "nonsense")
    assert result.returncode == 1
    assert "nonsense" in result.stderr
    assert "error: snakemake -n failed, see above" in result.stderr
