"""What makes which job stale: real `snakemake -n` runs on a real finished run, asserted by job and reason."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.conftest import Workflow

PLAN = re.compile(
    r"^(?:local)?rule (?P<rule>\w+):$(?P<body>.*?)(?=^\[|^(?:local)?rule |^Job stats|\Z)", re.MULTILINE | re.DOTALL
)
TEACHER_TARGETS = ("logit_caching", "synthetic_generation", "preference_dataset")
TARGETS = ("all", *TEACHER_TARGETS, "demo_kd", "demo_sft", "demo_dpo", "demo_baseline")
TRAINING_DPO = {
    "dpo_training demo_dpo",
    "evaluation demo_dpo",
    "experiment_summary demo_dpo",
    "export_policy demo_dpo",
    "comparison",
}
ANSWER_KD = {"experiment_summary demo_kd", "export_model demo_kd"}
TRAINING_KD = {"student_train demo_kd", "evaluation demo_kd", "comparison"} | ANSWER_KD


def plan(workflow: Workflow, *arguments: str) -> dict[str, str]:
    """Jobs that would run, as `rule experiment`, with the first word of their reason."""
    output = workflow.snakemake("-n", *arguments).stdout
    jobs = {}
    for found in PLAN.finditer(output):
        if found["rule"] in TARGETS:
            continue
        reason = re.search(r"reason: (.*)", found["body"])
        experiment = re.search(r"wildcards:.*experiment=(\w+)", found["body"])
        name = found["rule"] + (f" {experiment[1]}" if experiment else "")
        jobs[name] = reason[1] if reason else ""
    assert jobs or "Nothing to be done" in output, output[-3000:]
    return jobs


def edit(workflow: Workflow, relative: str, change) -> None:
    """Change a YAML file of the copy."""
    path = workflow.folder / relative
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def set_key(dotted: str, value):
    def change(content: dict) -> None:
        *parents, last = dotted.split(".")
        for part in parents:
            content = content.setdefault(part, {})
        content[last] = value

    return change


def test_nothing_changed_nothing_to_do(tiny_run: Workflow) -> None:
    assert plan(tiny_run) == {}


def test_options_that_change_no_result(finished: Workflow) -> None:
    options = {
        "wandb.run_name": "another name",
        "wandb.log_interval": 1,
        "wandb.mode": "online",
        "wandb.project": "another project",
        "energy.nvml_poll_interval_ms": 250,
        "energy.pue": 1.2,
        "distillation.sampling_draws": 7,
    }
    for key, value in options.items():
        edit(finished, "config/base.yaml", set_key(key, value))
    assert plan(finished) == {}


def test_wandb_enabled_afterwards_adds_the_final_figures_and_reruns_nothing(finished: Workflow) -> None:
    edit(finished, "config/base.yaml", set_key("wandb.enabled", True))
    assert {job.split()[0] for job in plan(finished)} == {"wandb_summary"}


def test_a_task_file_reruns_the_evaluations_only(finished: Workflow) -> None:
    after = {"evaluation", "reference_evaluation", "experiment_summary", "export_model", "export_policy", "comparison"}
    (finished.folder / "tasks").mkdir()
    (finished.folder / "tasks" / "mine.yaml").write_text("task: mine\n")
    edit(finished, "config/base.yaml", set_key("evaluation", {"lm_eval_tasks": ["mine"], "lm_eval_include_path": "tasks"}))
    assert {job.split()[0] for job in plan(finished)} == after
    assert finished.snakemake("-n").stdout.count("tasks/mine.yaml") >= 6, "the task file is an input"


def test_key_order_comments_and_touched_sources_change_nothing(finished: Workflow) -> None:
    base = finished.folder / "config" / "base.yaml"
    content = yaml.safe_load(base.read_text())
    content["training"] = dict(reversed(content["training"].items()))
    base.write_text("# a comment\n" + yaml.safe_dump(dict(reversed(content.items())), sort_keys=False))
    for source in (finished.folder / "workflow_scripts").rglob("*.py"):
        os.utime(source)
    for source in (finished.folder / "rules").iterdir():
        os.utime(source)
    assert plan(finished) == {}


def test_learning_rate_reruns_that_training_and_what_follows(finished: Workflow) -> None:
    edit(finished, "config/experiments/demo_kd.yaml", set_key("training.learning_rate", 1.0e-4))
    jobs = plan(finished)
    assert set(jobs) == TRAINING_KD
    assert "before: 'training.learning_rate=0.0005' now: 'training.learning_rate=0.0001'" in jobs["student_train demo_kd"]
    inputs = [line for line in finished.snakemake("-n").stdout.splitlines() if line.startswith("    input:")]
    assert inputs and not any(".py" in line for line in inputs), "no source files among the inputs"
    assert jobs["evaluation demo_kd"].startswith("Input files updated by another job")


def test_another_number_of_parts_reruns_nothing_and_holds_for_what_is_made_next(finished: Workflow) -> None:
    edit(finished, "config/base.yaml", set_key("scatter.logit_caching", 3))
    assert plan(finished) == {}
    edit(finished, "config/base.yaml", set_key("distillation.cache_temperatures", [1.0]))
    finished.overlay.write_text(finished.overlay.read_text().replace("cache_temperatures: [1.0, 2.0]", "batch_size: 7"))
    text = finished.snakemake("-n").stdout
    assert text.count("rule cache_logits:") == 3 and text.count("rule merge_logits:") == 1


def test_swapped_values_are_seen(finished: Workflow) -> None:
    def swap(content: dict) -> None:
        content["training"] = {"num_warmup_steps": 3, "gradient_accumulation_steps": 2}

    edit(finished, "config/experiments/demo_kd.yaml", swap)
    assert set(plan(finished)) == TRAINING_KD
    finished.snakemake("--touch", "--cores", "1")


def test_top_k_reruns_the_cache_and_kd(finished: Workflow) -> None:
    edit(finished, "config/base.yaml", set_key("distillation.shard_examples", 4))
    finished.overlay.write_text(finished.overlay.read_text().replace("top_k_logits: 16", "top_k_logits: 8"))
    jobs = plan(finished)
    assert set(jobs) == TRAINING_KD | {"cache_logits", "merge_logits"}
    assert jobs["merge_logits"].startswith("Missing output files: results/teacher/logit_cache-")


def test_another_way_of_keeping_logits_reruns_the_cache_and_kd(finished: Workflow) -> None:
    edit(finished, "config/base.yaml", set_key("distillation.sampling", "random"))
    assert set(plan(finished)) == TRAINING_KD | {"cache_logits", "merge_logits"}


def test_another_backend_of_generation_reruns_generation_and_sft(finished: Workflow) -> None:
    edit(finished, "config/base.yaml", set_key("synthetic_data.generation.backend", "vllm"))
    assert {"generate_answers", "merge_answers", "student_train demo_sft"} <= set(plan(finished))


def test_kd_temperature_within_the_cache_retrains_only(finished: Workflow) -> None:
    edit(finished, "config/base.yaml", set_key("distillation.temperature", 2.0))
    assert set(plan(finished)) == TRAINING_KD


def test_what_a_merge_alone_reads_asks_no_teacher(finished: Workflow) -> None:
    answers = {"merge_answers", "student_train demo_sft", "evaluation demo_sft", "experiment_summary demo_sft"}
    for key, value in (("min_length", 5), ("max_length", 4000)):
        edit(finished, "config/base.yaml", set_key(f"synthetic_data.filtering.{key}", value))
        assert set(plan(finished)) == answers | {"export_model demo_sft", "comparison"}, key
    finished.snakemake("--cores", "2", "demo_sft")
    edit(finished, "config/base.yaml", set_key("dpo.judge_labeling", {"min_margin": 0.001}))
    assert set(plan(finished, "demo_sft", "demo_dpo")) == TRAINING_DPO - {"comparison"} | {"merge_pairs"}


def test_where_files_lie_is_no_part_of_a_result(finished: Workflow) -> None:
    edit(finished, "config/base.yaml", set_key("distillation.logprob_cache_path", "elsewhere"))
    edit(finished, "config/base.yaml", set_key("synthetic_data.synthetic_dataset_path", "other"))
    edit(finished, "config/base.yaml", set_key("dpo_preference_dataset_path", "third"))
    assert plan(finished) == {}


@pytest.mark.parametrize(
    ("source", "rules"),
    [
        ("energy/uncertainty.py", {"experiment_summary", "export_model", "export_policy", "comparison"}),
        ("settings/dpo.py", {"rank_pairs", "merge_pairs", "dpo_training"}),
        ("artefact.py", {"prepare_model", "preprocess", "generate_answers", "student_train", "evaluation", "comparison"}),
    ],
)
def test_edited_code_makes_stale_what_computes_with_it(finished: Workflow, source: str, rules: set[str]) -> None:
    path = finished.folder / "workflow_scripts" / source
    path.write_text(path.read_text() + "\nCHANGED = True\n")
    jobs = {job.split()[0] for job in plan(finished)}
    assert rules <= jobs
    if source.startswith("energy"):
        assert jobs == rules
    if source.startswith("settings"):
        assert "student_train" not in jobs and "generate_answers" not in jobs


def test_who_else_is_compared_is_no_affair_of_a_summary(finished: Workflow) -> None:
    experiments = ["demo_baseline", "demo_kd", "demo_sft"]
    edit(finished, "tiny.yaml", set_key("comparison.experiments", experiments))
    assert set(plan(finished)) == {"comparison"}


def test_results_without_snakemakes_notes_are_compared_by_what_their_records_say(finished: Workflow) -> None:
    """Moved, copied or shared results, a second checkout, a second user: there is no .snakemake that knows them.

    A copy may have any times: here many inputs are newer than what was made from them.
    """
    shutil.rmtree(finished.folder / ".snakemake")
    assert plan(finished) == {}
    files = [p for p in (finished.folder / "results").rglob("*") if p.is_dir() or p.stat().st_nlink == 1]
    for backwards in (False, True):
        for number, path in enumerate(sorted(files, reverse=backwards)):
            os.utime(path, (1.7e9 + number, 1.7e9 + number))
        assert plan(finished) == {}
    edit(finished, "config/experiments/demo_kd.yaml", set_key("training.learning_rate", 1.0e-4))
    jobs = plan(finished)
    assert set(jobs) == TRAINING_KD
    assert "before: 'training.learning_rate=0.0005' now: 'training.learning_rate=0.0001'" in jobs["student_train demo_kd"]


def test_a_file_that_was_replaced_by_an_older_one_is_stale(finished: Workflow) -> None:
    template = finished.folder / "workflow_scripts/distill/chat_templates/smollm2.jinja"
    template.write_text(template.read_text() + "{# other #}")
    os.utime(template, (0, 0))
    jobs = plan(finished)
    assert "preprocess" in jobs and "smollm2.jinja=" in jobs["preprocess"]


def test_results_of_an_earlier_version_are_refused_in_one_sentence(finished: Workflow) -> None:
    path = finished.path("results/demo_kd/stages/student_train.json")
    record = json.loads(path.read_text())
    for key in ("settings", "inputs", "files", "code"):
        del record["provenance"][key]
    path.write_text(json.dumps(record))
    result = finished.snakemake("-n", check=False)
    assert result.returncode == 1
    (line,) = [line for line in (result.stdout + result.stderr).splitlines() if "earlier version" in line]
    assert "student_train.json" in line and "output.root" in line


def test_one_meter_at_a_time_is_no_default_that_an_option_replaces(finished: Workflow) -> None:
    for card in finished.folder.glob("results/*/final_*/README.md"):
        card.unlink()
    result = finished.snakemake("--cores", "48", "--resources", "mem_mb=16000", "--workflow-profile", "none")
    provided = re.search(r"Provided resources: .*", result.stdout + result.stderr)
    assert provided and "mem_mb=" in provided[0] and 'meter=Resource("meter", 1)' in provided[0]
    spans = [json.loads(path.read_text()) for path in finished.folder.glob("results/*/stages/export.json")]
    spans = sorted((r["attempts"][-1]["start_time"], r["attempts"][-1]["end_time"]) for r in spans)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_the_workflow_runs_from_another_folder(finished: Workflow, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    done = finished.snakemake("-n", "-s", str(finished.folder / "Snakefile"), "--directory", str(tmp_path / "elsewhere"))
    assert "student_train" in done.stdout


def test_generation_temperature_reruns_generation_and_sft(finished: Workflow) -> None:
    edit(finished, "config/base.yaml", set_key("synthetic_data.generation.temperature", 0.9))
    jobs = plan(finished)
    assert set(jobs) == {
        "generate_answers",
        "merge_answers",
        "student_train demo_sft",
        "evaluation demo_sft",
        "experiment_summary demo_sft",
        "export_model demo_sft",
        "comparison",
    }
    assert jobs["merge_answers"].startswith("Missing output files: results/teacher/synthetic_dataset-")


def test_beta_reruns_dpo_only(finished: Workflow) -> None:
    edit(finished, "config/base.yaml", set_key("dpo.beta", 0.2))
    jobs = plan(finished)
    assert set(jobs) == TRAINING_DPO
    assert jobs["dpo_training demo_dpo"].startswith("Params have changed")


def test_an_edited_stage_module_reruns_its_stage(finished: Workflow) -> None:
    source = finished.folder / "workflow_scripts" / "stages" / "dpo_training.py"
    source.write_text(source.read_text() + "\nCHANGED = True\n")
    jobs = plan(finished)
    assert set(jobs) == TRAINING_DPO
    assert re.search(r"before: 'code=\w{12}' now: 'code=\w{12}'", jobs["dpo_training demo_dpo"])


def test_an_edited_loss_reruns_the_trainings_but_no_teacher(finished: Workflow) -> None:
    source = finished.folder / "workflow_scripts" / "distill" / "order.py"
    source.write_text(source.read_text() + "\nCHANGED = True\n")
    rules = {job.split()[0] for job in plan(finished)}
    assert rules == {
        "student_train",
        "dpo_training",
        "evaluation",
        "experiment_summary",
        "export_model",
        "export_policy",
        "comparison",
    }


def test_a_new_experiment_with_the_same_teacher_settings_shares_the_teacher(finished: Workflow) -> None:
    new = finished.folder / "config" / "experiments" / "kd_again.yaml"
    new.write_text("pipeline: kd\ntraining:\n  learning_rate: 1.0e-4\n")
    assert set(plan(finished, "kd_again")) == {
        "student_train kd_again",
        "evaluation kd_again",
        "experiment_summary kd_again",
        "export_model kd_again",
        "kd_again",
    }
    assert plan(finished) == {}


def test_a_copy_of_a_shared_record_that_is_gone_is_written_again(finished: Workflow) -> None:
    copy = finished.path("results/demo_kd/stages/preprocess.json")
    whole = copy.read_bytes()
    copy.unlink()
    jobs = plan(finished)
    assert set(jobs) == ANSWER_KD | {"comparison"} and "preprocess.json=missing" in jobs["experiment_summary demo_kd"]
    finished.snakemake("--cores", "2")
    assert copy.read_bytes() == whole and plan(finished) == {}


def test_an_edited_template_or_corpus_file_reruns_what_reads_it(finished: Workflow) -> None:
    template = finished.folder / "workflow_scripts/distill/chat_templates/smollm2.jinja"
    template.write_text(template.read_text() + "{# edited #}")
    assert "preprocess" in plan(finished)


def test_another_student_shares_the_corpus_and_the_teachers_output(finished: Workflow) -> None:
    new = {"pipeline": "kd", "model": {"student": "other"}}
    new["models"] = {"other": {"source": "pruned", "of": "smollm2-135m-instruct", "keep_layers": [0, 29]}}
    (finished.folder / "config" / "experiments" / "kd_small.yaml").write_text(yaml.safe_dump(new))
    assert set(plan(finished, "kd_small")) - {"kd_small"} == {
        "prepare_model",
        "check_tokenizers",
        "reference_evaluation",
        "student_train kd_small",
        "evaluation kd_small",
        "experiment_summary kd_small",
        "export_model kd_small",
    }


def test_targets_of_the_guide(finished: Workflow) -> None:
    assert plan(finished, *TEACHER_TARGETS, "demo_sft") == {}
    finished.path("results/teacher/preference_dataset-*/preference_dataset/manifest.json").unlink()
    assert set(plan(finished, "preference_dataset")) == {"merge_pairs"}, "the teacher's work is kept"


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("training:\n  learning_rate: fast\n", "training.learning_rate = 'fast'"),
        ("pipeline: kdd\n", "pipeline = 'kdd'"),
        ("modle: {}\n", "did you mean 'model'?"),
    ],
)
def test_a_bad_configuration_stops_before_anything_runs(finished: Workflow, overlay: str, message: str) -> None:
    (finished.folder / "config" / "experiments" / "demo_kd.yaml").write_text(
        "pipeline: kd\n" * ("pipeline" not in overlay) + overlay
    )
    result = finished.snakemake("-n", check=False)
    assert result.returncode == 1
    lines = [line for line in (result.stdout + result.stderr).splitlines() if message in line]
    assert len(lines) == 1 and "demo_kd.yaml" in lines[0]
    assert "Traceback" not in result.stderr


def test_planning_needs_no_torch(tiny_run: Workflow) -> None:
    """A module named torch that fails on import stands before the real one while the plan is made."""
    trap = Path(tiny_run.folder, "trap")
    trap.mkdir(exist_ok=True)
    (trap / "torch.py").write_text("raise RuntimeError('torch was imported')")
    assert "Nothing to be done" in tiny_run.snakemake("-n", PYTHONPATH=str(trap)).stdout


def test_shell_commands_are_visible_and_quoted(finished: Workflow) -> None:
    edit(
        finished,
        "config/base.yaml",
        set_key("synthetic_data.filtering.refusal_pattern", "I can't; $(touch owned) `touch owned`"),
    )
    output = finished.snakemake("-n", "-p").stdout
    assert (
        "python -m workflow_scripts.energy.meter" in output and "-- python -m workflow_scripts.stages.merge_answers" in output
    )
    finished.snakemake("--cores", "2", "synthetic_generation")
    assert not (finished.folder / "owned").exists()
