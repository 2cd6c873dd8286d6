"""A site with an accounting database: job states come from sacct, accounts and memory are checked, and daemons go away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Workflow
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
    for _ in ticks(60):
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
    cluster.stop_daemon("slurmctld")
    toy.wait_until_said("squeue gives no answer")
    toy.go("controller")
    for _ in ticks(30):
        if (tmp_path / "controller.out").exists():
            break
    cluster.start_daemon("slurmctld")
    assert toy.end() == 1 and "2 of 4 steps" in toy.said, toy.said
