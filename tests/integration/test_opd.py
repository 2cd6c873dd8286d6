"""demo_opd at test size on the real teacher: two rounds in parts, what is kept when it is run again, its bill."""

from __future__ import annotations

import pytest

from tests.conftest import Workflow
from tests.workflow.test_stale import plan

EARLIER = ("rollout", "logit_caching", "student_train_round1")
LATER = ("rollout_round2", "logit_caching_round2")


def test_two_rounds_are_metered_scattered_shared_and_stale_by_slice(finished: Workflow) -> None:
    asked = ("--config", "scatter={rollout: 2, logit_caching: 2}")
    finished.snakemake("--cores", "2", "demo_opd", *asked)
    summary = finished.json("results/demo_opd/experiment_summary.json")
    stages = summary["stages"]
    assert {*EARLIER, *LATER, "student_train", "evaluation"} <= set(stages)
    assert all(stages[name]["role"] == "student" for name in ("rollout", "rollout_round2", "student_train_round1"))
    assert stages["rollout"]["parts"] == 2 and stages["rollout"]["work"]["generated"] > 0
    for role, names in (("teacher", (EARLIER[1], LATER[1])), ("student", (*EARLIER[::2], LATER[0], "student_train"))):
        assert summary["roles"][role]["joules"] == pytest.approx(sum(stages[n]["total_energy_joules"] for n in names))
    assert any(text.startswith("logit_caching_round2: made for this experiment's own policies") for text in summary["warnings"])
    assert plan(finished, "demo_opd", *asked) == {}
    other = (*asked, "opd={divergence: jsd}")
    jobs = plan(finished, "demo_opd", *other)
    both = ("write_rollouts", "merge_rollouts", "cache_logits", "merge_logits", "train_round", "student_train demo_opd")
    assert set(both) <= set(jobs)
    listed = finished.snakemake("-n", "demo_opd", *other).stdout
    assert listed.count("\nrule merge_rollouts:") == 1, "those of the first round stay"
    finished.snakemake("--cores", "2", "all", *asked, "comparison={experiments: [demo_baseline, demo_opd]}")
    rows = {row["experiment"]: row for row in finished.json("results/comparison/comparison.json")["experiments"]}
    assert rows["demo_opd"]["teacher_kwh"] > 0
