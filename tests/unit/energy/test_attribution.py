"""Whose joules: CPUs of the job, CPU time of its processes, and the sharing-out of a host's figure."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import REPOSITORY
from workflow_scripts.energy import attribution
from workflow_scripts.energy.attribution import CpuSeconds, CpuShare, JobShare, allocated_cpus, scope
from workflow_scripts.energy.sampler import Sampler
from workflow_scripts.energy.sources.base import Figure
from workflow_scripts.settings.schema import Energy


@pytest.mark.parametrize(
    ("choice", "cpus", "expected"),
    [("auto", 4, "job"), ("auto", 8, "host"), ("auto", 0.5, "job"), ("host", 4, "host"), ("job", 8, "job")],
)
def test_scope_of_host_figures(choice, cpus, expected) -> None:
    assert scope(choice, cpus, 8) == expected


def test_cpus_of_a_job_are_the_least_of_affinity_quota_and_slurm(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    own = Path("/proc/self/cgroup").read_text().partition("::")[2].strip().lstrip("/")
    assert allocated_cpus({}, tmp_path) == 6
    assert allocated_cpus({"SLURM_CPUS_ON_NODE": "4"}, tmp_path) == 6, "left over from another shell: there is no job"
    assert allocated_cpus({"SLURM_CPUS_ON_NODE": "4", "SLURM_JOB_ID": "7"}, tmp_path) == 4
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert allocated_cpus({}, tmp_path) == 6
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    (tmp_path / own).mkdir(parents=True, exist_ok=True)
    assert allocated_cpus({"SLURM_CPUS_ON_NODE": "4", "SLURM_JOB_ID": "7"}, tmp_path) == 2.5, "a level above counts, too"


def test_cpu_time_of_a_tree_with_ended_and_detached_processes() -> None:
    """A stage that burns 0.6 s itself, 0.6 s in a child it waits for, 0.6 s in a grandchild that outlives its parent."""
    burn = "import time\ne = time.process_time() + 0.6\nwhile time.process_time() < e: pass\n"
    orphan = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {burn!r}])\n"
    code = burn + f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\n"
    code += f"subprocess.run([sys.executable, '-c', {orphan!r}])\ntime.sleep(1.5)\n"
    share = CpuShare()
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        share.read(process.pid)
        time.sleep(0.05)
    found = share.read(process.pid)
    process.wait()
    assert 1.6 <= found.job <= 2.8, "a process that ended between two looks loses what it did since the last"
    assert found.job <= found.host


def test_what_the_meter_does_itself_is_the_jobs(tmp_path: Path, monkeypatch) -> None:
    """Jobs that fill a host add up to its figure, their meters included."""
    sampler = Sampler(Energy(cpu_scope="job", cpu_tdp_watts=50.0, rapl_root="/nowhere").model_dump(mode="json"), tmp_path)
    looks = []
    monkeypatch.setattr(sampler._job, "look", lambda share, figures: looks.append(share))
    monkeypatch.setattr(sampler, "_cpu", SimpleNamespace(read=lambda root: CpuSeconds(0.5, 1.0, 0.0)))
    monkeypatch.setattr(time, "process_time", lambda: sampler._own + 0.4)
    sampler.read_share(-1, time.monotonic())
    assert looks == [pytest.approx(0.9)]


WAITS = """
import sys
from workflow_scripts.energy.attribution import CpuShare
share = CpuShare()
print("ready", flush=True)
sys.stdin.readline()
found = share.read(-1)
print(found.driver, found.host, flush=True)
"""
DRIVER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
child.stdout.readline()
e = time.process_time() + 0.6
while time.process_time() < e: pass
child.stdin.write("go\\n")
child.stdin.flush()
print(child.stdout.readline())
"""


@pytest.mark.parametrize(("name", "least", "most"), [("snakemake", 0.5, 1.0), ("notebook", 0.0, 0.0)])
def test_the_driver_of_the_workflow_is_told_from_other_work(tmp_path: Path, name: str, least: float, most: float) -> None:
    program = tmp_path / name
    program.write_text(DRIVER)
    command = [sys.executable, str(program), WAITS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    driver, host = (float(word) for word in done.stdout.split())
    assert least <= driver <= most and driver <= host + 0.05


def test_stolen_time_is_nobodys_work(tmp_path: Path) -> None:
    ticks = attribution._TICKS

    def stat(user: int, steal: int) -> None:
        (tmp_path / "stat").write_text(f"cpu {user * ticks} 0 0 {9 * ticks} {ticks} 0 0 {steal * ticks} 0 0\n")

    stat(5, 1)
    share = CpuShare(tmp_path)
    stat(7, 4)
    found = share.read(1)
    assert (found.host, found.steal) == (2.0, 3.0)


def host(seconds: float, dynamic: float) -> dict[str, Figure]:
    """A host of 10 W at rest."""
    return {"cpu": Figure(10 * seconds + dynamic, energy_class="modelled", idle_joules=10 * seconds, crosscheck=2 * seconds)}


def test_jobs_of_a_whole_host_add_up_to_its_figure() -> None:
    """Three jobs with 4, 2 and 2 of 8 CPUs that work at different times; the same job pays the same beside any neighbour."""
    jobs = [JobShare(cpus / 8) for cpus in (4, 2, 2)]
    dynamic = 0.0
    windows = [(100.0, (0.5, 0.5, 0.0)), (300.0, (0.2, 0.3, 0.5)), (50.0, (1.0, 0.0, 0.0))]
    for second, (joules, shares) in enumerate(windows, start=1):
        dynamic += joules
        for job, share in zip(jobs, shares, strict=True):
            job.look(share, host(second, dynamic))
    figures = host(3, dynamic)
    told = [job.joules("cpu", figures["cpu"]) for job in jobs]
    assert told == pytest.approx([15 + 50 + 60 + 50, 7.5 + 50 + 90, 7.5 + 150])
    assert sum(told) == pytest.approx(figures["cpu"].joules)
    assert sum(job.crosscheck("cpu", figures["cpu"]) for job in jobs) == pytest.approx(6.0)


def test_a_job_alone_pays_its_work_and_its_part_of_the_idle_host() -> None:
    job = JobShare(0.5)
    assert job.joules("cpu", host(0, 0)["cpu"]) is None, "before the first look nothing is known"
    job.look(1.0, host(10, 200.0))
    assert job.joules("cpu", host(10, 200.0)["cpu"]) == 50 + 200


def test_joules_of_a_job_never_fall() -> None:
    """Between looks the newest share goes on; a look that says less does not take joules back."""
    job = JobShare(0.5)
    job.look(1.0, host(1, 100.0))
    before = job.joules("cpu", host(2, 300.0)["cpu"])
    assert before == 10 + 300
    job.look(0.0, host(2, 300.0))
    assert job.joules("cpu", host(2, 300.0)["cpu"]) == before
