"""The tiny experiment end to end on the real teacher: files, figures, models, resumption."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import jsonschema
import pandas as pd
import pytest

from tests.conftest import REPOSITORY, Workflow

SCHEMA = json.loads((REPOSITORY / "workflow_scripts" / "energy" / "record_schema.json").read_text())
SUMMARY_SCHEMA = json.loads((REPOSITORY / "workflow_scripts" / "accounting" / "summary_schema.json").read_text())
EXPERIMENTS = {
    "demo_kd": "logit_caching",
    "demo_sft": "teacher_generation",
    "demo_dpo": "teacher_generation",
    "demo_baseline": None,
}


def test_every_file_of_the_layout_is_there(tiny_run: Workflow) -> None:
    for name, teacher in EXPERIMENTS.items():
        folder = tiny_run.folder / "results" / name
        training = "dpo_training" if name == "demo_dpo" else "student_train"
        final = folder / ("final_policy" if name == "demo_dpo" else "final_model")
        for file in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"):
            assert (final / file).is_file(), file
        for stage in filter(None, ("prerun", "preprocess", teacher, training, "evaluation")):
            assert (folder / "stages" / f"{stage}.json").is_file(), stage
        assert (folder / "codecarbon" / f"{training}.csv").is_file()
        assert list((folder / "checkpoints").glob("checkpoint-*"))
        for file in ("evaluation.json", "experiment_summary.json", "run_config.yaml", "environment.json"):
            assert (folder / file).is_file(), file
        assert (folder / "prerun_validation" / "validation.json").is_file()
    comparison = tiny_run.folder / "results" / "comparison"
    for file in ("comparison.csv", "comparison.json", "break_even.csv", "energy_by_stage.svg", "energy_quality.svg"):
        assert (comparison / file).stat().st_size > 0


def test_every_record_fits_the_schema_and_says_how_it_was_obtained(tiny_run: Workflow) -> None:
    records = list(tiny_run.folder.glob("results/**/stages/*.json"))
    assert len(records) > 20
    for path in records:
        record = json.loads(path.read_text())
        if "schema" not in record:
            continue
        assert "lineage" not in record
        shared = record.pop("shared_by", None)
        assert shared is None or isinstance(shared, list)
        jsonschema.validate(record, SCHEMA)
        assert record["status"] == "complete"
        for component in ("gpu", "cpu", "dram", "node"):
            figure = record["energy"][component]
            assert (figure["joules"] is None) == (figure["class"] == "unavailable") == (figure["reason"] is not None)
    summary = tiny_run.json("results/demo_kd/experiment_summary.json")
    assert summary["stages"]["student_train"]["total_energy_joules"] > 0


def test_no_two_metered_stages_overlap_in_a_local_run(tiny_run: Workflow) -> None:
    """Host-level counters would count twice."""
    paths = [*tiny_run.folder.glob("results/**/stages/*.json"), *tiny_run.folder.glob("results/models/*/checks/*.record.json")]
    attempts = {a["id"]: a for path in paths for a in json.loads(path.read_text())["attempts"]}
    ordered = sorted(attempts.values(), key=lambda a: a["start_time"])
    assert len(ordered) > 20
    for before, after in pairwise(ordered):
        assert after["start_time"] > before["end_time"] - 0.1, (before["id"], after["id"])


def test_the_summary_adds_up(tiny_run: Workflow) -> None:
    for name in EXPERIMENTS:
        summary = tiny_run.json(f"results/{name}/experiment_summary.json")
        jsonschema.validate(summary, SUMMARY_SCHEMA)
        joules = [r["total_energy_joules"] for r in summary["stages"].values() if "lineage" not in r]
        assert summary["stages"]["student_train"]["total_energy_joules"] > 0, "the guide's jq line gives a number"
        assert summary["total_energy_joules"] == pytest.approx(sum(joules))
        assert summary["total_energy_kwh"] == pytest.approx(sum(joules) / 3.6e6)
        roles = [r["joules"] for r in summary["roles"].values() if r["joules"] is not None]
        assert sum(roles) == pytest.approx(sum(joules))
    lineage = tiny_run.json("results/demo_dpo/experiment_summary.json")["lineage"]
    baseline = tiny_run.json("results/demo_baseline/experiment_summary.json")
    assert lineage["policy"] == "demo_baseline"
    assert lineage["total_energy_kwh"] == pytest.approx(baseline["roles"]["student"]["kwh"])
    stages = pd.read_csv(tiny_run.path("results/comparison/stage_energy.csv"))
    assert set(stages[stages["stage"] == "preprocess"]["users"]) == {4}
    comparison = tiny_run.json("results/comparison/comparison.json")
    own = sum(r["total_kwh"] for r in comparison["experiments"])
    assert 0 < comparison["campaign_kwh"] < own, "shared stages are counted once"


def test_the_same_records_give_the_same_tables(finished: Workflow) -> None:
    """Summing twice doubles nothing."""
    files = [
        "results/demo_kd/experiment_summary.json",
        "results/comparison/comparison.csv",
        "results/comparison/comparison.json",
    ]
    before = [(finished.folder / file).read_bytes() for file in files]
    finished.snakemake("--cores", "2", "--forcerun", "experiment_summary", "comparison")
    assert [(finished.folder / file).read_bytes() for file in files] == before


def test_token_counts_against_the_data_themselves(tiny_run: Workflow) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(tiny_run.path("results/corpus/*/dataset/train.parquet")).to_pylist()
    loss = sum(sum(row["loss_mask"][1:]) for row in rows)
    assert tiny_run.json("results/teacher/logit_cache-*/stages/logit_caching.json")["work"]["loss"] == loss
    record = tiny_run.json("results/demo_baseline/stages/student_train.json")
    assert record["tokens_unit"] == "loss" and 300 <= record["tokens_processed"] < 300 + 96
    generation = tiny_run.json("results/teacher/synthetic_dataset-*/stages/synthetic_generation.json")
    assert 0 < generation["work"]["generated"] <= 6 * 12


def test_no_stage_reports_more_work_than_it_has(tiny_run: Workflow) -> None:
    logs = (tiny_run.folder / "results").rglob("logs/*.log")
    said = [found for log in logs for found in re.findall(r"(\d+)/(\d+) \w+ tokens", log.read_text())]
    assert len(said) > 20 and all(int(done) <= int(total) for done, total in said), said


def test_final_models_load_and_answer(tiny_run: Workflow) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for folder in ("demo_kd/final_model", "demo_dpo/final_policy"):
        path = tiny_run.folder / "results" / folder
        model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        encoded = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**encoded, max_new_tokens=4, do_sample=False)
        assert output.shape[1] > encoded["input_ids"].shape[1]


def test_training_lowers_the_held_out_loss_of_every_student(tiny_run: Workflow) -> None:
    rows = {r["experiment"]: r for r in tiny_run.json("results/comparison/comparison.json")["experiments"]}
    for name in ("demo_kd", "demo_sft", "demo_baseline"):
        assert rows[name]["cross_entropy"] < rows[name]["untrained_cross_entropy"]
    assert rows["demo_dpo"]["preference_margin"] is not None
    assert rows["demo_kd"]["teacher_cross_entropy"] == pytest.approx(1.7, abs=0.5), "the real teacher talks sense"


def test_the_rows_of_an_evaluation_add_up_to_its_qualities(tiny_run: Workflow) -> None:
    splits = set()
    for experiment in EXPERIMENTS:
        found = tiny_run.json(f"results/{experiment}/evaluation.json")
        rows, tokens = found["rows"], sum(found["rows"]["tokens"])
        splits.add(tuple(rows["tokens"]))
        assert len(rows["tokens"]) == found["examples"] and tokens == found["tokens"]
        for quality in ("cross_entropy", "kl_to_teacher", "top1_agreement"):
            assert sum(rows[quality]) / tokens == pytest.approx(found[quality], abs=1e-5)
    assert len(splits) == 1, "the same rows in the same order for all"


def test_the_template_gives_the_teachers_own_text(tiny_run: Workflow) -> None:
    from transformers import AutoTokenizer

    from workflow_scripts.distill.templates import install_chat_template

    teacher = AutoTokenizer.from_pretrained(tiny_run.folder / "results/models/smollm2-135m-instruct/model")
    ours = AutoTokenizer.from_pretrained(tiny_run.folder / "results/models/smollm2-135m-instruct/model")
    install_chat_template(ours, "smollm2")
    turns = [("user", "Hi"), ("assistant", "Ho"), ("user", "And?"), ("assistant", "So.")]
    for system in ([], [{"role": "system", "content": "Be brief."}]):
        for count in range(1, 5):
            messages = system + [{"role": r, "content": c} for r, c in turns[:count]]
            for prompt in (False, True):
                plain = teacher.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
                assert ours.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt) == plain
    encoded = ours.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    marked = [t for t, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
    assert ours.decode(marked) == "Ho<|im_end|>So.<|im_end|>"


def test_the_report_has_the_figures(finished: Workflow) -> None:
    finished.snakemake("--report", "report.html")
    report = (finished.folder / "report.html").read_text()
    assert len(report) > 1_000_000
    for name in ("energy_by_stage.svg", "energy_quality.svg", "comparison.csv"):
        assert name in report


def test_a_stage_killed_in_the_middle_leaves_log_and_ledger_and_a_rerun_finishes(finished: Workflow) -> None:
    finished.overlay.write_text(
        finished.overlay.read_text().replace("token_budget: 300", "token_budget: 3000\n  save_steps: 2")
    )
    target = "results/demo_kd/final_model/manifest.json"
    command = [sys.executable, "-m", "snakemake", "--cores", "2", target, "--configfile", str(finished.overlay)]
    before = set(finished.folder.glob("results/state/student_train/*"))
    driver = subprocess.Popen(command, cwd=finished.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    stage = wait_for_checkpoint(finished, before)
    time.sleep(1)  # some work after the checkpoint, so that some is wasted
    os.kill(stage, signal.SIGKILL)
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 1
    assert "student_train demo_kd: signal after" in output
    assert not (finished.folder / target).exists()
    assert "loss tokens" in (finished.folder / "results/demo_kd/logs/student_train.log").read_text()
    finished.snakemake("--cores", "2", target)
    record = finished.json("results/demo_kd/stages/student_train.json")
    jsonschema.validate(record, SCHEMA)
    assert [a["outcome"] for a in record["attempts"]] == ["signal", "completed"]
    assert record["attempts"][0]["signal"] == 9
    assert record["attempts"][1]["resumed_from"]["steps"] >= 2
    assert record["total_energy_joules"] == pytest.approx(
        sum(sum(v for v in a["joules"].values() if v) for a in record["attempts"])
    )
    assert 0 < record["wasted_j"] < record["total_energy_joules"]


def wait_for_checkpoint(workflow: Workflow, before: set[Path]) -> int:
    """Wait until a new student_train has saved a whole checkpoint; returns the stage's process id."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        new = set(workflow.folder.glob("results/state/student_train/*")) - before
        if any(folder.glob("checkpoints/checkpoint-[0-9]*/sealed.json") for folder in new):
            for folder in new:
                if list(folder.glob("checkpoints/checkpoint-[0-9]*/sealed.json")):
                    meter = json.loads((folder / "lock.json").read_text())["pid"]
                    return int(Path(f"/proc/{meter}/task/{meter}/children").read_text().split()[0])
        time.sleep(0.1)
    raise AssertionError("no checkpoint within 120 s")


def test_a_lost_manifest_is_restored_without_work(finished: Workflow) -> None:
    manifest = finished.path("results/teacher/synthetic_dataset-*/synthetic_dataset/manifest.json")
    content = manifest.read_text()
    manifest.unlink()
    finished.snakemake("--cores", "2", "synthetic_generation")
    assert manifest.read_text() == content
    record = finished.json("results/teacher/synthetic_dataset-*/stages/synthetic_generation.json")
    merged = [("1-of-1", "completed"), (None, "completed"), (None, "completed")]
    assert [(a["part"], a["outcome"]) for a in record["attempts"]] == merged, "the merge alone was made again"
    finished.path("results/teacher/synthetic_generation-*/parts/1-of-1.json").unlink()
    manifest.unlink()
    finished.snakemake("--cores", "2", "synthetic_generation")
    assert manifest.read_text() == content
    log = finished.path("results/teacher/synthetic_generation-*/logs/synthetic_generation.1-of-1.log").read_text()
    assert "3 unit(s) are there from earlier attempts" in log
    record = finished.json("results/teacher/synthetic_dataset-*/stages/synthetic_generation.json")
    assert [(a["part"], a["outcome"]) for a in record["attempts"]] == [*merged, ("1-of-1", "completed"), (None, "completed")]
    again = record["attempts"][3]
    assert again["work"] == again["resumed_from"], "it only counted what was there"
    assert record["tokens_processed"] == again["work"]["generated"]


def run_fails(workflow: Workflow, target: str) -> str:
    result = workflow.snakemake("--cores", "2", target, check=False)
    assert result.returncode == 1
    return result.stdout + result.stderr


def test_a_missing_model_folder_is_named(finished: Workflow) -> None:
    (finished.folder / "config/experiments/demo_kd.yaml").write_text("pipeline: kd\nmodel:\n  student: ./nowhere\n")
    output = run_fails(finished, "demo_kd")
    assert "error: model folder nowhere does not exist or has no config.json: check the path" in output


def test_differing_tokenizers_are_refused_before_anything_expensive(finished: Workflow, toy_model) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    other = finished.folder / "other"
    words = AutoTokenizer.from_pretrained(finished.folder / "results/models/smollm2-135m-instruct/model")
    smaller = words.train_new_from_iterator(["one two three"] * 5, vocab_size=90)
    smaller.save_pretrained(other)
    LlamaForCausalLM(LlamaConfig(**toy_model.config.to_dict() | {"vocab_size": len(smaller)})).save_pretrained(other)
    (finished.folder / "config/experiments/demo_kd.yaml").write_text("pipeline: kd\nmodel:\n  student: ./other\n")
    output = run_fails(finished, "demo_kd")
    assert "have different tokenizers" in output and "choose models of one family" in output


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "error: data: the corpus is empty"),
        (
            [{"messages": [{"role": "user", "content": "x"}]}] * 20,
            "20 of 20 rows of the corpus cannot be used: no assistant turn: 20 (first: rows.json, line 1)",
        ),
    ],
)
def test_a_corpus_that_cannot_be_used_is_named(finished: Workflow, rows: list, message: str) -> None:
    (finished.folder / "rows.json").write_text(json.dumps(rows))
    (finished.folder / "config/experiments/demo_kd.yaml").write_text(
        "pipeline: kd\ndata:\n  dataset_choice: mine\n  datasets:\n    mine:\n      dataset_path: rows.json\n"
    )
    assert message in run_fails(finished, "demo_kd")


def test_a_template_without_markers_is_named(finished: Workflow) -> None:
    (finished.folder / "plain.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    (finished.folder / "config/experiments/demo_kd.yaml").write_text("pipeline: kd\nmodel:\n  chat_template: plain.jinja\n")
    assert "error: model.chat_template = 'plain.jinja': the template has no {% generation %} markers" in run_fails(
        finished, "demo_kd"
    )
