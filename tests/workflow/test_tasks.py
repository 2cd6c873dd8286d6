"""Tasks that cannot be run stop a run before its first job."""

from __future__ import annotations

import importlib.util

import pytest

from tests.conftest import Workflow
from tests.workflow.test_stale import edit, set_key


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_a_missing_package_is_named_before_the_first_job(finished: Workflow) -> None:
    edit(finished, "config/base.yaml", set_key("evaluation", {"lm_eval_tasks": ["gsm8k"]}))
    before = {path: path.stat().st_mtime_ns for path in finished.folder.glob("results/**/*.json")}
    done = finished.snakemake("--cores", "2", "demo_kd", check=False)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "evaluation.lm_eval_tasks = [gsm8k], but the package lm-eval is not installed here" in said
    assert "pip install -r envs/requirements-lm-eval.txt" in said and "Traceback" not in said
    assert {path: path.stat().st_mtime_ns for path in finished.folder.glob("results/**/*.json")} == before
