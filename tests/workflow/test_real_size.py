"""The experiments at real size: planned offline, from their own files, without touching the demo."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import Workflow, copy_workflow
from workflow_scripts.plan.plan import Plan
from workflow_scripts.settings import SettingsError, load_experiments
from workflow_scripts.settings.load import deep_merge, read_yaml

CONFIG = Path(__file__).parents[2] / "config"
SEVEN = ["baseline_1b", "kd_7b_to_1b", "sft_7b_to_1b", "dpo_7b_to_1b"]
THIRTY_TWO = [f"{pipeline}_32b_to_{size}" for pipeline in ("kd", "sft") for size in ("1b", "7b", "13b")]
FIRST = {"baseline": None, "kd": "cache_logits", "sft": "generate_answers", "dpo": "rank_pairs"}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Workflow:
    """The workflow without results; no overlay but the campaign's."""
    folder = tmp_path_factory.mktemp("real") / "workflow"
    copy_workflow(folder, folder / "downloads")
    return Workflow(folder, folder / "config" / "olmo2.yaml")


def jobs(text: str) -> dict[str, int]:
    """Job counts of a dry run's first table."""
    table = text.split("Job stats:")[1].split("total")[0]
    return {name: int(count) for name, count in re.findall(r"^([\w-]+) +(\d+)$", table, re.MULTILINE)}


@pytest.mark.parametrize("name", [*SEVEN, "kd_32b_to_1b", "sft_32b_to_13b"])
def test_each_is_planned_without_a_hub(fresh: Workflow, name: str) -> None:
    text = fresh.snakemake("-n", name, HF_HUB_OFFLINE="1").stdout
    pipeline = name.partition("_")[0]
    training = "dpo_training" if pipeline == "dpo" else "student_train"
    made = ["prerun", "preprocess", "check_tokenizers", training, "evaluation", "experiment_summary", name]
    made.append("export_policy" if pipeline == "dpo" else "export_model")
    expected = dict.fromkeys(made, 1) | {"prepare_model": 2, "reference_evaluation": 2}
    if FIRST[pipeline]:
        merge = {"cache_logits": "merge_logits", "generate_answers": "merge_answers", "rank_pairs": "merge_pairs"}
        expected |= {FIRST[pipeline]: 4, merge[FIRST[pipeline]]: 1}
    if pipeline == "dpo":  # and the baseline's training, which it starts from
        expected |= {"student_train": 1, "evaluation": 2, "experiment_summary": 2}
    assert jobs(text) == expected
    assert f"output: model_log/{name}/" in text and f"logs/{name}/experiment_summary.json" in text


def test_the_campaign_compares_the_four_and_makes_each_shared_artefact_once(fresh: Workflow) -> None:
    text = fresh.snakemake("-n", HF_HUB_OFFLINE="1").stdout
    found = jobs(text)
    assert found["experiment_summary"] == 4 and found["comparison"] == 1
    assert (found["student_train"], found["dpo_training"]) == (3, 1)
    assert found["prepare_model"] == 2  # teacher and student: dpo starts from the baseline's model
    assert found["preprocess"] == 1 and (found["cache_logits"], found["merge_logits"]) == (4, 1)


def test_three_seeds_of_five_methods_are_one_file_and_one_command(fresh: Workflow) -> None:
    sweep = "sweep:\n  kd_7b_to_1b:\n    distillation.alpha: [0.3, 0.7]\n"
    (fresh.folder / "three.yaml").write_text(f"experiment:\n  seeds: [0, 1, 2]\n{sweep}")
    found = jobs(fresh.snakemake("-n", overlay="three.yaml", HF_HUB_OFFLINE="1").stdout)
    per_run = {"student_train": 12, "dpo_training": 3, "export_model": 12, "export_policy": 3}
    per_run |= dict.fromkeys(("evaluation", "experiment_summary"), 15)
    parts = dict.fromkeys(("cache_logits", "generate_answers", "rank_pairs"), 4)
    merges = dict.fromkeys(("merge_logits", "merge_answers", "merge_pairs"), 1)
    once = dict.fromkeys(("prerun", "preprocess", "comparison", "all"), 1)
    shared = {"prepare_model": 2, "check_tokenizers": 1, "reference_evaluation": 2}
    assert found == {**per_run, **parts, **merges, **once, **shared}
    one = fresh.snakemake("-n", "kd_7b_to_1b-alpha0_3-seed1", overlay="three.yaml").stdout
    assert jobs(one)["student_train"] == 1 and "model_log/kd_7b_to_1b-alpha0_3-seed1/final_model/" in one
    assert jobs(fresh.snakemake("-n", "kd_7b_to_1b", overlay="three.yaml").stdout)["student_train"] == 6


def test_students_of_one_teacher_share_its_output(fresh: Workflow) -> None:
    found = jobs(fresh.snakemake("-n", *THIRTY_TWO, HF_HUB_OFFLINE="1").stdout)
    assert (found["cache_logits"], found["merge_logits"]) == (4, 1)
    assert (found["generate_answers"], found["merge_answers"]) == (4, 1)
    assert found["student_train"] == 6 and found["prepare_model"] == 4


def test_the_demo_s_default_target_is_unchanged() -> None:
    plan = Plan(load_experiments(CONFIG, read_yaml(CONFIG / "base.yaml"), {}))
    assert plan.comparison.experiments == ["demo_baseline", "demo_kd", "demo_sft", "demo_opd", "demo_dpo"]
    assert plan.set_aside == {} and set(SEVEN) | set(THIRTY_TWO) <= set(plan.experiments)


def test_what_the_command_line_does_not_fit_is_refused_when_it_is_asked_for_only(fresh: Workflow) -> None:
    result = fresh.snakemake("-n", "demo_dpo", check=False)
    assert result.returncode != 0
    assert re.search(r"scatter.preference_dataset = 4, but the work has \d unit\(s\) at most", result.stdout + result.stderr)
    base, asked = read_yaml(CONFIG / "base.yaml"), {"scatter": {"preference_dataset": 4}}
    with pytest.raises(SettingsError, match="demo_dpo.yaml: configuration: scatter.preference_dataset = 4"):
        load_experiments(CONFIG, base, asked)
    one_folder = {"distillation": {"logprob_cache_path": "/scratch/cache"}}
    plan = Plan(load_experiments(CONFIG, base, one_folder))
    assert "demo_kd" in plan.experiments and "claimed by two experiments" in plan.set_aside["kd_7b_to_1b"]


def test_an_experiment_whose_policy_is_set_aside_goes_with_it(tmp_path: Path) -> None:
    shutil.copytree(CONFIG, tmp_path / "config")
    follower = "extends: olmo2_7b_to_1b\npipeline: dpo\nmodel:\n  policy: sft_7b_to_1b\n"
    (tmp_path / "config" / "experiments" / "follower.yaml").write_text(follower)
    base = read_yaml(CONFIG / "base.yaml")
    assert "follower" in Plan(load_experiments(tmp_path / "config", base, {})).experiments
    one_folder = {"synthetic_data": {"synthetic_dataset_path": "/scratch/answers"}}
    plan = Plan(load_experiments(tmp_path / "config", base, one_folder))
    assert plan.set_aside["follower"] == plan.set_aside["sft_7b_to_1b"]
    assert "claimed by two experiments" in plan.set_aside["follower"] and "follower" not in plan.experiments


def test_an_experiment_that_starts_from_a_swept_policy_gives_way_unless_it_is_asked_for() -> None:
    campaign = read_yaml(CONFIG / "campaigns" / "study_students.yaml")
    base = deep_merge(read_yaml(CONFIG / "base.yaml"), read_yaml(CONFIG / "campaigns" / "study.yaml"))
    plan = Plan(load_experiments(CONFIG, deep_merge(base, campaign), campaign))
    assert "'demo_baseline' is swept: name one of its variants" in plan.set_aside["demo_dpo"]
    assert len(plan.comparison.experiments) == 2 + 2 * 2 * 2
    students = ("smollm2-64m-pruned", "smollm2-46m-pruned")
    assert plan.baselines == [f"demo_baseline-student{student}-seed0" for student in students]
    caches = [plan.experiments[run].shared["logit_caching"] for run in plan.targets["demo_kd"]]
    assert len(caches) == 8 and len(set(caches)) == 1  # two students, one output of the teacher
    own = {"model.policy": [f"demo_baseline-student{student}" for student in students]}
    both = campaign | {"sweep": campaign["sweep"] | {"demo_dpo": own}}
    dpo = Plan(load_experiments(CONFIG, deep_merge(base, both), both))
    stated = [dpo.summary_job(run).settings["comparable"] for run in dpo.targets["demo_dpo"]]
    assert [each["student"] for each in stated] == list(students), "whatever model.student says: the policy's is trained on"
    asked = campaign | {"comparison": {"experiments": ["demo_dpo"], "baseline": None}}
    with pytest.raises(SettingsError, match="'demo_baseline' is swept: name one of its variants"):
        load_experiments(CONFIG, deep_merge(base, asked), asked)


def test_random_models_replace_the_hub_s(fresh: Workflow) -> None:
    text = fresh.snakemake("-n", "kd_7b_to_1b", overlay="config/olmo2_random.yaml", HF_HUB_OFFLINE="1").stdout
    assert jobs(text)["prepare_model"] == 3  # the tokenizer's model first
    assert "results/olmo2_random/models/olmo2-7b-random/model/manifest.json" in text and "allenai" not in text
    assert "dataset/logprob_cache" not in text


@pytest.mark.parametrize("corpus", ["tulu", "math", "codeforces"])
def test_the_paper_s_grid_is_planned_without_a_hub(fresh: Workflow, corpus: str) -> None:
    campaign = Workflow(fresh.folder, fresh.folder / "config" / "campaigns" / "paper.yaml")
    overlay = None if corpus == "tulu" else f"config/campaigns/paper_{corpus}.yaml"
    text = campaign.snakemake("-n", overlay=overlay, HF_HUB_OFFLINE="1").stdout
    methods, seeds = 3 + 2 + 9 + 3, 3  # baselines; kd of 7B and 13B; the sweep of kd of 1B; sft
    per_run = dict.fromkeys(("student_train", "export_model", "evaluation", "experiment_summary"), methods * seeds)
    once = dict.fromkeys(("prerun", "preprocess", "cache_logits", "merge_logits", "generate_answers", "merge_answers"), 1)
    shared = {"prepare_model": 4, "reference_evaluation": 4, "check_tokenizers": 3, "comparison": 1, "all": 1}
    assert jobs(text) == {**per_run, **once, **shared}
    run = f"model_log/paper/{corpus}/kd_32b_to_1b-alpha0_8-temperature4_0-seed43/"
    assert run in text and f"results/paper/{corpus}/comparison" in text and "dataset/logprob_cache" not in text


def test_the_paper_s_protocol_reaches_every_run() -> None:
    campaign = read_yaml(CONFIG / "campaigns" / "paper.yaml")
    found = load_experiments(CONFIG, deep_merge(read_yaml(CONFIG / "base.yaml"), campaign), campaign)
    for settings in (found[name] for name in found.compared()):
        training = settings.training
        assert (training.optimizer, training.schedule_type, training.num_warmup_steps) == ("adafactor", "cosine", 100)
        assert (training.batch_size, training.gradient_accumulation_steps, training.batch_tokens) == (4, 1, None)
        assert settings.data.max_sequence_length == 1024 and settings.model.teacher == "allenai/OLMo-2-0325-32B-SFT"
