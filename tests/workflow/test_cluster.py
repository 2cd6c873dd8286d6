"""What the jobs of a cluster ask for, seen by an sbatch that keeps its arguments and refuses them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.conftest import Workflow, copy_workflow

REFUSAL = '#!/bin/sh\necho "$@" >>{folder}/asked\necho "Requested node configuration is not available" >&2\nexit 1\n'


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What sbatch was asked for, one line per call."""
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(REFUSAL.format(folder=tmp_path))
    scontrol = program.with_name("scontrol")  # not the host's own
    scontrol.write_text("#!/bin/sh\n")
    for each in (program, scontrol):
        each.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path / "asked"


@pytest.fixture
def workflow(tmp_path: Path, downloads: Path) -> Workflow:
    return copy_workflow(tmp_path / "workflow", downloads)


def test_a_shell_with_one_cpu_submits_jobs_of_as_many_as_any_other(workflow: Workflow, asked: Path) -> None:
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        workflow.snakemake("--executor", "slurm", "--slurm-status-command", "squeue", "demo_kd", check=False)
    finally:
        os.sched_setaffinity(0, mine)
    assert "--cpus-per-task=16" in asked.read_text().split()


def test_memory_and_hours_grow_with_the_attempt_up_to_the_sites_limits(workflow: Workflow, asked: Path) -> None:
    """The last of five attempts is asked for: thrice the memory; five times the hours would be more than `max_hours`."""
    profile = workflow.folder / "profiles" / "slurm" / "config.yaml"
    text = profile.read_text().replace("accounting: true", "accounting: false").replace("max_mem_gb: 128", "max_mem_gb: 150")
    profile.write_text(re.sub(r"(teacher: .*mem_gb: )64, hours: 8", r"\g<1>40, hours: 6", text))
    workflow.snakemake("--workflow-profile", "profiles/slurm", "logit_caching", check=False)
    assert {"--mem=120000", "--time=1440"} <= set(asked.read_text().split())
