"""Rounds of on-policy distillation in the plan: inputs, shares of the budget, what experiments share, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import REPOSITORY
from workflow_scripts.plan.plan import Plan
from workflow_scripts.settings import SettingsError, load_experiments
from workflow_scripts.settings.load import deep_merge, read_yaml

BASE = read_yaml(REPOSITORY / "config" / "base.yaml")


def planned(**overlay: Any) -> Plan:
    compared = {"comparison": {"experiments": ["demo_opd", "demo_kd"], "baseline": None}}
    return Plan(load_experiments(REPOSITORY / "config", BASE, deep_merge(compared, overlay)))


def rounds_of(plan: Plan, name: str = "demo_opd") -> list[str]:
    """Rollouts of an experiment, in order."""
    return [path for stage, path in plan.experiments[name].shared.items() if stage.startswith("rollout")]


def test_a_round_trains_the_policy_of_the_round_before_on_what_that_wrote() -> None:
    plan = planned()
    opd, folder = plan.experiments["demo_opd"], next(name for name, owner in plan.round_of.items() if owner == "demo_opd")
    first, last = plan.rounds[folder], opd.training
    assert first.inputs["student"] == plan.final_manifest("demo_baseline")
    assert last.inputs["student"] == f"results/rounds/{folder}/final_model/manifest.json"
    written = plan.teacher["rollout"][last.inputs["corpus"].split("/")[-3]].merge
    assert written.inputs["student"] == last.inputs["student"]
    assert written.inputs["corpus"] == plan.experiments["demo_kd"].training.inputs["corpus"]
    scored = plan.teacher["logit_caching"][last.inputs["teacher_output"].split("/")[-3]].merge
    assert scored.inputs["corpus"] == last.inputs["corpus"] != first.inputs["corpus"]
    assert [job.settings["training"]["token_budget"] for job in (first, last)] == [2000, 2000]
    assert [name for name in opd.shared if "_round" in name] == [
        "student_train_round1",
        "rollout_round2",
        "logit_caching_round2",
    ]
    assert "alpha" not in last.settings["distillation"] and last.settings["opd"] == {"divergence": "reverse_kl"}


def test_what_changes_in_the_last_round_alone_leaves_the_rollouts_of_the_first() -> None:
    before = rounds_of(planned())
    other_loss = rounds_of(planned(opd={"divergence": "forward_kl"}))
    assert other_loss[0] == before[0] and other_loss[1] != before[1]
    other_seed = rounds_of(planned(opd={"generation": {"seed": 5}}))
    assert set(other_seed).isdisjoint(before)
    more = rounds_of(planned(opd={"rounds": 4}, training={"token_budget": 8000}))
    assert more[:2] == before, "rounds of an equal beginning are made once"


def test_a_cache_folder_of_the_users_has_one_folder_for_each_round() -> None:
    plan = planned(distillation={"logprob_cache_path": "caches"})
    paths = [a.merge.settings["distillation"]["logprob_cache_path"] for a in plan.teacher["logit_caching"].values()]
    assert len(set(paths)) == len(paths) and "caches" in paths and sum(p.startswith("caches/rollouts-") for p in paths) >= 2


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        ({"opd": {"rounds": 0}}, "opd.rounds = 0"),
        ({"distillation": {"tail": "zero"}}, "opd.divergence = 'reverse_kl' needs sampling"),
        ({"model": {"student_chat_template": "olmo2"}}, "exchanges token ids"),
        ({"scatter": {"rollout": 9}}, "scatter.rollout = 9, but the work has 1 unit"),
        ({"opd": {"divergence": "jsd", "beta": 1.0}}, "opd.beta = 1.0"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_planned(overlay: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words.replace("(", r"\(")):
        planned(**overlay)
