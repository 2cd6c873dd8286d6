"""A site with an accounting database: job states come from sacct, accounts and memory are checked, and daemons go away."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Workflow, copy_workflow
from tests.slurm.cluster import Cluster
from tests.slurm.processes import ticks
from tests.slurm.site import on_slurm, settle
from tests.slurm.toy import Toy


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm"), accounting=True) as running:
        yield running


def jobs(cluster: Cluster, toy: Toy) -> dict[str, str]:
    """The Slurm job of each name, once all of them run."""
    for _ in ticks(180):
        lines = cluster.run("squeue", "--noheader", "--states=running", "--format=%k %i").splitlines()
        found = {words[0].rpartition("_")[2]: words[1] for line in lines if (words := line.split())}
        if set(toy.names) <= set(found):
            return found
    raise AssertionError(f"not all jobs run: {found}\n{toy.said}")


def test_with_accounting_states_come_from_sacct_and_a_wrong_account_is_refused(finished: Workflow, cluster: Cluster) -> None:
    """With the cheapest jobs there are: two summaries are made again."""
    targets = [f"results/{name}/experiment_summary.json" for name in ("demo_kd", "demo_sft")]
    for target in targets:
        (finished.folder / target).unlink()
    settle(finished.folder, account="nobody", accounting="true")
    result = on_slurm(finished, *targets, check=False)
    assert "site block: account" in result.stderr, result.stderr
    settle(finished.folder, account="default", accounting="true")
    on_slurm(finished, *targets)
    states = cluster.run("sacct", "-n", "-X", "--format=State,Account").split()
    assert states.count("COMPLETED") == 2 and set(states) == {"COMPLETED", "default"}, states


@pytest.mark.parametrize("status", ["sacct", "squeue"])
def test_scancel_and_outages_of_both_daemons_end_no_driver_and_hold_none(cluster: Cluster, tmp_path: Path, status: str) -> None:
    toy = Toy(tmp_path, "stopped", "database", "controller")
    toy.start("--keep-going", status=status)
    known = jobs(cluster, toy)
    cluster.run("scancel", known["stopped"])
    toy.wait_until_said(f"SLURM-job '{known['stopped']}' failed, SLURM status is: 'CANCELLED'")
    if status == "sacct":
        cluster.stop_daemon("slurmdbd")
        toy.wait_until_said("sacct gives no answer")
        toy.go("database")
        cluster.wait_for_job(known["database"], "COMPLETED", 30)
        cluster.start_daemon("slurmdbd")
        toy.wait_until_said("sacct answers again")
    else:
        toy.go("database")
    for _ in ticks(120):  # their srun, seconds after their start, needs the controller
        if all((tmp_path / f"{name}.began").exists() for name in ("database", "controller")):
            break
    cluster.stop_daemon("slurmctld")
    toy.wait_until_said("squeue gives no answer")
    toy.go("controller")
    for _ in ticks(30):
        if (tmp_path / "controller.out").exists():
            break
    cluster.start_daemon("slurmctld")
    assert toy.end() == 1 and "2 of 4 steps" in toy.said, toy.said


WAITS = """
import pathlib, sys, time
while not pathlib.Path(sys.argv[1] + ".go").exists():
    time.sleep(0.1)
"""


def test_each_task_of_an_array_has_its_own_state_and_cpus(cluster: Cluster, tmp_path: Path) -> None:
    """The plugin takes SLURM_CPUS_ON_NODE from the first task, and its `JobIdRaw` does not name tasks."""
    toy = Toy.metered(tmp_path, "first", "second", child="")
    toy.start("--slurm-array-jobs", "all")
    assert toy.end() == 0 and "Submitted array job" in toy.said, toy.said
    for name in toy.names:
        (attempt,) = toy.attempts(name)
        assert (attempt.last["outcome"], attempt.start["scope"]) == ("completed", "job"), name


def test_out_of_memory_is_named_and_the_next_attempt_has_more(cluster: Cluster, tmp_path: Path) -> None:
    toy = Toy.metered(tmp_path, "big", child="len(bytearray(700_000_000))")
    toy.start("--retries", "1", "--show-failed-logs")
    assert toy.end() == 0, toy.said
    assert re.search(r"SIGKILL: out of memory, .* raise mem_gb of its family", toy.said), toy.said
    killed, whole = toy.attempts("big")
    assert killed.end is not None and (killed.end["outcome"], killed.end["signal"]) == ("signal", 9)
    assert any("SIGKILL: out of memory" in text for text in killed.end["warnings"])
    assert whole.last["outcome"] == "completed"


def test_a_suspension_is_apart(cluster: Cluster, tmp_path: Path) -> None:
    toy = Toy.metered(tmp_path, "one", child=WAITS)
    toy.start()
    job = jobs(cluster, toy)["one"]
    for _ in ticks(30):
        if (tmp_path / "one" / "state").exists() and toy.attempts("one") and toy.attempts("one")[0].ticks:
            break
    cluster.run("scontrol", "suspend", job)
    began = time.monotonic()
    cluster.wait_for_job(job, "SUSPENDED", 20)
    for _ in ticks(7):  # Slurm stops the batch script first, and its step with the meter seconds later
        pass
    lasted = time.monotonic() - began
    cluster.run("scontrol", "resume", job)
    toy.go("one")
    assert toy.end() == 0, toy.said
    (attempt,) = toy.attempts("one")
    seconds = attempt.last["suspended"]["seconds"]
    assert 2 < seconds < lasted + 2
    assert any("the job was suspended for" in text for text in attempt.last["warnings"])


def test_a_full_queue_is_said_before_the_first_job_and_costs_no_attempt_later(
    cluster: Cluster, tmp_path: Path, downloads: Path
) -> None:
    cluster.run("sacctmgr", "-i", "modify", "user", "root", f"cluster={cluster.name}", "set", "MaxSubmitJobs=1")
    try:
        workflow = copy_workflow(tmp_path / "workflow", downloads)
        settle(workflow.folder, account="default", accounting="true")
        result = on_slurm(workflow, "logit_caching", check=False)
        assert "account default takes 1 job(s) of this user at once (MaxSubmitJobs)" in result.stderr, result.stderr
        toy = Toy(tmp_path, "first", "second")
        toy.start()
        toy.go("first"), toy.go("second")
        assert toy.end() == 0, toy.said
        assert "is submitted again in 2 s: " in toy.said and "Error in rule" not in toy.said
    finally:
        cluster.run("sacctmgr", "-i", "modify", "user", "root", f"cluster={cluster.name}", "set", "MaxSubmitJobs=-1")


def test_no_controller_at_the_start_is_no_fault_of_the_profile(cluster: Cluster, tmp_path: Path, downloads: Path) -> None:
    workflow = copy_workflow(tmp_path / "workflow", downloads)
    settle(workflow.folder, account="default", accounting="true")
    for name, who in (("slurmdbd", "accounting (slurmdbd)"), ("slurmctld", "the controller (slurmctld)")):
        cluster.stop_daemon(name)
        try:
            result = on_slurm(workflow, "logit_caching", check=False)
            assert f"no answer from {who}: " in result.stderr and "site block" not in result.stderr, result.stderr
        finally:
            cluster.start_daemon(name)
