"""The site block of profiles/slurm, filled in for the test cluster."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.conftest import Workflow

QUICK_PROGRAM = (str(Path(__file__).with_name("quick.py")),)
QUICK = ("--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "20")


def families(cpus: int = 2) -> str:
    """The families of stages: teacher, student and evaluation on a fake GPU, the rest on CPUs."""
    on_gpu = f"{{ partition: gpu, gpus: 1, gpu_model: l40s, cpus: {cpus}, mem_gb: 1.5, hours: 0.5 }}"
    on_cpu = f"{{ partition: cpu, gpus: 0, gpu_model: null, cpus: {cpus}, mem_gb: 1.5, hours: 0.5 }}"
    lines = [f"    {name}: {on_gpu}\n" for name in ("teacher", "student", "evaluation")]
    lines += [
        f"    data: {on_cpu}\n",
        "    accounting: { partition: null, gpus: 0, gpu_model: null, cpus: 1, mem_gb: 0.5, hours: 0.2 }\n",
    ]
    return "".join(lines)


def settle(folder: Path, block: str | None = None, account: str = "null", accounting: str = "false") -> None:
    """Edit the profile in a copy of the workflow, as the README says."""
    path = folder / "profiles" / "slurm" / "config.yaml"
    text = path.read_text()
    text = re.sub(r"account: \S+ #", f"account: {account} #", text, count=1)
    text = re.sub(r"accounting: \w+ #", f"accounting: {accounting} #", text, count=1)
    text = re.sub(r"(  families:\n)(    \w+: \{.*\n)+", rf"\g<1>{block or families()}", text, count=1)
    path.write_text(text)


def on_slurm(workflow: Workflow, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """Run Snakemake with the settled profile."""
    return workflow.snakemake("--workflow-profile", "profiles/slurm", *QUICK, *arguments, program=QUICK_PROGRAM, **options)
