"""Which rules read which key: a row for every key of every section, held against the slices that the plan cuts."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.conftest import REPOSITORY
from workflow_scripts import reference
from workflow_scripts.pipelines import splits
from workflow_scripts.plan.plan import Plan
from workflow_scripts.plan.slices import leaves, line
from workflow_scripts.settings import Settings, load_experiments
from workflow_scripts.settings.load import deep_merge, read_yaml

DEMO = ("demo_baseline", "demo_kd", "demo_sft", "demo_dpo")
BASE = deep_merge(read_yaml(REPOSITORY / "config" / "base.yaml"), {"comparison": {"experiments": list(DEMO)}})
STUDENT = {"student_train baseline", "student_train kd", "student_train sft"}
TRAINED = STUDENT | {"dpo_training dpo"}
JUDGED = {"evaluation baseline", "evaluation kd", "evaluation sft", "evaluation dpo", "reference_evaluation"}
ASKED = {"cache_logits", "merge_logits", "generate_answers", "merge_answers", "rank_pairs", "merge_pairs"}
STATED = {"experiment_summary"}  # a summary states what compared experiments should agree on
LOGITS = {"cache_logits", "merge_logits", "student_train kd"}
# By the longest prefix: the rules whose own slice has the key. What follows from them is Snakemake's affair.
READ_BY: dict[str, set[str]] = {
    "pipeline": STUDENT | {"dpo_training dpo"},
    "experiment": set(),
    "experiment.seed": TRAINED | STATED,
    "experiment.replicate": ASKED,
    "experiment.replicates": ASKED,  # with seeds enough: some runs read another measurement
    "experiment.teacher_seeds": ASKED - LOGITS,
    "model": {"prepare_model"},
    "model.chat_template": {"preprocess"},
    "model.attn_implementation": TRAINED | JUDGED | ASKED,
    "model.policy": STATED,
    "models": {"prepare_model"},
    "data": {"preprocess"},
    "distillation": {"student_train kd"},
    **dict.fromkeys(
        ("distillation.cache_temperatures", "distillation.shard_examples", "distillation.batch_size"), ASKED & LOGITS
    ),
    "distillation.sampling": LOGITS,
    "distillation.top_k_logits": LOGITS,
    "distillation.sampling_draws": set(),  # read where distillation.sampling = random
    "distillation.sampling_seed": set(),
    "distillation.beta": set(),  # read where distillation.divergence = jsd
    "distillation.logprob_cache_path": set(),
    "synthetic_data": {"generate_answers", "merge_answers"},
    "synthetic_data.filtering": {"merge_answers"},
    "synthetic_data.use_existing": {"merge_answers"},
    "synthetic_data.synthetic_dataset_path": set(),
    "dpo": {"rank_pairs", "merge_pairs"},
    "dpo.beta": {"dpo_training dpo", "evaluation dpo"},
    "dpo.loss_type": {"dpo_training dpo", "evaluation dpo"},
    "dpo.keep_truncated": {"merge_pairs"},
    "dpo.judge_labeling": {"merge_pairs"},
    "dpo.judge_labeling.judge_model": set(),  # with scoring_method = judge it is an input
    "dpo_preference_dataset_path": set(),
    "opd": set(),  # of tests/unit/plan/test_rounds.py
    "training": TRAINED,
    **dict.fromkeys(
        (
            *("training.optimizer", "training.schedule_type", "training.token_budget", "training.energy_budget_kwh"),
            *("training.gradient_checkpointing", "training.compile", "training.eval_steps", "training.eval_joules"),
            "training.batch_tokens",
            "training.lora.rank",
        ),
        TRAINED | STATED,
    ),
    **dict.fromkeys(("training.batch_size", "training.gradient_accumulation_steps"), TRAINED),  # batch_tokens is what is stated
    "training.packing": STUDENT | STATED,  # TRL has none for pairs
    "teacher.dtype": ASKED,
    "training.dtype": TRAINED | JUDGED | STATED,
    "evaluation": JUDGED,
    **{section: set() for section in ("energy", "wandb", "hardware", "prerun", "scatter", "output", "sweep")},
    "comparison": {"comparison"},
    "comparison.experiments": set(),
}
# Values that the type alone does not tell, with what they need beside them.
VALUES: dict[str, dict[str, Any]] = {
    "pipeline": {"pipeline": "baseline"},
    "experiment.seeds": {"experiment": {"seeds": [42]}},
    "experiment.replicates": {"experiment": {"seeds": [42, 43], "replicates": 2}},
    "sweep": {"sweep": {"demo_kd": {"distillation.alpha": [0.5]}}},
    "model.teacher": {"model": {"teacher": "other/model"}},
    "model.student": {"model": {"student": "other/model"}},
    "model.chat_template": {"model": {"chat_template": "olmo2"}},
    "data.dataset_choice": {"data": {"dataset_choice": "two", "datasets": {"two": {"dataset_name": "a/b"}}}},
    "distillation.temperature": {"distillation": {"temperature": 2.0, "cache_temperatures": [1.0, 2.0]}},
    "distillation.cache_temperatures": {"distillation": {"cache_temperatures": [1.0, 2.0]}},
    "dpo.judge_labeling.judge_model": {
        "dpo": {"judge_labeling": {"scoring_method": "judge", "judge_model": "smollm2-64m-pruned"}}
    },
    "synthetic_data.use_existing": {"synthetic_data": {"use_existing": True, "synthetic_dataset_path": "x"}},
    "training.lora.target_modules": {"training": {"lora": {"target_modules": ["q_proj"]}}},
    "training.eval_joules": {"training": {"eval_steps": None, "eval_joules": 50.0}},
    "training.num_processes": {"training": {"num_processes": 2}},
    "training.num_nodes": {"training": {"num_nodes": 2}},
    "training.fsdp": {"training": {"fsdp": True, "num_processes": 2}},
    "evaluation.lm_eval_tasks": {"evaluation": {"lm_eval_tasks": ["x"]}},
    "evaluation.lm_eval_include_path": {"evaluation": {"lm_eval_tasks": ["x"], "lm_eval_include_path": "x"}},
    "comparison.experiments": {"comparison": {"experiments": list(DEMO[:3])}},
    "comparison.baseline": {"comparison": {"baseline": "demo_kd"}},
    "comparison.quality": {"comparison": {"quality": "kl_to_teacher"}},
    "output.output_dir": {"output": {"output_dir": "x/{experiment}"}},
    "output.run_dir": {"output": {"run_dir": "x/{experiment}"}},
    **{f"{way}.generation.top_p": {way: {"generation": {"top_p": 0.5}}} for way in ("dpo", "opd")},
    "energy.country_iso_code": {"energy": {"country_iso_code": "FRA"}},
    **{f"scatter.{stage.name}": {"scatter": {stage.name: 1}} for stage, _ in splits()},
}
# Another model or pipeline changes nearly everything; a student's own tokenizer is for some pipelines only.
NOT_ALONE = ("pipeline", "model.policy", "model.teacher", "model.student", "model.student_chat_template")
# Keys of one kind of model or data set among several, and conditions that the demo does not meet.
ONE_OF_MANY = ("models.<name>", "data.datasets.<name>")


def keys() -> list[str]:
    """Every leaf key."""
    found = []
    for prefix, _, model in reference.sections("", Settings):
        found += [
            f"{prefix}.{name}" if prefix else name
            for name, field in model.model_fields.items()
            if not reference.models_in(field.annotation)
        ]
    return sorted({key for key in found if not key.startswith(ONE_OF_MANY)})


def slices(overlay: Mapping[str, Any]) -> dict[str, set[str]]:
    """Lines that are compared, by rule, and pipeline where it has one, for the demo's experiments with this overlay."""
    experiments = load_experiments(REPOSITORY / "config", BASE, overlay)
    plan = Plan(experiments)
    found: dict[str, set[str]] = {}

    def add(rule: str, job: Any) -> None:
        found.setdefault(rule, set()).update(line(key, value) for key, value in leaves(job.deciding).items())

    used = set()
    for way, name in ((demo.removeprefix("demo_"), run) for demo in DEMO for run in plan.targets[demo]):
        if name not in plan.experiments:
            continue
        planned = plan.experiments[name]
        add(f"{planned.pipeline.training} {way}", planned.training)
        add(f"evaluation {way}", planned.evaluation)
        add("experiment_summary", plan.summary_job(name))
        used |= {*planned.training.inputs.values(), *planned.evaluation.inputs.values(), *planned.references.values()}
    for key, job in plan.models.items():
        if plan.model_manifest(key) in used:
            add("prepare_model", job)
    for artefact, job in plan.corpora.items():
        if plan.corpus_manifest(artefact) in used:
            add("preprocess", job)
    for stage, split in splits():
        for artefact, teacher in plan.teacher[stage.name].items():
            if plan.teacher_manifest(stage.name, artefact) in used:
                add(split.part_rule, teacher.parts)
                add(split.merge_rule, teacher.merge)
    for artefact, job in plan.references.items():
        if f"{plan.output.root}/reference/{artefact}/evaluation.json" in used:
            add("reference_evaluation", job)
    add("comparison", plan.comparison_job())
    return found


def other_value(key: str) -> dict[str, Any]:
    """An overlay that changes one key."""
    if key in VALUES:
        return VALUES[key]
    *parents, last = key.split(".")
    model, value = Settings, BASE
    for part in parents:
        (model,) = reference.models_in(model.model_fields[part].annotation)
        value = value.get(part, {}) if isinstance(value, Mapping) else {}
    field = model.model_fields[last]
    now = value.get(last, field.default)
    return nested(key, _another(field.annotation, now))


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _another(annotation: Any, now: Any) -> Any:
    options = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return next(value for value in options if value != now)
    inner = next((option for option in options if option is not type(None)), annotation) if options else annotation
    if typing.get_origin(inner) is typing.Annotated:
        inner = typing.get_args(inner)[0]
    if inner is bool:
        return not now
    if inner is int:
        return (now or 0) + 1 if (now or 0) < 60000 else now - 1
    if inner is float:
        return 0.5 if not now else now + 0.5 if now >= 1 else now / 2
    return f"{now or 'x'}x"


def expected(key: str) -> set[str]:
    """The rules of the longest prefix in the table."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:length])) in READ_BY:
            return READ_BY[prefix]
    raise AssertionError(f"{key} has no row: say which rules read it")


@pytest.mark.parametrize("key", [key for key in keys() if key not in NOT_ALONE])
def test_a_changed_key_is_in_the_slices_of_exactly_the_rules_that_read_it(key: str) -> None:
    overlay = other_value(key)
    beside: dict[str, Any] = {}  # what the value needs is set before, too, but for what is changed by that alone
    needy = ("experiment.replicates", "distillation.temperature", "training.fsdp", "evaluation.lm_eval_include_path")
    if key in (*needy, "dpo.judge_labeling.judge_model", "training.eval_joules"):
        for other, value in leaves(dict(overlay)).items():
            beside = deep_merge(beside, nested(other, value)) if other != key else beside
    if key.startswith("training.lora."):
        beside = {"training": {"lora": {}}}
    before = slices(beside)
    after = slices(overlay)
    changed = {rule for rule in {*before, *after} if before.get(rule) != after.get(rule)}
    assert changed == expected(key)
    named = {text.split("=")[0] for rule in changed for text in before.get(rule, set()) ^ after.get(rule, set())}
    if key in ("experiment.replicates", "experiment.teacher_seeds"):  # they set other keys of a run
        return
    assert not changed or key in named or any(name.startswith(("comparable.", "data.datasets", key)) for name in named)


def test_the_settings_of_a_model_and_of_a_data_set_are_read_by_what_makes_them() -> None:
    model = {"models": {"smollm2-64m-pruned": {"keep_layers": [0, 1]}}}
    data = {"data": {"datasets": {"alpaca_en_demo": {"placeholders": {"name": "Other"}}}}}
    assert {r for r, lines in slices(model).items() if lines != slices({})[r]} == {"prepare_model"}
    assert {r for r, lines in slices(data).items() if lines != slices({})[r]} == {"preprocess"}


def test_only_a_judge_makes_the_teacher_s_own_work_depend_on_the_ranking() -> None:
    methods = {name: slices({"dpo": {"judge_labeling": {"scoring_method": name}}}) for name in ("judge", "likelihood")}
    changed = {name: {rule for rule, lines in found.items() if lines != slices({})[rule]} for name, found in methods.items()}
    assert changed == {"judge": {"rank_pairs", "merge_pairs"}, "likelihood": {"merge_pairs"}}


def test_another_judge_is_an_input_of_pairs_that_have_a_place_of_their_own() -> None:
    def pairs(labeling: dict[str, str]) -> tuple[str, dict[str, str], dict[str, str]]:
        plan = Plan(load_experiments(REPOSITORY / "config", BASE, {"dpo": {"judge_labeling": labeling}}))
        shared = plan.experiments["demo_dpo"].shared
        name = Path(shared["teacher_generation"]).parts[-3]
        return name, plan.teacher["preference_dataset"][name].parts.inputs, shared

    likelihood = pairs({})
    teacher = pairs({"scoring_method": "judge"})
    other = pairs({"scoring_method": "judge", "judge_model": "smollm2-64m-pruned"})
    assert "judge" not in likelihood[1] | teacher[1]
    assert len({name for name, _, _ in (likelihood, teacher, other)}) == 3
    assert other[1]["judge"] == other[2]["prepare_model_judge"].replace("stages/prepare_model", "model/manifest")
    assert "smollm2-64m-pruned" in other[1]["judge"]


def test_every_section_of_the_settings_has_a_row() -> None:
    assert issubclass(Settings, BaseModel) and not [key for key in keys() if expected(key) is None]
