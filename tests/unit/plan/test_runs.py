"""Runs: seeds, measurements of the teacher and sweeps as jobs of the plan; what one more seed changes; what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from workflow_scripts.pipelines import splits
from workflow_scripts.plan.plan import Plan
from workflow_scripts.settings import SettingsError, load_experiments
from workflow_scripts.settings.load import deep_merge, read_yaml

BASE = read_yaml(REPOSITORY / "config" / "base.yaml")
FOUR = ["demo_baseline", "demo_kd", "demo_sft", "demo_dpo"]
THREE: dict[str, Any] = {"experiment": {"seeds": [0, 1, 2]}}
ALPHA = {"sweep": {"demo_kd": {"distillation.alpha": [0.3, 0.7]}}}


def planned(*overlays: dict[str, Any]) -> Plan:
    """The plan of the demo with a campaign's files over it."""
    merged: dict[str, Any] = {"comparison": {"experiments": FOUR}}
    for overlay in overlays:
        merged = deep_merge(merged, overlay)
    return Plan(load_experiments(REPOSITORY / "config", deep_merge(BASE, merged), merged))


def jobs(plan: Plan) -> dict[str, Any]:
    """What decides every job of the compared runs, by what it makes."""
    found: dict[str, Any] = {}
    for name in plan.comparison.experiments:
        own = plan.experiments[name]
        found |= {f"training {name}": own.training, f"evaluation {name}": own.evaluation}
        found |= {f"reference {path}": path for path in own.references.values()}
        used = set(own.training.inputs.values())
        for stage, _ in splits():
            for artefact, teacher in plan.teacher[stage.name].items():
                if plan.teacher_manifest(stage.name, artefact) in used:
                    found[f"teacher {artefact}"] = (teacher.parts, teacher.merge)
    return found


def of(kind: str, plan: Plan) -> list[str]:
    return [name for name in jobs(plan) if name.startswith(f"{kind} ")]


def test_three_seeds_of_four_methods_share_what_the_teacher_made() -> None:
    plan = planned(THREE)
    assert plan.comparison.experiments == [f"{name}-seed{seed}" for name in FOUR for seed in (0, 1, 2)]
    assert (len(of("training", plan)), len(of("evaluation", plan))) == (12, 12)
    assert len(of("teacher", plan)) == 3 and len(of("reference", plan)) == 2
    assert plan.targets["demo_kd"] == ["demo_kd-seed0", "demo_kd-seed1", "demo_kd-seed2"]
    assert plan.targets["demo_kd-seed1"] == ["demo_kd-seed1"]
    for seed in (0, 1, 2):
        run = plan.experiments[f"demo_dpo-seed{seed}"]
        assert run.settings.experiment.seed == seed and run.settings.experiment.seeds is None
        assert run.settings.model.policy == f"demo_baseline-seed{seed}"
    assert plan.baselines == ["demo_baseline-seed0"], "any of its runs names the method"
    assert json.loads(plan.wandb("demo_kd-seed1"))["group"] == "demo_kd"


def test_without_seeds_every_path_is_that_of_one_run() -> None:
    plan = planned()
    assert plan.comparison.experiments == FOUR and plan.targets["demo_kd"] == ["demo_kd"]
    assert plan.finals("demo_kd")[0] == "results/demo_kd/final_model/manifest.json"


@pytest.mark.parametrize("more", [{}, {"replicates": 2}])
def test_one_more_seed_changes_no_other_job(more: dict[str, Any]) -> None:
    two, three = (jobs(planned({"experiment": {"seeds": seeds, **more}})) for seeds in ([0, 1], [0, 1, 2]))
    assert two.items() <= three.items()
    assert {name.rpartition("-")[2] for name in three.keys() - two.keys()} == {"seed2"}


def test_the_runs_of_a_method_are_one_and_methods_are_apart() -> None:
    plan = planned(THREE, ALPHA)
    methods = {plan.method(name): plan.comparison.experiments.count(name) for name in plan.comparison.experiments}
    assert len(methods) == 5
    for name in ("demo_dpo", "demo_baseline", "demo_kd-alpha0_3"):
        assert len({plan.method(run) for run in plan.targets[name]}) == 1


@pytest.mark.parametrize(
    ("key", "value", "split"),
    [
        ("dpo", {"beta": 0.9}, {"demo_dpo"}),
        ("synthetic_data", {"max_gen_examples": 8}, {"demo_sft"}),
        ("distillation", {"alpha": 0.1}, {"demo_kd"}),
        ("distillation", {"sampling_seed": 9}, set()),
        ("training", {"packing": False}, set(FOUR)),  # of dpo by its policy
        ("wandb", {"project": "x"}, set()),
        ("energy", {"pue": 1.5}, set()),
        ("experiment", {"description": "x", "seed": 7}, set()),
    ],
)
def test_a_key_that_a_method_does_not_read_is_no_other_method(key: str, value: dict[str, Any], split: set[str]) -> None:
    before, after = planned(), planned({key: value})
    assert {name for name in FOUR if before.method(name) != after.method(name)} == split


def test_measurements_of_the_teacher_are_used_in_turn() -> None:
    plan = planned(THREE, {"experiment": {"replicates": 2}, "distillation": {"logprob_cache_path": "cache"}})
    caches = [plan.experiments[run].training.inputs["teacher_output"] for run in plan.targets["demo_kd"]]
    assert caches[0] == caches[2] != caches[1]
    assert len(of("teacher", plan)) == 6 and len(of("training", plan)) == 12
    assert len({plan.method(run) for run in plan.targets["demo_kd"]}) == 1
    assert plan.experiments["demo_kd-seed1"].settings.distillation.logprob_cache_path == "cache-replicate2"


def test_a_teacher_that_samples_anew_for_each_seed() -> None:
    plan = planned(THREE, {"experiment": {"teacher_seeds": True}})
    assert len(of("teacher", plan)) == 1 + 3 + 3, "top-k logits have no seed"
    assert len({plan.method(run) for run in plan.targets["demo_sft"]}) == 1


def test_a_sweep_makes_variants_with_targets_of_their_own() -> None:
    grid = {"distillation.alpha": [0.3, 0.7], "training.learning_rate": [1e-4, 2e-4]}
    plan = planned({"sweep": {"demo_kd": grid}, "experiment": {"seeds": [4, 5]}})
    assert len(plan.targets["demo_kd"]) == 8 and len(of("training", plan)) == 8 + 6
    assert plan.targets["demo_kd-alpha0_3-learning_rate0_0002"][1] == "demo_kd-alpha0_3-learning_rate0_0002-seed5"
    settings = plan.experiments["demo_kd-alpha0_3-learning_rate0_0002-seed5"].settings
    assert (settings.distillation.alpha, settings.training.learning_rate, settings.experiment.seed) == (0.3, 2e-4, 5)
    assert settings.sweep is None, "a run's own settings say all of it"


def test_runs_take_their_turn_in_shuffled_blocks_of_a_seed_after_what_they_share() -> None:
    plan = planned({"experiment": {"seeds": list(range(8))}})
    runs = sorted(plan.comparison.experiments, key=plan.priority, reverse=True)
    seeds = [plan.experiments[run].settings.experiment.seed for run in runs]
    assert seeds == sorted(seeds) and plan.priority(None) > plan.priority(runs[0])
    blocks = {tuple(run.partition("-")[0] for run in runs[n : n + 4]) for n in range(0, len(runs), 4)}
    assert len(blocks) > 3, "the order of the methods is not that of every block"
    fewer = planned({"experiment": {"seeds": [0]}, "comparison": {"experiments": FOUR[:3]}})
    first = [run for run in runs[:4] if run != "demo_dpo-seed0"]
    assert sorted(fewer.comparison.experiments, key=fewer.priority, reverse=True) == first


@pytest.mark.parametrize(
    ("overlay", "expected"),
    [
        ({"experiment": {"seeds": [1, 2, 1]}}, r"seeds = \[1, 2, 1\] has 1 twice: give each run a seed of its own"),
        ({"experiment": {"seeds": []}}, r"experiment.seeds = \[\]: List should have at least 1 item"),
        ({"experiment": {"seeds": [-1]}}, "experiment.seeds.0 = -1: .*greater than or equal to 0"),
        ({"experiment": {"replicates": 2}}, r"replicates = 2, but there are 1 seed\(s\): name as many in seeds"),
        ({"sweep": {}}, "campaign: sweep: Dictionary should have at least 1 item"),
        ({"sweep": {"demo_kd": {}}}, "campaign: sweep.demo_kd: Dictionary should have at least 1 item"),
        ({"sweep": {"demo_kd": {"dpo.beta": []}}}, r"sweep.demo_kd.dpo.beta = \[\]: List should have at least 1 item"),
        ({"sweep": {"demo_kd": {"dpo.beta": 0.1}}}, "sweep.demo_kd.dpo.beta = 0.1: .*valid list"),
        ({"sweep": {"demo_kd": {"distillation.alhpa": [0.1]}}}, "unknown key distillation.alhpa = 0.1; did you mean 'alpha'"),
        ({"sweep": {"demo_kd": {"distillation.alpha": [0.1, 7.0]}}}, "sweep.demo_kd: distillation.alpha = 7.0: .*less than"),
        ({"sweep": {"demo_kd": {"distillation.alpha": [0.1, 0.1]}}}, "sweep.demo_kd.distillation.alpha has 0.1 twice"),
        ({"sweep": {"demo_k": {"distillation.alpha": [0.1]}}}, "sweep.demo_k: .* is no experiment; did you mean 'demo_kd'"),
        ({"sweep": {"demo_kd": {"energy.pue": [1.1]}}}, "energy.pue cannot be swept: `energy` holds for the whole campaign"),
        ({"sweep": {"demo_kd": {"experiment.seed": [1]}}}, "sweep.demo_kd: experiment.seed makes no other method"),
        (
            {"sweep": {"demo_kd": {"dpo.beta": [0.1, 0.2]}}},
            "demo_kd-beta0_1 and demo_kd-beta0_2 are equal, as pipeline kd reads",
        ),
        (
            {
                "sweep": {"demo_baseline": {"training.weight_decay": [0.0, 0.1]}},
                "comparison": {"experiments": ["demo_baseline", "demo_kd"]},
            },
            "'demo_baseline' is swept and variants start from one model: name one of",
        ),
        (
            {
                "sweep": {"demo_dpo": {"model.policy": ["demo_kd", "demo_sft"]}},
                "comparison": {"experiments": ["demo_dpo", "demo_kd"], "baseline": "demo_dpo"},
            },
            "'demo_dpo' is swept and variants start from one model",
        ),
        ({"comparison": {"baseline": "demo_kd-seed1"}}, "comparison: 'demo_kd-seed1' is no experiment; did you mean 'demo_kd'"),
    ],
)
def test_what_makes_no_runs_is_refused_in_one_sentence(overlay: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected) as caught:
        planned(overlay)
    assert "\n" not in str(caught.value)


def test_a_policy_is_the_run_of_the_same_seed() -> None:
    single = planned({"experiment": {"seeds": [1]}})
    assert single.experiments["demo_dpo-seed1"].settings.model.policy == "demo_baseline-seed1"
    with pytest.raises(SettingsError, match=r"policy = 'demo_baseline' has no run of seed 3 \(demo_baseline-seed1\)"):
        experiments = load_experiments(REPOSITORY / "config", BASE, {"experiment": {"seeds": [1]}})
        run = experiments["demo_dpo-seed1"]
        moved = run.model_copy(
            update={
                "experiment": run.experiment.model_copy(update={"seed": 3}),
                "model": run.model.model_copy(update={"policy": "demo_baseline"}),
            }
        )
        experiments["demo_dpo-seed1"] = moved
        experiments.policy("demo_dpo-seed1")
