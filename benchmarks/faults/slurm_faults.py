"""Faults of a cluster: the disturbed run goes through a real Slurm, the rerun to the end is local unless Slurm is the point."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.faults import ALL, Fault
from benchmarks.faults.run import Lost, Missed, Run, merge
from tests.slurm.cluster import Cluster
from tests.slurm.site import QUICK, families, settle

Act = Callable[[Cluster, Run, str, str], None]  # cluster, run, job, node


class OnSlurm(Fault):
    """Something that a cluster does to the job of the target's stage."""

    arguments = ("--workflow-profile", "profiles/slurm", *QUICK)
    targets = tuple(name for name in ALL if not name.startswith("merge_"))  # those are over before Slurm can act

    def __init__(self, name: str, cluster: Cluster, act: Act) -> None:
        self.name, self._cluster, self._act = name, cluster, act

    def prepare(self, run: Run) -> None:
        settle(run.folder, families(cpus=int(run.base.cores)))
        # the stage has fewer CPUs than the host; the external clock knows the host's energy only
        merge(run.workflow.overlay, {"energy": {"cpu_scope": "host"}})

    def inject(self, run: Run, moment: float) -> None:
        run.await_moment(moment)
        try:
            entries = Path(f"/proc/{run.stage.pid}/environ").read_text().split("\0")
            environment = dict(entry.split("=", 1) for entry in entries if "=" in entry)
            self._act(self._cluster, run, environment["SLURM_JOB_ID"], environment["SLURMD_NODENAME"])
        except (ProcessLookupError, FileNotFoundError):
            raise Missed from None  # it ended in between

    def after(self, run: Run, code: int) -> None:
        self._cluster.wait_for_nodes("idle", timeout=90)


class DriverKilled(OnSlurm):
    """Snakemake is killed while its Slurm jobs go on; the same command again meets them."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(
            "Slurm: SIGKILL of the driver", cluster, lambda cluster, run, job, node: run.send(signal.SIGKILL, "driver")
        )

    def after(self, run: Run, code: int) -> None:
        run.snakemake("--unlock")
        if run.snakemake(*run.wanted, *self.arguments):
            raise Lost(f"the second driver fails:\n{run.log()[-3000:]}")
        super().after(run, code)


class TimeLimit(OnSlurm):
    """A limit of one minute; the stage is frozen so that it is still there when it comes (the meter wakes it to tell it)."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__("Slurm: time limit", cluster, reach_the_limit)

    def prepare(self, run: Run) -> None:
        super().prepare(run)
        merge(run.workflow.overlay, {"energy": {"seconds_before_limit": 40.0}})

    def after(self, run: Run, code: int) -> None:
        if not any('"outcome": "timeout"' in path.read_text() for path in run.folder.glob("results/state/**/*.jsonl")):
            raise Lost("the stage was not told of its time limit")
        super().after(run, code)


def slurm_faults(cluster: Cluster) -> list[Fault]:
    """All of them, on a running cluster."""
    return [
        OnSlurm("Slurm: scancel", cluster, lambda cluster, run, job, node: cluster.run("scancel", job)),
        OnSlurm("Slurm: scancel --signal=KILL", cluster, kill_steps),
        OnSlurm("Slurm: preemption", cluster, preempt),
        OnSlurm("Slurm: slurmd killed and back", cluster, restart_slurmd),
        OnSlurm("Slurm: node down and back", cluster, crash),
        TimeLimit(cluster),
        DriverKilled(cluster),
    ]


def kill_steps(cluster: Cluster, run: Run, job: str, node: str) -> None:
    """SIGKILL for all processes of the job's steps."""
    cluster.run("scancel", "--signal=KILL", job)


def preempt(cluster: Cluster, run: Run, job: str, node: str) -> None:
    """A job of a higher partition that needs the whole node."""
    cluster.run(
        "sbatch", "--partition=urgent", "--nodes=1", "--ntasks=4", f"--nodelist={node}", "--output=/dev/null", "--wrap=sleep 2"
    )


def restart_slurmd(cluster: Cluster, run: Run, job: str, node: str) -> None:
    """The node's daemon dies and is started again; the job should not notice."""
    cluster.kill_slurmd(node)
    time.sleep(2)
    cluster.start_slurmd(node)


def crash(cluster: Cluster, run: Run, job: str, node: str) -> None:
    """Every process of the node is gone at once; it comes back when Slurm has seen that."""
    cluster.crash_node(node)
    cluster.wait_for_nodes("down", timeout=120, nodes=[node])
    cluster.start_slurmd(node)


def reach_the_limit(cluster: Cluster, run: Run, job: str, node: str) -> None:
    """Leave the job one minute in all, and stop its stage."""
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    os.kill(run.stage.pid, signal.SIGSTOP)
