"""A package that the lock does not install is missed before the first job, not after the teacher's work."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.conftest import copy_workflow


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed here")
def test_a_missing_optimizer_stops_before_the_first_job(tmp_path: Path) -> None:
    workflow = copy_workflow(tmp_path / "workflow", tmp_path / "downloads")
    (workflow.folder / "own.yaml").write_text("training:\n  optimizer: adamw_8bit\n")
    result = workflow.snakemake("demo_kd", "--cores", "1", check=False, overlay="own.yaml")
    assert result.returncode == 1
    assert "training.optimizer = 'adamw_8bit' needs the package bitsandbytes" in result.stderr
    assert not list(workflow.folder.glob("results/*/stages")), "nothing was started"
    prepared = workflow.snakemake("results/models/smollm2-64m-pruned/model/manifest.json", "-n", overlay="own.yaml")
    assert "bitsandbytes" not in prepared.stderr
