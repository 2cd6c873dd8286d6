"""A prerun that no longer holds is made again before the next stage, and makes nothing stale."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.conftest import Workflow
from tests.workflow.test_stale import TRAINING_KD, edit, plan, set_key


@pytest.mark.parametrize("prerun_is", ["of other settings", "old", "edited"])
def test_a_changed_prerun_hides_nothing(finished: Workflow, prerun_is: str) -> None:
    """Snakemake looks at nothing below a stale job whose link is `ancient`; what is finished stays fresh."""
    expected: dict[str, str] = {}
    if prerun_is == "of other settings":
        edit(finished, "config/base.yaml", set_key("hardware.min_free_memory_gb", 0.5))
        expected = {"prerun": "hardware.min_free_memory_gb=0.5"}
    elif prerun_is == "old":
        age_the_baseline(finished)
        expected = {"prerun": "idle baseline=40 days old"}
    else:
        source = finished.folder / "workflow_scripts" / "stages" / "prerun.py"
        source.write_text(source.read_text() + "\nCHANGED = True\n")
    assert plan(finished) == {}
    edit(finished, "config/experiments/demo_kd.yaml", set_key("training.learning_rate", 1.0e-4))
    stale = plan(finished)
    assert set(stale) == TRAINING_KD | set(expected)
    assert all(reason in finished.snakemake("-n").stdout for reason in expected.values())
    (finished.folder / "config" / "experiments" / "kd_new.yaml").write_text("pipeline: kd\ntraining:\n  token_budget: 50\n")
    assert "student_train kd_new" in plan(finished, "kd_new")


def age_the_baseline(workflow: Workflow) -> Path:
    """Let the idle baseline of the prerun be 40 days old."""
    path = workflow.folder / "results" / "prerun" / "local" / "validation.json"
    content = json.loads(path.read_text())
    content["idle"]["time"] = time.time() - 40 * 86400
    path.write_text(json.dumps(content))
    return path


def test_an_old_idle_baseline_is_renewed_before_the_next_stage(finished: Workflow) -> None:
    path = age_the_baseline(finished)
    (record,) = (finished.folder / "results" / "models").glob("*/checks/*.record.json")
    check = record.with_name(record.name.replace(".record", ""))
    check.unlink()
    asked = str(check.relative_to(finished.folder))
    output = finished.snakemake("--cores", "2", asked)
    assert [line for line in (output.stdout + output.stderr).splitlines() if "prerun: completed" in line]
    assert json.loads(path.read_text())["idle"]["time"] > time.time() - 600
    assert check.exists()
    assert plan(finished) == {}
