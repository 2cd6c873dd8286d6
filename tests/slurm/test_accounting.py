"""A site with an accounting database: job states come from sacct, and accounts are checked."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Workflow
from tests.slurm.cluster import Cluster
from tests.slurm.site import on_slurm, settle


def test_with_accounting_states_come_from_sacct_and_a_wrong_account_is_refused(finished: Workflow, tmp_path: Path) -> None:
    """With the cheapest jobs there are: two summaries are made again."""
    targets = [f"results/{name}/experiment_summary.json" for name in ("demo_kd", "demo_sft")]
    for target in targets:
        (finished.folder / target).unlink()
    with Cluster(tmp_path / "slurm", accounting=True) as cluster:
        settle(finished.folder, account="nobody", accounting="true")
        result = on_slurm(finished, *targets, check=False)
        assert "site block: account" in result.stderr, result.stderr
        settle(finished.folder, account="default", accounting="true")
        on_slurm(finished, *targets)
        states = cluster.run("sacct", "-n", "-X", "--format=State,Account").split()
        assert states.count("COMPLETED") == 2 and set(states) == {"COMPLETED", "default"}, states
