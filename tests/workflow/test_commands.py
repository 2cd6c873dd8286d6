"""Every command that the pages name: run here, or said why not and what runs it instead."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Workflow

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *(REPOSITORY / "docs").rglob("*.md"),
    *REPOSITORY.glob("*/README.md"),
]
FENCED = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:snakemake|make|python -m|wandb|pip|cp|jq|sbatch|source|git) [^`\n]+)`")
EXAMPLES = {
    "<targets>": "demo_kd",
    "<teacher stage>": "logit_caching",
    "<plan | forecast | bill | memory | compare | import | recover>": "plan --help",
    "EXPERIMENT... [--gpu-gb 24 48 80]": "kd_7b_to_1b --gpu-gb 24 48 80",
    "campaign.yaml": "config/campaigns/study.yaml",
    "overlay.yaml": "tiny.yaml",
}
MEASURES = "it measures for minutes to hours; benchmarks/README.md has its figures"
NOT_HERE = {
    "make demo": "tests/integration/test_tiny.py runs its DAG at test size",
    "make study": "tests/workflow/test_real_size.py plans it; docs/study.md has what it said",
    **dict.fromkeys(("make checks", "make docs", "make environment", "make test"), ".ci/run calls it"),
    **dict.fromkeys(
        ("python -m benchmarks.study results", "python -m benchmarks.study results --students"),
        "tests/unit/benchmarks/test_study.py computes its tables again",
    ),
    "make test-all": "it is all tests, this one among them",
    **dict.fromkeys(
        ("make faults", "python -m benchmarks.faults.campaign --slurm 0"),
        "tests/integration/test_faults.py runs some of its faults",
    ),
    "make reference": "tests/unit/settings/test_settings.py compares what it writes",
    "pip install -r envs/requirements-lm-eval.txt": ".ci/run calls it",
    "source .venv/bin/activate": "these tests run in that environment",
    "python -m workflow_scripts import OLD_RUN_FOLDER... --out imported": "tests/unit/importers/test_import_runs.py has them",
    "python -m workflow_scripts compare --summary imported/*/experiment_summary.json --out imported/comparison.json": (
        "tests/unit/importers/test_import_comparison.py"
    ),
    "python -m workflow_scripts memory": "a page names the command without its experiments",
    "wandb login": "it needs an account",
    "wandb sync results/*/wandb/offline-run-*": "it needs an account; tests/integration/test_tracking.py has a stand-in",
    "sbatch --test-only": "tests/slurm/test_slurm.py has a Slurm",
    "git tag v<version>": "a release is made by hand",
    "jq '.stages.student_train' results/demo_kd/experiment_summary.json": "tests/integration/test_tiny.py reads that record",
    **{f"python -m benchmarks.{name}": MEASURES for name in ("coverage --write", "meter_cost", "preprocess", "vllm_peer")},
    "python -m benchmarks.speed --results DIR": MEASURES,
}


def named() -> list[str]:
    """Commands of all pages, without what follows them as a comment."""
    found = set()
    for page in PAGES:
        text = page.read_text()
        lines = (line.partition(" #")[0].strip() for block in FENCED.findall(text) for line in block.splitlines())
        found |= {line for line in lines if line} | set(INLINE.findall(FENCED.sub("", text)))
    return sorted(found)


def test_what_is_not_run_here_is_named_by_a_page_and_run_by_what_exists() -> None:
    assert set(NOT_HERE) - set(named()) <= {"make study"}
    files = re.findall(r"(?:tests|benchmarks|docs)/[\w/]+\.(?:py|md)", " ".join(NOT_HERE.values()))
    assert [file for file in files if not (REPOSITORY / file).exists()] == []


@pytest.mark.parametrize("command", [command for command in named() if command not in NOT_HERE])
def test_a_command_of_the_pages_works(finished: Workflow, command: str) -> None:
    """Snakemake only plans. Without the tiny overlay the results are stale, so that it has something to plan."""
    for placeholder, example in EXAMPLES.items():
        command = command.replace(placeholder, example)
    if command.startswith("snakemake ") and not re.search(r" -n\b| --unlock", command):
        command = command.replace("snakemake", "snakemake -n", 1)
    if "profiles/mysite" in command and not command.startswith("cp "):
        command = f"cp -r profiles/slurm profiles/mysite && {command}"
    command = re.sub("^make ", f"make -o {sys.prefix}/.made-from-lock VENV={sys.prefix} ", command)
    (finished.folder / "Makefile").symlink_to(REPOSITORY / "Makefile")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=finished.folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
    assert result.stdout.strip() or command.startswith("cp ") or "--unlock" in command
