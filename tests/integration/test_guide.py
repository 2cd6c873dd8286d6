"""The launch guide's four experiments, run to the end at test size from their own files, with the guide's keys and paths.

Random OLMo 2 models stand for the real ones: their vocabularies are padded differently, and every record must say what they
are.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from tests.conftest import REPOSITORY, Workflow, copy_workflow, made_once, shared_folder
from workflow_scripts.artefact import RANDOM_WEIGHTS
from workflow_scripts.distill.corpus import read_table

NAMES = ["baseline_1b", "kd_7b_to_1b", "sft_7b_to_1b", "dpo_7b_to_1b"]
TEACHER = {"kd": "logit_caching", "sft": "teacher_generation", "dpo": "teacher_generation"}
TOKENS = 49_152


@pytest.fixture(scope="session")
def guide_run(tmp_path_factory, tiny_run: Workflow, downloads) -> Workflow:
    """Finished run; the tokenizer is the tiny run's. Tests must not change it."""
    folder = shared_folder(tmp_path_factory) / "guide"
    workflow = Workflow(folder, folder / "config" / "olmo2.yaml")
    with made_once(folder) as mine:
        if mine:
            make_guide_run(workflow, tiny_run, downloads)
    return workflow


def make_guide_run(workflow: Workflow, tiny_run: Workflow, downloads: Path) -> None:
    folder = workflow.folder
    copy_workflow(folder, downloads)
    tokenizer = str(tiny_run.path("results/models/smollm2-135m-instruct/model/tokenizer.json").parent)
    overlay = yaml.safe_load((REPOSITORY / "tests" / "config" / "guide.yaml").read_text())
    for model in overlay["models"].values():
        model["tokenizer"] = tokenizer
    overlay["output"] = {"download_dir": str(downloads)}
    (folder / "guide.yaml").write_text(yaml.safe_dump(overlay))
    workflow.snakemake("--cores", "2", overlay="guide.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_summary_stages_and_folders_are_where_the_guide_looks(guide_run: Workflow, name: str) -> None:
    pipeline = name.partition("_")[0]
    summary = guide_run.json(f"logs/{name}/experiment_summary.json")
    training = "dpo_training" if pipeline == "dpo" else "student_train"
    stages = [training, "evaluation", *([TEACHER[pipeline]] if pipeline in TEACHER else [])]
    for stage in stages:
        record = guide_run.json(f"logs/{name}/stages/{stage}.json")
        assert summary["stages"][stage]["total_energy_joules"] == record["total_energy_joules"] > 0
        for key in ("gpu_energy_joules", "cpu_energy_joules", "tokens_processed", "tokens_per_second", "joules_per_token"):
            assert key in record
    assert list((guide_run.folder / "logs" / name / "codecarbon").glob(f"{training}*.csv"))
    model = guide_run.folder / "model_log" / name / ("final_policy" if pipeline == "dpo" else "final_model")
    assert json.loads((model / "config.json").read_text())["architectures"] == ["Olmo2ForCausalLM"]
    assert (guide_run.folder / "model_log" / name / "checkpoints").is_dir()
    assert (guide_run.folder / "model_log" / name / "prerun_validation" / "validation.json").is_file()


def test_teacher_output_is_at_the_paths_of_the_guide_s_keys(guide_run: Workflow) -> None:
    data = guide_run.folder / "dataset"
    assert list((data / "logprob_cache" / "teacher_logprobs").glob("*.safetensors"))
    assert read_table(data / "synthetic_7b_to_1b" / "train.parquet")
    assert {"prompt", "chosen", "rejected"} <= set(read_table(data / "preference_7b_to_1b" / "train.parquet")[0])


def test_padding_has_no_part_in_what_the_teacher_made(guide_run: Workflow) -> None:
    teacher = guide_run.json("results/olmo2/models/olmo2-teacher/model/manifest.json")
    student = guide_run.json("results/olmo2/models/olmo2-student/model/manifest.json")
    assert (teacher["tokens"], teacher["vocab_size"], student["vocab_size"]) == (TOKENS, 49_280, 49_216)
    for shard in (guide_run.folder / "dataset" / "logprob_cache" / "teacher_logprobs").glob("*.safetensors"):
        with safe_open(shard, framework="pt") as handle:
            assert int(handle.get_tensor("ids").long().max()) < TOKENS and "ids_high" not in handle.keys()  # noqa: SIM118
    rows = read_table(guide_run.folder / "dataset" / "synthetic_7b_to_1b" / "train.parquet")
    assert max(max(row["input_ids"]) for row in rows) < TOKENS


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_are_named_everywhere(guide_run: Workflow, name: str) -> None:
    summary = guide_run.json(f"logs/{name}/experiment_summary.json")
    assert summary["warnings"][0] == RANDOM_WEIGHTS
    unmarked = {stage for stage, record in summary["stages"].items() if RANDOM_WEIGHTS not in record["warnings"]}
    assert unmarked == {"prerun"}
    folder = guide_run.folder / "model_log" / name / ("final_policy" if name.startswith("dpo") else "final_model")
    assert json.loads((folder / "manifest.json").read_text())["warnings"] == [RANDOM_WEIGHTS]
    assert f"**Warning: {RANDOM_WEIGHTS}.**" in (folder / "README.md").read_text()
    assert guide_run.json(f"model_log/{name}/evaluation.json")["warnings"] == [RANDOM_WEIGHTS]


def test_an_existing_synthetic_dataset_is_reused(guide_run: Workflow, tmp_path) -> None:
    """`use_existing` with the folder of the first run: it is adopted, and no teacher job is planned."""
    overlay = yaml.safe_load((guide_run.folder / "guide.yaml").read_text())
    overlay["synthetic_data"]["use_existing"] = True
    (tmp_path / "reuse.yaml").write_text(yaml.safe_dump(overlay))
    text = guide_run.snakemake("-n", "sft_7b_to_1b", overlay=str(tmp_path / "reuse.yaml")).stdout
    assert "rule generate_answers" not in text and text.count("rule merge_answers:") == 1
