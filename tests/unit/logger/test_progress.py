"""What the demo prints of Snakemake: a bar over the jobs, the time left, a failure with its log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

SNAKEFILE = """
rule all:
    input: "three.txt", "last.txt"
rule quick:
    output: "{name}.txt"
    log: "{name}.log"
    shell: "echo words >{log}; test {output} != %s.txt; touch {output}"
use rule quick as after with:
    input: "one.txt", "two.txt"
    output: "three.txt"
    log: "three.log"
ruleorder: after > quick
"""


def run(folder: Path, snakefile: str) -> subprocess.CompletedProcess[str]:
    (folder / "Snakefile").write_text(snakefile)
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "workflow_scripts" / "logger")])
    command = [sys.executable, "-m", "snakemake", "--logger", "progress", "--cores", "1", "--scheduler", "greedy"]
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


def test_a_run_prints_a_bar_per_job_and_nothing_else(tmp_path: Path) -> None:
    done = run(tmp_path, SNAKEFILE % "none")
    lines = done.stderr.splitlines()
    assert done.returncode == 0 and len(lines) == 5
    assert lines[0].startswith("[####....................] 1 of 5 jobs, ") and "left" not in lines[1]
    assert "about " in lines[3] and lines[4].startswith(f"[{'#' * 24}] 5 of 5 jobs") and "left" not in lines[4]
    assert run(tmp_path, SNAKEFILE % "none").stderr.startswith("Nothing to be done")


def test_a_failed_job_is_named_with_its_log_and_the_remedy(tmp_path: Path) -> None:
    failed = run(tmp_path, SNAKEFILE % "two")
    assert failed.returncode == 1
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("FAILED")]
    assert line.startswith("FAILED: quick: see two.log. What is finished is kept")
    assert "CalledProcessError" not in failed.stderr


def test_a_fault_of_the_workflow_itself_is_said(tmp_path: Path) -> None:
    found = run(tmp_path, "rule all:\n    input: 'nowhere.txt'\n")
    assert found.returncode == 1 and "Missing input files for rule all" in found.stderr and "nowhere.txt" in found.stderr
