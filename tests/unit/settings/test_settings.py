"""One error line with key, value, bound and nearest known name, before anything runs."""

from __future__ import annotations

import ast
import copy
import itertools
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from workflow_scripts import reference
from workflow_scripts.pipelines import PIPELINES, STAGES
from workflow_scripts.plan.plan import Plan
from workflow_scripts.plan.slices import canonical, comparable, cut
from workflow_scripts.settings import SettingsError, load_experiments
from workflow_scripts.settings.load import deep_merge, read_yaml, validate
from workflow_scripts.settings.schema import Settings

REPOSITORY = Path(__file__).parents[3]
BASE = yaml.safe_load((REPOSITORY / "config" / "base.yaml").read_text())


def load(tmp_path: Path, overlays: dict[str, dict], overrides: dict | None = None):
    folder = tmp_path / "experiments"
    folder.mkdir(exist_ok=True)
    for name, overlay in overlays.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(overlay))
    base = copy.deepcopy(BASE) | {"comparison": {"experiments": [next(iter(overlays))]}}
    return load_experiments(tmp_path, base, overrides or {})


@pytest.mark.parametrize(
    ("overlay", "expected"),
    [
        ({"trainng": {}}, "unknown key trainng = {}; did you mean 'training'?"),
        ({"training": {"learning_rat": 0.1}}, "unknown key training.learning_rat = 0.1; did you mean 'learning_rate'?"),
        ({"dpo": {"judge_labeling": {"margin": 1}}}, "dpo.judge_labeling.margin = 1; did you mean 'min_margin'?"),
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate = 'fast': Input should be a valid number"),
        ({"training": {"learning_rate": "nan"}}, "training.learning_rate = 'nan': Input should be a valid number"),
        ({"training": {"batch_size": "2.5"}}, "training.batch_size = '2.5': Input should be a valid integer"),
        ({"training": {"batch_size": True}}, "training.batch_size = True: Input should be a valid integer"),
        ({"training": {"packing": "1"}}, "training.packing = '1': Input should be a valid boolean"),
        ({"experiment": {"description": 5}}, "experiment.description = 5: Input should be a valid string"),
        ({"training": {"learning_rate": 2.0}}, "training.learning_rate = 2.0: Input should be less than 1"),
        ({"training": {"eval_joules": 0}}, "training.eval_joules = 0: .*greater than 0"),
        (
            {"training": {"eval_steps": 3, "eval_joules": 50}},
            "training: .*eval_steps = 3 and eval_joules = 50 exclude each other: set one to null",
        ),
        ({"training": {"energy_budget_kwh": 0}}, "training.energy_budget_kwh = 0: .*greater than 0"),
        ({"training": {"optimizer": "adam_8bit"}}, "training.optimizer = 'adam_8bit': .*'adamw', 'adafactor' or 'adamw_8bit'"),
        ({"training": {"batch_size": 0}}, "training.batch_size = 0: .*greater than or equal to 1"),
        ({"pipeline": "kdd"}, "pipeline = 'kdd': is no pipeline: choose one of kd, sft, dpo, opd, baseline"),
        ({"distillation": {"temperature": 4.0}}, r"temperature = 4.0, but cache_temperatures = \[1.0\]: add it there"),
        ({"data": {"dataset_choice": "tulu"}}, r"dataset_choice = 'tulu' is not one of \['alpaca_en_demo'\]"),
        ({"model": {"policy": "x"}}, "model.policy is read by pipeline dpo, opd only"),
        ({"synthetic_data": {"use_existing": True}}, "use_existing = true needs synthetic_dataset_path"),
        (
            {"synthetic_data": {"filtering": {"min_length": 9, "max_length": 8}}},
            "min_length = 9 is above max_length = 8: no answer",
        ),
        ({"synthetic_data": {"filtering": {"min_length": 900}}}, "min_length = 900 is above generation.max_new_tokens = "),
        (
            {"synthetic_data": {"filtering": {"refusal_pattern": "(but"}}},
            r"refusal_pattern = '\(but' is no regular expression: ",
        ),
        (
            {"dpo": {"judge_labeling": {"judge_model": "a/b"}}},
            "judge_model = 'a/b', but scoring_method = 'likelihood_mean' asks no",
        ),
        ({"energy": {"pue": 1.1}}, "`energy` holds for the whole campaign"),
    ],
)
def test_a_fault_is_one_line_that_names_it(tmp_path, overlay, expected) -> None:
    with pytest.raises(SettingsError, match=expected) as caught:
        load(tmp_path, {"one": {"pipeline": "kd"} | overlay})
    assert str(caught.value).count("\n") == 0
    assert "one.yaml" in str(caught.value)


@pytest.mark.parametrize("name", ["a b", "a;b", "-x", "ünder"])
def test_an_experiment_name_that_a_shell_could_misread_is_refused(tmp_path, name) -> None:
    with pytest.raises(SettingsError, match="letters, digits, '_' and '-' only: rename the file"):
        load(tmp_path, {name: {"pipeline": "kd"}})


def test_a_name_with_a_slash_or_of_a_results_folder_is_refused(tmp_path) -> None:
    with pytest.raises(SettingsError, match="'teacher' is the name of a results folder"):
        load(tmp_path, {"teacher": {"pipeline": "kd"}})
    (tmp_path / "experiments" / "teacher.yaml").unlink()
    with pytest.raises(SettingsError, match=r"comparison.experiments.0 = 'a/b': String should match pattern"):
        load(tmp_path, {"one": {"pipeline": "kd"}}, {"comparison": {"experiments": ["a/b"]}})


def test_references_between_experiments_are_checked(tmp_path) -> None:
    with pytest.raises(SettingsError, match="model.policy = 'two' is no experiment"):
        load(tmp_path, {"one": {"pipeline": "dpo", "model": {"policy": "two"}}})
    circle = {n: {"pipeline": "dpo", "model": {"policy": p}} for n, p in (("one", "two"), ("two", "one"))}
    with pytest.raises(SettingsError, match="goes in a circle: one -> two -> one"):
        load(tmp_path, circle)


def test_a_tasks_metric_as_quality_needs_its_tasks_in_every_compared_experiment(tmp_path) -> None:
    overlays = {"one": {"pipeline": "kd", "evaluation": {"lm_eval_tasks": ["gsm8k"]}}, "two": {"pipeline": "sft"}}
    both = {"comparison": {"experiments": ["one", "two"], "baseline": None, "quality": "gsm8k/exact_match,strict-match"}}
    with pytest.raises(SettingsError, match=r"two: comparison.quality = 'gsm8k/.*lm_eval_tasks is empty: add 'gsm8k' there"):
        load(tmp_path, overlays, both)
    one = {"comparison": {**both["comparison"], "experiments": ["one"]}}
    assert load(tmp_path, overlays, one)["one"].comparison.quality == "gsm8k/exact_match,strict-match"
    one["comparison"]["quality"] = "instructions/followed"
    assert load(tmp_path, {"one": {"pipeline": "baseline"}}, one)["one"].comparison.quality == "instructions/followed"
    with pytest.raises(SettingsError, match=r"'instructions/followed', but evaluation.instruction_prompts is 0: raise it"):
        load(tmp_path, {"one": {"pipeline": "baseline", "evaluation": {"instruction_prompts": 0}}}, one)
    with pytest.raises(SettingsError, match=r"comparison.quality = 'accuracy': String should match pattern"):
        load(tmp_path, overlays, {"comparison": {"quality": "accuracy"}})
    with pytest.raises(SettingsError, match="lm_eval_include_path = 'x', but lm_eval_tasks is empty: name its tasks"):
        load(tmp_path, {"one": {"pipeline": "kd", "evaluation": {"lm_eval_include_path": "x"}}})


def test_a_key_in_the_configuration_is_refused_without_being_said(tmp_path) -> None:
    with pytest.raises(SettingsError) as error:
        load(tmp_path, {"one": {"pipeline": "kd", "wandb": {"api_key": "5ec2e7"}}})
    assert "unknown key wandb.api_key (its value is not shown)" in str(error.value) and "5ec2e7" not in str(error.value)


def test_unknown_model_is_refused_at_plan_time(tmp_path) -> None:
    with pytest.raises(SettingsError, match="model 'smollm' is neither in `models`"):
        Plan(load(tmp_path, {"one": {"pipeline": "kd", "model": {"teacher": "smollm"}}}))


def test_two_experiments_with_one_folder_for_two_caches_are_refused(tmp_path) -> None:
    overlays = {f"k{k}": {"pipeline": "kd", "distillation": {"top_k_logits": k, "logprob_cache_path": "/x"}} for k in (4, 8)}
    with pytest.raises(SettingsError, match="the folder of logit_caching: /x is claimed by two experiments"):
        Plan(load(tmp_path, overlays, {"comparison": {"experiments": ["k4", "k8"]}}))
    assert list(Plan(load(tmp_path, overlays)).experiments) == ["k4"]


def test_runs_whose_policy_s_policy_is_set_aside_go_with_it(tmp_path) -> None:
    four = {"distillation": {"cache_temperatures": [4.0]}}
    overlays = {
        "one": {"pipeline": "kd", **four},
        "two": {"pipeline": "kd"},
        "three": {"pipeline": "dpo", "model": {"policy": "two"}, **four},
        "four": {"pipeline": "dpo", "model": {"policy": "three"}, **four},
    }
    found = load(tmp_path, overlays, {"distillation": {"temperature": 4.0}, "experiment": {"seeds": [1, 2]}})
    assert list(found) == ["one-seed1", "one-seed2"]
    assert set(found.set_aside.values()) == {found.set_aside["two"]} and "four-seed2" in found.set_aside
    plan = Plan(found)
    assert plan.refusal("four") == plan.refusal("three-seed1") == found.set_aside["two"] and plan.refusal("one") is None


def test_a_name_of_two_things_is_refused(tmp_path) -> None:
    overlays = {"one": {"pipeline": "kd", "experiment": {"seeds": [1]}}, "one-seed1": {"pipeline": "kd"}}
    with pytest.raises(SettingsError, match="'one-seed1' is the name of two runs: rename the file"):
        load(tmp_path, overlays)


def test_a_shared_file_stands_between_base_and_experiment(tmp_path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "far.yaml").write_text("training: {learning_rate: 0.1, batch_size: 2, save_steps: 9}\n")
    (tmp_path / "shared" / "near.yaml").write_text("extends: far\ntraining: {batch_size: 3, save_steps: 8}\n")
    experiment = {"pipeline": "kd", "extends": "near", "training": {"save_steps": 7}}
    training = load(tmp_path, {"one": experiment})["one"].training
    assert (training.learning_rate, training.batch_size, training.save_steps) == (0.1, 3, 7)
    assert training.token_budget == BASE["training"]["token_budget"]


@pytest.mark.parametrize(
    ("files", "key", "expected"),
    [
        ({}, {"extends": "olmo"}, "one.yaml: extends = 'olmo' is no file of .*shared; did you mean 'olmo2'?"),
        ({}, {"extends": ["olmo2"]}, "one.yaml: extends = .*'olmo2'.* is no file"),
        ({}, {"extend": "olmo2"}, "one.yaml: unknown key extend = 'olmo2'; did you mean 'extends'?"),
        ({"olmo2": "extends: olmo2\n"}, {"extends": "olmo2"}, "olmo2.yaml: extends = 'olmo2' goes in a circle"),
        ({"olmo2": "energy: {pue: 1.1}\n"}, {"extends": "olmo2"}, "olmo2.yaml: `energy` holds for the whole campaign"),
        ({"olmo2": "trainng: {}\n"}, {"extends": "olmo2"}, "unknown key trainng = {}; did you mean 'training'?"),
    ],
)
def test_a_fault_of_extends_is_one_line(tmp_path, files, key, expected) -> None:
    (tmp_path / "shared").mkdir()
    for name, text in ({"olmo2": "{}\n"} | files).items():
        (tmp_path / "shared" / f"{name}.yaml").write_text(text)
    with pytest.raises(SettingsError, match=expected) as caught:
        load(tmp_path, {"one": {"pipeline": "kd"} | key})
    assert str(caught.value).count("\n") == 0


def test_command_line_beats_experiment_beats_base(tmp_path) -> None:
    overlay = {"one": {"pipeline": "kd", "training": {"learning_rate": 0.1, "batch_size": 3}}}
    settings = load(tmp_path, overlay, {"training": {"batch_size": 5}})["one"]
    assert (settings.training.learning_rate, settings.training.batch_size) == (0.1, 5)
    assert settings.training.token_budget == BASE["training"]["token_budget"]


def test_deep_merge_keeps_siblings_and_replaces_lists() -> None:
    assert deep_merge({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}}) == {"a": {"b": 1, "c": [3]}}


def test_missing_and_broken_files_are_named(tmp_path) -> None:
    with pytest.raises(SettingsError, match="nowhere.yaml does not exist"):
        read_yaml(tmp_path / "nowhere.yaml")
    (tmp_path / "x.yaml").write_text("a: [1,")
    with pytest.raises(SettingsError, match="x.yaml is not valid YAML"):
        read_yaml(tmp_path / "x.yaml")
    with pytest.raises(SettingsError, match="no experiment found"):
        load_experiments(tmp_path, BASE, {})


def training_slice(settings: Settings) -> str:
    pipeline = PIPELINES[settings.pipeline]
    stage = STAGES[pipeline.training]
    return canonical(cut(settings, (*stage.reads, *pipeline.reads), stage.ignores))


def test_a_slice_does_not_depend_on_key_order(tmp_path) -> None:
    a = load(tmp_path, {"one": {"pipeline": "kd", "training": {"batch_size": 2, "learning_rate": 0.1}}})["one"]
    b = load(tmp_path, {"one": {"training": {"learning_rate": 0.1, "batch_size": 2}, "pipeline": "kd"}})["one"]
    assert training_slice(a) == training_slice(b)


def test_reference_and_schemas_are_in_step_with_the_models() -> None:
    stale = [str(p) for p, text in reference.render().items() if p.read_text() != text]
    assert not stale, "run `make reference`"


def test_packing_is_no_setting_of_dpo_and_what_must_agree_is_named(tmp_path) -> None:
    """A dpo training has the same slice with packing and without, so changing it reruns none."""
    found = {}
    for packing in (True, False):
        training = {"packing": packing, "energy_budget_kwh": 0.5, "compile": True, "eval_steps": 3}
        for pipeline in ("dpo", "baseline"):
            settings = load(tmp_path, {"one": {"pipeline": pipeline, "training": training}})["one"]
            found[pipeline, packing] = training_slice(settings), comparable(settings, settings.model.student)
    assert found["dpo", True] == found["dpo", False]
    assert found["baseline", True][0] != found["baseline", False][0]
    named = found["baseline", True][1]
    assert [named[k] for k in ("packing", "energy budget [kWh]", "compilation", "gradient checkpointing")] == [
        True,
        0.5,
        True,
        False,
    ]
    assert named["intermediate evaluations"] == "every 3 steps" and found["dpo", True][1]["packing"] is None


def test_every_key_is_read_by_the_code() -> None:
    """Each leaf key appears as an attribute or subscript somewhere outside its definition."""
    read: set[str] = set()
    package = REPOSITORY / "workflow_scripts"
    for path in package.rglob("*.py"):
        if path.parent.name == "settings" or path.name == "pipelines.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                read.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value)
    models = [ast.parse(path.read_text()) for path in (package / "settings").glob("*.py")]
    methods = [n for model in models for n in ast.walk(model) if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    read |= {n.attr for m in methods for n in ast.walk(m) if isinstance(n, ast.Attribute)}
    sections = reference.sections("", Settings)
    keys = set(itertools.chain.from_iterable(m.model_fields for _, _, m in sections))
    assert keys - read == set()


def test_keys_of_the_other_way_of_sampling_make_nothing_stale(tmp_path) -> None:
    def slices_of(**distillation) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        settings = load(folder, {"one": {"pipeline": "kd", "distillation": distillation}})["one"]
        return canonical(cut(settings, STAGES["logit_caching"].reads)) + training_slice(settings)

    top_k, random = slices_of(), slices_of(sampling="random")
    assert top_k != random
    assert top_k == slices_of(sampling_draws=7, sampling_seed=3) != slices_of(top_k_logits=7)
    assert random == slices_of(sampling="random", top_k_logits=7, tail="zero") != slices_of(sampling="random", sampling_draws=7)
    assert random != slices_of(sampling="random", sampling_seed=3)


def test_extends_outside_the_files_of_experiments_is_said_in_its_own_words() -> None:
    with pytest.raises(
        SettingsError, match="base.yaml: extends = 'olmo2' belongs in a file of config/experiments or config/shared"
    ):
        validate({"extends": "olmo2"}, "base.yaml")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"learning_rate": "2e-5"}, 2e-5),
        ({"learning_rate": "1_0e-5"}, 1e-4),
        ({"learning_rate": ".5"}, 0.5),
        ({"token_budget": "1_000"}, 1000),
        ({"token_budget": "1e6"}, 1_000_000),
        ({"token_budget": 5.0e6}, 5_000_000),
        ({"energy_budget_kwh": "3"}, 3.0),
        ({"max_epochs": "2"}, 2),
    ],
)
def test_text_that_is_a_number_is_one(tmp_path, section, expected) -> None:
    """As YAML 1.1 and `--config` leave it."""
    found = load(tmp_path, {"one": {"pipeline": "kd", "training": section}})["one"].training
    value = getattr(found, next(iter(section)))
    assert value == expected and type(value) is type(expected)


def test_numbers_in_lists_and_in_the_registry_are_numbers_too(tmp_path) -> None:
    overlay = {
        "pipeline": "kd",
        "distillation": {"cache_temperatures": ["1e0", "2"]},
        "models": {"smollm2-64m-pruned": {"source": "pruned", "of": "smollm2-135m-instruct", "keep_layers": ["0", "1"]}},
        "scatter": {"logit_caching": "1"},
    }
    found = load(tmp_path, {"one": {"pipeline": "kd"}}, overlay)["one"]
    assert found.distillation.cache_temperatures == [1.0, 2.0] and found.scatter.logit_caching == 1
    assert found.models["smollm2-64m-pruned"].keep_layers == [0, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "training:\n  a: 1\nexperiment:\n  seed: 5\ntraining:\n  b: 2\n",
            "key `training` stands in line 1 and in line 5: make them one",
        ),
        ("training:\n  a: 1\n  b:\n    c: 1\n    c: 1\n", "key `c` stands in line 4 and in line 5"),
        ('{"a": {"b": 1,\n"b": 2}}', "key `b` stands in line 1 and in line 2"),
        ("a: [{x: 1}, {x: 1}]\nb: {x: 1}\n", None),
        ("a: &one {x: 1}\nb: {<<: *one, x: 2}\n", None),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path, text, expected) -> None:
    (tmp_path / "f.yaml").write_text(text)
    if expected is None:
        assert read_yaml(tmp_path / "f.yaml")
        return
    with pytest.raises(SettingsError, match=f"f.yaml: {expected}"):
        read_yaml(tmp_path / "f.yaml")


def test_every_shipped_file_names_the_schema_for_editors_and_holds_to_it() -> None:
    schema = json.loads((REPOSITORY / "config" / "schema.json").read_text())
    for path in (REPOSITORY / "config").rglob("*.yaml"):
        first = path.read_text().splitlines()[0]
        named = first.removeprefix("# yaml-language-server: $schema=")
        assert named != first and (path.parent / named).resolve() == REPOSITORY / "config" / "schema.json", path
        jsonschema.validate(read_yaml(path), schema)
